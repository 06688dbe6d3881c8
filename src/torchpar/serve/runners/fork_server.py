"""Loads a model in a process of its own, and forks its workers, which compute.

It is started fresh, for the server itself has threads, and a fork of those is not safe. It never computes: a worker
that dies is forked again from the same clean state, and all share the memory of the weights. A driver of accelerators
does not survive a fork: with those only the model's description is read here, and each worker loads the model on its
own device.

Nor does a thread survive it, of a pool, of OpenMP or of any library. Where loading leaves some behind, the server
throws this process away and starts another one `apart`: that loads nothing, and each worker loads the model by itself.
"""

from __future__ import annotations

import base64
import faulthandler
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

from torchpar.serve.engine.columns import Column
from torchpar.serve.engine.failures import failure
from torchpar.serve.errors import ModelError
from torchpar.serve.models.files import ModelFile
from torchpar.serve.models.kinds import load_program
from torchpar.serve.models.program import Program
from torchpar.serve.models.values import tensors_of
from torchpar.serve.runners.memory import Memory, Place, end_of
from torchpar.serve.runners.seeds import draw_anew
from torchpar.serve.runners.shared_tensors import Inputs
from torchpar.serve.runners.threads import left_behind, others
from torchpar.serve.runners.worker import receive, send
from torchpar.serve.tensors import Tensor
from torchpar.serve.trim import TRIM_FROM, trim

# What is stuck in a model is told to say where it is and to end; what cannot is killed. Seconds for each.
PATIENCE = 0.5
# A worker that has nothing to do for so long, and had much to do, gives memory back.
IDLE_SECONDS = 1.0


def main(fd: int, text: str) -> None:
    """Serves the control socket `fd` until the server closes it; `text` is what `ProcessRunner` writes.

    First a line of JSON goes back: the model's description, or an error. Then each byte that comes with two descriptors
    (the far ends of a worker's socket and memory) asks for a worker, answered by a line with its process number.
    Workers that load by themselves say first on their socket that they have, or the error.
    """
    control = socket.socket(fileno=fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, which the server answers
    # Before it ends, it says where it is, whatever holds Python's lock. Workers have this from here.
    faulthandler.register(signal.SIGIO, file=2, chain=True)
    loading = json.loads(text)
    file, apart = ModelFile(**loading["file"]), loading["apart"]
    program, description = None, {}
    if not apart:
        # While it loads, it does not look at its socket: the kernel sends SIGIO when the server is gone.
        fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(control, fcntl.F_GETFL)
        fcntl.fcntl(control, fcntl.F_SETFL, flags | os.O_ASYNC)
        if select.select([control], [], [], 0)[0]:
            return  # it was gone before
        before = others()
        wrong = ""
        try:
            program = load_program(file, None if loading["devices"] else "cpu")
        except ModelError as error:
            wrong = str(error)
        finally:
            fcntl.fcntl(control, fcntl.F_SETFL, flags)
        if program is None:
            # Only now: the server closes its end when it has read this.
            _tell(control, {"error": wrong})
            return
        description = {**_describe(program), "threads": left_behind(before)}
    _tell(control, description)
    shared = None if loading["devices"] else program
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    workers: list[int] = []  # descriptors: a process number may be another's by then
    while True:
        order, fds, _, _ = socket.recv_fds(control, 4, 2)
        if len(fds) < 2:
            _end(workers)
            return
        pid = os.fork()
        if pid == 0:
            _work(control, order, fds, shared, loading["devices"], file)
        for each in fds:
            os.close(each)
        for worker in [worker for worker in workers if not _signal(worker, 0)]:
            workers.remove(worker)
            os.close(worker)
        try:
            workers.append(os.pidfd_open(pid))
        except ProcessLookupError:
            pass  # it has died already, which the server sees
        _tell(control, {"pid": pid})


def _end(workers: list[int]) -> None:
    """Ends the workers, also those stuck in the model, which never look at their sockets.

    The server is gone, or has done with the model.
    """
    for number in (0, signal.SIGIO, signal.SIGKILL):
        workers = [worker for worker in workers if _signal(worker, number)]
        until = time.monotonic() + PATIENCE
        for worker in workers:
            select.select([worker], [], [], max(0.0, until - time.monotonic()))


def _signal(worker: int, number: int) -> bool:
    """Signals a worker; says whether it was still there to get it."""
    try:
        signal.pidfd_send_signal(worker, number)
    except ProcessLookupError:
        return False
    return True


def _work(
    control: socket.socket, order: bytes, fds: list[int], program: Program | None, devices: list[str], file: ModelFile
) -> None:
    """Lives the whole life of a worker; never returns. program: None where it loads its own."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        slot = int.from_bytes(order, "little")
        channel, memory = socket.socket(fileno=fds[0]), Memory(fds[1])
        device = devices[slot % len(devices)] if devices else None
        if program is None:
            try:
                program = load_program(file, device or "cpu")
            except ModelError as error:
                send(channel, memory, {"error": str(error)}, 0)
                raise
            send(channel, memory, {}, 0)
        draw_anew()
        if device:
            from torchpar.serve.runners.device import Accelerator, Cuda

            serve_batches(channel, memory, program, Accelerator(Cuda(device)))
        else:
            serve_batches(channel, memory, program, None)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def serve_batches(channel: socket.socket, memory: Memory, program: Program, device: Any) -> None:
    """Computes what comes, until the socket is closed. device: see device.py; None is the CPU."""
    moved = 0  # bytes, since memory was given back
    inputs = Inputs(memory)
    while True:
        if moved > TRIM_FROM and not select.select([channel], [], [], IDLE_SECONDS)[0]:
            trim()
            moved = 0
        request = receive(channel, memory)
        if request is None:
            return
        memory.reach(request["end"])
        if device:
            device.attach(memory)
        reply, end = _answer(request, memory, inputs, program, device)
        reply["kept"] = inputs.were_kept()
        send(channel, memory, reply, end)
        moved += end


def _answer(
    request: dict[str, Any], memory: Memory, inputs: Inputs, program: Program, device: Any
) -> tuple[dict[str, Any], int]:
    """Computes one batch; returns the reply, and the first free byte of the memory. Here nothing of it is kept."""
    try:
        values = inputs.take(request["inputs"])
        results = device.run(program, values) if device else program.compute(values)
        outputs = tensors_of(results)
        places = _lay_out(memory, outputs, request["end"])
        return {"outputs": places}, max(request["end"], end_of(places))
    except SystemExit:
        raise  # a handler that asks for the end of its process has it
    except BaseException as error:  # the model's own code: whatever it raises is the answer
        if program.platform == "python" and not request["quiet"]:
            traceback.print_exc()  # for the handler's author, who looks into the log
        told = failure(error, own_code=program.platform == "python")
        lasting = told.lasting and told.lasting.value
        return {"error": told.message, "status": told.status, "lasting": lasting}, request["end"]


def _lay_out(memory: Memory, outputs: list[Tensor], start: int) -> list[Place]:
    return memory.write([(t.name, Column(t.datatype, t.shape, [t.data])) for t in outputs], start)


def _describe(program: Program) -> dict[str, Any]:
    description = {
        "platform": program.platform,
        "inputs": [spec.to_json() for spec in program.inputs],
        "outputs": [spec.to_json() for spec in program.outputs],
        "max_batch": program.max_batch,
        "guessed": program.guessed,
        "writes": program.writes(),
        "counts": program.counts,
        "files": list(program.files.items()),
    }
    if program.example is not None:
        description["example"] = [_packed(tensor) for tensor in program.example]
    return description


def _packed(tensor: Tensor) -> dict[str, Any]:
    data = tensor.data
    packed = (
        [base64.b64encode(e).decode() for e in data] if isinstance(data, list) else base64.b64encode(data).decode()
    )
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": packed}


def unpacked(packed: dict[str, Any]) -> Tensor:
    """Makes a tensor of the description's example."""
    data = packed["data"]
    raw = [base64.b64decode(e) for e in data] if isinstance(data, list) else base64.b64decode(data)
    return Tensor(packed["name"], packed["datatype"], tuple(packed["shape"]), raw)


def _tell(control: socket.socket, what: dict[str, Any]) -> None:
    control.sendall(json.dumps(what).encode() + b"\n")

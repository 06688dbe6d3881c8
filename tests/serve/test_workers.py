"""Handlers and exported programs, each worker a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.engines import Answer, ask, request, serving, value
from tests.serve.models import Affine, described, mlp, save_script
from torchpar.serve.engine.columns import Column
from torchpar.serve.engine.engine import Engine
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.protocol.triton import model_config
from torchpar.serve.runners.memory import Memory, end_of
from torchpar.serve.runners.shared_tensors import Inputs
from torchpar.serve.tensors import Tensor

pytestmark = pytest.mark.subprocess

MINIMUM = """
import torch

INPUTS = [("x", "FP32", (-1, 3))]
OUTPUTS = [("y", "FP32", (-1, 3))]

def load():
    global scale
    scale = torch.tensor([1.0, 2.0, 3.0])

def predict(batch):
    return {"y": batch["x"] * scale}
"""

# Sleeps as many seconds as the first number says, and tells which process it is. Of less than none: until there is a
# file "go" beside it, and meanwhile one that is named by the process.
SLEEPER = """
import os, time, torch

INPUTS = [("x", "FP32", (-1, 1))]
OUTPUTS = [("pid", "INT64", (-1,))]
MAX_BATCH = 1

def load():
    pass

def predict(batch):
    seconds = float(batch["x"][0, 0])
    here = os.path.dirname(os.path.abspath(__file__))
    if seconds < 0:
        open(f"{here}/computes-{os.getpid()}", "w").close()
        while not os.path.exists(f"{here}/go"):
            time.sleep(0.01)
    else:
        time.sleep(seconds)
    return torch.full((len(batch["x"]),), os.getpid())

def example():
    return {"x": torch.zeros(1, 1)}
"""

STRINGS = """
INPUTS = [("text", "BYTES", (-1, 1))]
OUTPUTS = [("loud", "BYTES", (-1, 1)), ("length", "INT64", (-1,))]

def load():
    pass

def predict(batch):
    import torch
    texts = [text.decode() for text in batch["text"]]
    if "fail" in texts:
        raise ValueError("this text cannot be read")
    return {"loud": [[text.upper()] for text in texts], "length": torch.tensor([len(text) for text in texts])}
"""


def handler(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "m.py"
    path.write_text(text)
    return path


def runner(engine: Engine) -> Any:
    return engine._repository.get("m").runner


X = torch.arange(6.0).reshape(2, 3)


def test_ten_lines_are_a_handler(tmp_path: Path) -> None:
    """It is batched, for its rows do not see each other, and computes in every worker."""

    async def run() -> None:
        async with serving(handler(tmp_path, MINIMUM), workers=2, max_batch=8) as engine:
            model = engine.metadata("m")
            assert model.platform == "python" and model_config(model)["max_batch_size"] == 8
            assert len(set(runner(engine).pids())) == 2
            for answer in ask(engine, [request(X * i) for i in range(6)]):
                await answer.get()
            for i, answer in enumerate(ask(engine, [request(X * i) for i in range(6)])):
                assert torch.equal((await answer.values())[0], X * i * torch.tensor([1.0, 2.0, 3.0]))
            # More than the memory holds at first: both ends map it anew.
            large = torch.randn(8, 3)
            assert (await Answer(engine, request(large)).values())[0].shape == (8, 3)

    asyncio.run(run())


# Adds up the last three inputs, of which it keeps views.
HISTORY = """
import torch

INPUTS = [("x", "FP32", (-1, 3)), ("kept", "BOOL", (-1,))]
OUTPUTS = [("y", "FP32", (-1, 3))]
MAX_BATCH = 1
history = []

def load():
    pass

def predict(batch):
    recent = [*history, batch["x"][0]]
    if bool(batch["kept"]):
        history.append(batch["x"][0])
        del history[:-2]
    return {"y": torch.stack(recent).sum(0, keepdim=True)}
"""


def test_what_a_handler_keeps_of_its_inputs_stays_as_it_is(tmp_path: Path) -> None:
    """Whenever it begins to, and whatever the sizes of the batches after it."""

    async def run() -> None:
        async with serving(handler(tmp_path, HISTORY)) as engine:
            history: list[torch.Tensor] = []
            for i in range(8):
                row, kept = torch.full((1, 3), float(i)), torch.tensor([i % 2 == 1])
                answer = await ask(engine, [request(row, kept, names="x kept")])[0].values()
                assert torch.equal(answer[0], sum(history, row))
                history = [*history, row][-2:] if kept else history

    asyncio.run(run())


class Remembering(torch.nn.Module):
    """Answers with the input before."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.jit.Attribute([], list[torch.Tensor])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keeps its input."""
        self.before.append(x)
        return self.before[-2] if len(self.before) > 1 else x


def test_what_a_program_keeps_of_its_inputs_stays_as_it_is(tmp_path: Path) -> None:
    """Where a process computes it too."""

    async def run() -> None:
        path = save_script(Remembering(), tmp_path / "m.pt", described(-1, 3))
        async with serving(path, backend="process") as engine:
            answers = [(await ask(engine, [request(X[:1] + i)])[0].values())[0] for i in range(5)]
        assert [answer[0, 0].item() for answer in answers] == [0.0, 0.0, 1.0, 2.0, 3.0]

    asyncio.run(run())


def test_inputs_that_are_not_kept_are_not_copied() -> None:
    """Neither by a worker, nor in its memory."""
    fd = os.memfd_create("test")
    try:
        memory = Memory(fd)
        places = memory.write([("x", Column("FP32", (2,), [b"\0" * 8])), ("flag", Column("BOOL", (1,), [b"\1"]))])
        inputs = Inputs(memory)
        for _ in range(3):
            value, flag = inputs.take(places)
            memory.view[:4] = os.urandom(4)
            assert bytes(memory.view[:8]) == value.numpy().tobytes()
            del value
            assert not inputs.were_kept() and bool(flag)
        for _ in range(2):
            garbage: list[object] = [inputs.take(places)]
            garbage.append(garbage)
            del garbage
            assert not inputs.were_kept()
        value = inputs.take(places)[0][1:]
        assert inputs.were_kept() and not inputs.were_kept()
        copy = inputs.take(places)[0]
        memory.view[:8] = b"\1" * 8
        assert copy.numpy().tobytes() != bytes(memory.view[:8]) == b"\1" * 4 + value.numpy().tobytes()
        assert not inputs.were_kept()
    finally:
        os.close(fd)


def test_strings_go_both_ways_and_a_failure_is_told(tmp_path: Path) -> None:
    """BYTES of any length; what predict raises is a 500 to who caused it alone."""

    def texts(*words: bytes) -> Request:
        return Request("m", [Tensor("text", "BYTES", (len(words), 1), list(words))])

    async def run() -> None:
        async with serving(handler(tmp_path, STRINGS)) as engine:
            good, bad, long = ask(
                engine, [texts(b"one", "zwölf".encode()), texts(b"fail"), texts(b"x" * 100_000, b"")]
            )
            got = await good.get()
            assert isinstance(got, Response)
            assert got.outputs[0].data == [b"ONE", "ZWÖLF".encode()] and got.outputs[0].shape == (2, 1)
            assert value(got.outputs[1]).tolist() == [3, 5]
            refused = await bad.get()
            assert isinstance(refused, ServeError) and refused.status == 500
            assert refused.message == "the model failed: ValueError: this text cannot be read"
            whole = await long.get()
            assert isinstance(whole, Response) and whole.outputs[0].data == [b"X" * 100_000, b""]

    asyncio.run(run())


# Raises what is no Exception, or has no text, as the largest number says.
ODD_ERRORS = """
import asyncio

INPUTS = [("x", "FP32", (-1, 3))]
OUTPUTS = [("y", "FP32", (-1, 3))]

class Wordless(Exception):
    def __str__(self):
        raise RuntimeError

ERRORS = {7.0: asyncio.CancelledError, 8.0: KeyboardInterrupt, 9.0: Wordless}

def load():
    pass

def predict(batch):
    error = ERRORS.get(float(batch["x"].max()))
    if error:
        raise error
    return batch["x"]
"""


@pytest.mark.parametrize("backend", ["process", "thread"])
def test_whatever_a_handler_raises_is_the_answer_to_who_caused_it(tmp_path: Path, backend: str) -> None:
    """No worker ends, and who asks at the same time is answered."""

    async def run() -> None:
        async with serving(handler(tmp_path, ODD_ERRORS), backend=backend) as engine:
            for number in (7.0, 8.0, 9.0):
                before, wrong, after = ask(engine, [request(X), request(X[:1] * 0 + number), request(X)])
                assert await wrong.status() == 500
                assert torch.equal((await before.values())[0], X) and torch.equal((await after.values())[0], X)

    asyncio.run(run())


def test_a_killed_worker_costs_what_it_held_and_is_back(tmp_path: Path) -> None:
    """503 for the request in it; those of the other worker, and those that wait, are answered."""

    async def both_compute(engine: Engine) -> list[Answer]:
        answers = ask(engine, [request(torch.full((1, 1), -1.0))] * 2)
        while not all((tmp_path / f"computes-{pid}").exists() for pid in runner(engine).pids()):
            await asyncio.sleep(0.01)
        for pid in runner(engine).pids():
            (tmp_path / f"computes-{pid}").unlink()
        return answers

    async def run() -> None:
        async with serving(handler(tmp_path, SLEEPER), workers=2) as engine:
            first, second = await both_compute(engine)
            waiting = ask(engine, [request(torch.zeros(1, 1))] * 5)
            killed = runner(engine).pids()[1]
            os.kill(killed, signal.SIGKILL)
            await asyncio.wait((first._future, second._future), return_when=asyncio.FIRST_COMPLETED)
            (tmp_path / "go").touch()
            ends = [await first.get(), await second.get()]
            statuses = [end.status for end in ends if isinstance(end, ServeError)]
            assert statuses == [503]
            pids = [(await answer.values())[0].item() for answer in waiting]
            assert killed not in pids
            # The worker is back: as many processes as before, and all compute.
            (tmp_path / "go").unlink()
            both = await both_compute(engine)
            (tmp_path / "go").touch()
            assert {(await answer.values())[0].item() for answer in both} == set(runner(engine).pids())
            assert engine.live() and killed not in runner(engine).pids()

    asyncio.run(run())


def test_there_are_no_more_threads_than_processes_that_compute(tmp_path: Path) -> None:
    """They would wait for each other, and the model would seem to be slower than it is."""

    async def run() -> int:
        engine = Engine(EngineOptions("m", model=str(handler(tmp_path, SLEEPER)), workers=1))
        await engine.prepare(None, (), ())
        engine.open(allowed=lambda: 3)
        try:
            for answer in ask(engine, [request(torch.zeros(1, 1))] * 9):
                await answer.values()
            return sum(thread.name.startswith("compute-") for thread in threading.enumerate())
        finally:
            await engine.stop(30)

    assert asyncio.run(run()) == 2  # and of these one for what may pass all others


# Makes the function that answers when it loads.
MADE = """
INPUTS = [("x", "FP32", (-1, 3))]
OUTPUTS = [("y", "FP32", (-1, 3))]

def predict(batch):
    raise NotImplementedError

def load():
    global predict
    predict = lambda batch: {"y": batch["x"] * 2}
"""


def test_the_predict_that_load_makes_is_the_one_that_answers(tmp_path: Path) -> None:
    """As a call of the module's function has it in Python."""

    async def run() -> None:
        async with serving(handler(tmp_path, MADE)) as engine:
            assert torch.equal((await ask(engine, [request(X)])[0].values())[0], 2 * X)

    asyncio.run(run())


def test_a_worker_that_two_threads_miss_is_forked_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(handler(tmp_path, SLEEPER), workers=1) as engine:
            processes = runner(engine)
            processes._workers[0].close()
            processes._workers[0] = None
            lock, found = processes._lock, []

            class Late:
                def __enter__(self) -> None:
                    processes._lock = lock
                    processes.mend(0)  # of who came at the same time
                    found.extend(processes.pids())
                    lock.acquire()

                def __exit__(self, *_: object) -> None:
                    lock.release()

            processes._lock = Late()
            processes.mend(0)
            assert processes.pids() == found and found != [None]

    asyncio.run(run())


def test_many_deadlines_cost_few_looks_through_the_queue(tmp_path: Path) -> None:
    """While every worker is busy, those that pass close to each other are answered together."""

    async def run() -> None:
        async with serving(handler(tmp_path, SLEEPER), workers=1, max_queue=100) as engine:
            (pid,) = await Answer(engine, request(torch.zeros(1, 1))).values()
            busy = Answer(engine, request(torch.full((1, 1), 1000.0)))
            await asyncio.sleep(0.1)
            times: list[float] = []
            looks: list[float] = []
            this_turn: list[float] = []

            def ended(outcome: object) -> None:
                times.append(time.monotonic())
                if not this_turn:
                    looks.append(times[-1])
                    this_turn.append(times[-1])
                    asyncio.get_running_loop().call_soon(this_turn.clear)

            now = time.monotonic()
            for i in range(80):
                asked = request(torch.zeros(1, 1))
                engine.submit(replace(asked, deadline=time.monotonic() + 0.1 + i / 200), ended)
            while len(times) < 80:
                await asyncio.sleep(0.01)
            os.kill(int(pid), signal.SIGKILL)
            assert await busy.status() == 503
            assert times[0] >= now + 0.1
            # Turns of the event loop, in 400 ms; one by one they would be 80.
            assert len(looks) < 15

    asyncio.run(run())


def test_a_killed_nursery_is_replaced_when_it_is_needed(tmp_path: Path) -> None:
    """Its workers go on; the next that dies is forked from a new one."""

    async def run() -> None:
        async with serving(handler(tmp_path, SLEEPER), workers=1) as engine:
            runner(engine)._process.kill()
            (pid,) = await Answer(engine, request(torch.zeros(1, 1))).values()
            held = Answer(engine, request(torch.full((1, 1), 30.0)))
            await asyncio.sleep(0.2)
            os.kill(int(pid), signal.SIGKILL)
            assert await held.status() == 503
            (other,) = await Answer(engine, request(torch.zeros(1, 1))).values()
            assert other.item() != pid.item()

    asyncio.run(run())


def test_no_process_stays_behind(tmp_path: Path) -> None:
    """After a stop, and after a reload the old ones."""

    def gone(pid: int) -> bool:
        try:
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True

    async def run() -> list[int]:
        path = handler(tmp_path, MINIMUM)
        async with serving(path, workers=2) as engine:
            old = [*runner(engine).pids(), runner(engine)._process.pid]
            path.write_text(MINIMUM.replace("* scale", "+ scale"))
            await engine.reload()
            (y,) = await Answer(engine, request(X)).values()
            assert torch.equal(y, X + torch.tensor([1.0, 2.0, 3.0]))
            return old + [*runner(engine).pids(), runner(engine)._process.pid]

    pids = asyncio.run(run())
    end = time.monotonic() + 300
    while not all(map(gone, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert [pid for pid in pids if not gone(pid)] == []


FRAGILE = MINIMUM.replace(
    "def predict(batch):",
    """def predict(batch):
    if (batch["x"] == 100).any():
        raise ValueError
    if (batch["x"] == 200).any():
        import os
        os._exit(1)""",
)


def test_a_worker_that_cannot_come_back_ends_no_thread(tmp_path: Path, journal: Callable[[], str]) -> None:
    """Its model is gone from the disk, and it died while a batch's requests were computed one by one."""

    async def run() -> None:
        async with serving(handler(tmp_path, FRAGILE)) as engine:
            (tmp_path / "m.py").rename(tmp_path / "away")
            runner(engine)._process.kill()
            bad, deadly = ask(engine, [request(torch.full((1, 3), 100.0)), request(torch.full((1, 3), 200.0))])
            assert (await bad.status(), await deadly.status()) == (500, 503)
            assert await Answer(engine, request(X)).status() == 503
            assert engine.live()
            (tmp_path / "away").rename(tmp_path / "m.py")
            while isinstance(await Answer(engine, request(X)).get(), ServeError):
                await asyncio.sleep(0.05)

    asyncio.run(run())
    assert "a worker cannot be started again" in journal()


def test_a_worker_that_is_stuck_ends_with_its_server(tmp_path: Path) -> None:
    """It never looks at its socket: the fork server ends it."""

    async def run() -> int:
        async with serving(handler(tmp_path, SLEEPER), drain=0) as engine:
            stuck = Answer(engine, request(torch.full((1, 1), 600.0)))
            await asyncio.sleep(0.2)
            (pid,) = runner(engine).pids()
        assert await stuck.status() == 503
        return int(pid)

    pid = asyncio.run(run())
    end = time.monotonic() + 300
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def load(): pass", r"load\(\) and predict\(batch\); predict is missing"),
        (MINIMUM.replace("INPUTS = [", "OTHER = ["), "INPUTS is missing"),
        (MINIMUM.replace("(-1, 3))]", "3)]", 1), "INPUTS: expected is"),
        (MINIMUM.replace("FP32", "float"), r"INPUTS\[0\]: datatype 'float'"),
        (MINIMUM.replace("global scale", "open('/no/such/file')"), r"load\(\) failed at m.py:\d+: FileNotFoundError"),
        ("import no_such_module", "import.. failed at m.py:1: ModuleNotFoundError"),
        ("import os; os._exit(3)", "loading it ended the process .status 3"),
    ],
)
def test_a_handler_that_cannot_be_loaded_says_why(tmp_path: Path, text: str, says: str) -> None:
    """File, function and line."""

    async def run() -> None:
        async with serving(handler(tmp_path, text)):
            pass

    with pytest.raises(ModelError, match=says):
        asyncio.run(run())


def test_a_torchscript_file_can_be_served_by_processes_too(tmp_path: Path) -> None:
    """Backend=process."""
    save_script(Affine(), tmp_path / "m.pt", described(-1, 3))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", backend="process") as engine:
            assert runner(engine).pids()
            assert torch.equal((await Answer(engine, request(X)).values())[0], 2 * X + 1)

    asyncio.run(run())


def exported(module: torch.nn.Module) -> Any:
    rows = torch.export.Dim("rows", min=1, max=4096)
    return torch.export.export(module, (torch.randn(2, 3),), dynamic_shapes=({0: rows},))


@pytest.mark.skipif(not hasattr(torch, "export"), reason="this torch has no torch.export")
def test_an_exported_program_names_its_tensors_itself(tmp_path: Path) -> None:
    """Names, datatypes, shapes; its open first dimension is the rows."""
    module = mlp()
    torch.export.save(exported(module), str(tmp_path / "m.pt2"))

    async def run() -> None:
        async with serving(tmp_path / "m.pt2") as engine:
            metadata = engine.metadata("m")
            assert [(s.name, s.datatype, s.shape) for s in metadata.inputs] == [("input", "FP32", (-1, 3))]
            assert [(s.datatype, s.shape) for s in metadata.outputs] == [("FP32", (-1, 3))]
            assert model_config(engine.metadata("m"))["max_batch_size"] > 1
            for i, answer in enumerate(ask(engine, [request(X * i, names="input") for i in range(5)])):
                assert torch.allclose((await answer.values())[0], module(X * i), atol=1e-5)

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(torch, "export"), reason="this torch has no torch.export")
def test_a_program_with_fixed_rows_is_served_as_it_is(tmp_path: Path) -> None:
    """No batching where the rows are not open."""
    module = mlp()
    torch.export.save(torch.export.export(module, (X,)), str(tmp_path / "m.pt2"))

    async def run() -> None:
        async with serving(tmp_path / "m.pt2") as engine:
            model = engine.metadata("m")
            assert model_config(model)["max_batch_size"] == 0 and model.inputs[0].shape == (2, 3)
            assert torch.equal((await Answer(engine, request(X, names="input")).values())[0], module(X))

    asyncio.run(run())


HUNDREDS = """
NAMES = [f"feature_{i:04d}" for i in range(900)]
INPUTS = [(name, "FP32", (-1, 1)) for name in NAMES]
OUTPUTS = [("twice_" + name, "FP32", (-1, 1)) for name in NAMES]

def load():
    pass

def predict(batch):
    return {"twice_" + name: 2 * batch[name] for name in NAMES}
"""


def test_hundreds_of_inputs_and_outputs_are_served(tmp_path: Path) -> None:
    """Where they lie is more than a packet holds."""
    (tmp_path / "h.py").write_text(HUNDREDS)

    async def run() -> None:
        async with serving(tmp_path / "h.py") as engine:
            names = " ".join(f"feature_{i:04d}" for i in range(900))
            asked = [request(*[torch.full((1, 1), float(k + i)) for i in range(900)], names=names) for k in range(3)]
            for k, answer in enumerate(ask(engine, asked)):
                assert [float(y) for y in await answer.values()] == [2.0 * (k + i) for i in range(900)]

    asyncio.run(run())


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    """By its name, and by what is in it."""
    for name, says in (("m.onnx", "not a model"), ("m.pt2", "it is no archive"), ("gone.pt", "No such file")):
        if name != "gone.pt":
            (tmp_path / name).write_bytes(b"nothing")

        async def run(path: Path) -> None:
            async with serving(path):
                pass

        with pytest.raises(ModelError, match=says):
            asyncio.run(run(tmp_path / name))


columns = st.one_of(
    st.lists(st.binary(max_size=300), min_size=1, max_size=4).map(
        lambda parts: Column("UINT8", (sum(map(len, parts)),), parts)
    ),
    st.lists(st.lists(st.binary(max_size=50), max_size=4), min_size=1, max_size=3).map(
        lambda parts: Column("BYTES", (sum(map(len, parts)),), parts)
    ),
)


@given(st.lists(st.lists(columns, max_size=4), min_size=1, max_size=4))
def test_what_is_written_to_the_memory_is_read_at_its_other_end(batches: list[list[Column]]) -> None:
    """Of any sizes, batch after batch, with maps that are made at different times."""
    fd = os.memfd_create("test")
    try:
        here, there = Memory(fd), Memory(fd)
        for batch in batches:
            places = here.write([(str(i), column) for i, column in enumerate(batch)])
            there.reach(end_of(places))
            for column, place in zip(batch, places, strict=True):
                got = there.read(place)
                joined: Any = [] if column.datatype == "BYTES" else b""
                for part in column.parts:
                    joined += part
                assert (got.datatype, got.shape, got.data) == (column.datatype, column.shape, joined)
            back = there.write([("y", Column("UINT8", (5000,), [b"y" * 5000]))], end_of(places))
            assert here.read(back[0]).data == b"y" * 5000
    finally:
        os.close(fd)


DRAWS = """
import os, random, time, torch

INPUTS = [("x", "FP32", (-1, 1))]
OUTPUTS = [("pid", "INT64", (-1, 1)), ("torch", "FP32", (-1, 4)), ("numpy", "FP64", (-1, 4)), ("python", "FP64", (-1,))]
MAX_BATCH = 1

def load():
    global numpy
    import numpy
    torch.manual_seed(7), numpy.random.seed(7), random.seed(7)

def predict(batch):
    time.sleep(0.02)
    drawn = torch.from_numpy(numpy.random.rand(1, 4))
    python = torch.tensor([random.random()], dtype=torch.float64)
    return {"pid": torch.tensor([[os.getpid()]]), "torch": torch.rand(1, 4), "numpy": drawn, "python": python}
"""


def test_workers_draw_different_random_numbers_in_each_life(tmp_path: Path) -> None:
    """They are forked from one state, and so is the one that takes the place of a killed one."""
    draws: list[list[torch.Tensor]] = []

    async def run() -> None:
        async with serving(handler(tmp_path, DRAWS), workers=2) as engine:
            for killed in (False, True):
                if killed:
                    os.kill(runner(engine).pids()[0], signal.SIGKILL)
                for answer in ask(engine, [request(torch.zeros(1, 1))] * 12):
                    got = await answer.get()
                    if isinstance(got, Response):
                        draws.append([value(tensor) for tensor in got.outputs])

    asyncio.run(run())
    assert len({int(pid) for pid, *_ in draws}) > 1
    for kind in (1, 2, 3):
        numbers = [tuple(draw[kind].flatten().tolist()) for draw in draws]
        assert len(set(numbers)) == len(numbers) > 20


def test_a_program_in_threads_draws_different_numbers_in_each_process(tmp_path: Path) -> None:
    """torch itself begins with the same seed every time."""
    seeds = set()
    for _ in range(2):
        torch.default_generator.manual_seed(67280421310721)

        async def run() -> int:
            async with serving(save_script(Affine(), tmp_path / "m.pt", described(-1, 3))):
                return torch.initial_seed()

        seeds.add(asyncio.run(run()))
    assert len(seeds) == 2


# As many numbers as the seed says, in mebibytes of FP32.
GENERATOR = """
import torch

INPUTS = [("x", "FP32", (-1, 1))]
OUTPUTS = [("image", "FP32", (-1, -1))]
MAX_BATCH = 1

def load():
    pass

def predict(batch):
    return {"image": batch["x"].expand(1, int(batch["x"][0, 0].item() * (1 << 18))).contiguous()}

def example():
    return {"x": torch.ones(1, 1)}
"""


def test_the_memory_of_large_answers_comes_back(tmp_path: Path) -> None:
    """A worker keeps nothing of its last batch, nor does its allocator when there is nothing to do."""

    def held(pid: int) -> int:
        return int(re.findall(r"RssAnon:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) >> 10

    async def run() -> None:
        async with serving(handler(tmp_path, GENERATOR)) as engine:
            before = held(runner(engine).pids()[0])
            for size in (1, 24, 16, 8, 16, 24, 8):
                (image,) = await Answer(engine, request(torch.tensor([[float(size)]]))).values()
                assert image.shape == (1, size << 18) and (image == size).all()
            while held(runner(engine).pids()[0]) > before + 16:
                await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(run(), 120))

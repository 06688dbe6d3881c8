"""What a job may do to whoever looks at it, by the name in its arguments; says "ready" and waits.

Runs in the machine, as the script of a training service, with the standard library and torchpar's runtime.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

SOCKET, JOBS = "/run/torchpar/torchpard.sock", "/run/torchpar-jobs"

# A line of its own for whoever splits at it, escape sequences, no UTF-8, what the kernel would say, and no end.
NAME = b"x\n\x0b\x0c1 bind:9 N7=7\x1b[2J\x1b]0;x\x07\x9b\xff\xe2\x80\xa8" + b"y" * 200


def say_what_is_read() -> None:
    """65,000 mappings of a file with such a path, and variables and arguments of 2 MB with such bytes."""
    libc = ctypes.CDLL(None)
    libc.prctl(15, NAME[:15], 0, 0, 0)  # PR_SET_NAME
    os.chdir(os.environ["STATE_DIRECTORY"])
    for _ in range(15):
        os.makedirs(NAME[:250], exist_ok=True)
        os.chdir(NAME[:250])
    file = os.open(b"libtorch" + NAME, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file, 4096)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for number in range(65_000):
        # Two that differ in what they allow never become one.
        if libc.mmap(None, 4096, 1 + number % 2 * 2, 1, file, 0) in (None, 2**64 - 1):
            break


def be_many(count: int = 2_000) -> None:
    """Thousands of processes and threads, and some that come and go."""
    for _ in range(count):
        if os.fork() == 0:
            signal.pause()
            os._exit(0)
    if os.fork() == 0:
        while True:
            if os.fork() == 0:
                os._exit(0)
            os.wait()
            time.sleep(0.001)
    threading.stack_size(65536)
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()


def connect(count: int = 900) -> None:
    """Connect again and again, say something, never read, and let the oldest go."""
    held: list[socket.socket] = []
    while True:
        door = socket.socket(socket.AF_UNIX)
        door.settimeout(0.5)
        try:
            door.connect(SOCKET)
            door.send(os.urandom(1000))
        except OSError:
            time.sleep(0.001)
        held.append(door)
        if len(held) > count:
            held.pop(0).close()


def spoil(count: int = 100_000) -> None:
    """Put whatever can be there where the ranks tell how they do, by turns; and a hundred thousand files beside it."""
    os.chdir(os.environ["RUNTIME_DIRECTORY"])
    for number in range(1, count):
        os.close(os.open(f"rank-{number}.json", os.O_WRONLY | os.O_CREAT))

    def sparse(name: str) -> None:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT))
        os.truncate(name, 2**40)

    def cut(name: str) -> None:
        file = os.open(name, os.O_RDWR | os.O_CREAT)
        for length in range(5_000):
            os.pwrite(file, os.urandom(4096), 0)
            os.ftruncate(file, length)
        os.close(file)

    def link(name: str) -> None:
        os.symlink("/dev/zero", name)

    for make in itertools.cycle((os.mkfifo, link, sparse, cut, os.mkdir)):
        for name in ("progress", "rank-0.json"):
            try:
                os.rename(name, f"old-{name}")
            except OSError:
                pass
            make(name)
        for name in ("old-progress", "old-rank-0.json"):
            try:
                os.rmdir(name) if os.path.isdir(name) else os.unlink(name)
            except OSError:
                pass
        time.sleep(0.3)


def train() -> None:
    """Make ten steps a second, and tell them as a rank does."""
    from torchpar.contract.job import parse_job_environment
    from torchpar.runtime.patches.progress import Meter

    settings = parse_job_environment(os.environ)
    rank = settings.rank(0) if settings else None
    assert rank
    meter = Meter(None, rank)
    while True:
        meter.step(meter)
        time.sleep(0.1)


def attempts(sibling: str, pid: int) -> dict[str, str]:
    """What comes of each thing that a job may try on the host, on torchpar and on another service."""
    libc = ctypes.CDLL(None, use_errno=True)

    def read_memory() -> object:
        return open(f"/proc/{pid}/environ", "rb").read()

    def have_rights_by_a_setuid_program() -> None:
        if libc.prctl(39, 0, 0, 0, 0):  # PR_GET_NO_NEW_PRIVS
            raise OSError(errno.EPERM, "")

    def trace() -> object:
        if libc.ptrace(16, pid, 0, 0):  # PTRACE_ATTACH
            raise OSError(ctypes.get_errno(), "")
        return libc.ptrace(17, pid, 0, 0)

    tries: dict[str, Any] = {
        "write the conf": lambda: open("/etc/torchpar.conf", "a"),
        "add to the conf": lambda: open("/etc/x.conf", "w"),
        "write the store": lambda: open("/var/lib/torchpar/active/plan.json", "a"),
        "write another service's state": lambda: open(f"/var/lib/torchpar/train/{sibling}/x", "w"),
        "see another service's sockets": lambda: os.listdir(f"{JOBS}/torchpar-train@{sibling}"),
        "tell how another service does": lambda: open(f"{JOBS}/torchpar-train@{sibling}/progress", "a"),
        "write in /usr": lambda: open("/usr/lib/torchpar/x", "w"),
        "read another user's processes": lambda: os.listdir("/proc/1"),
        "ask torchpard": lambda: socket.socket(socket.AF_UNIX).connect(SOCKET),
        "ask torchpard as root does": lambda: socket.socket(socket.AF_UNIX).connect("/run/torchpar/root.sock"),
        "have a file with another's rights": lambda: os.chmod(os.open("x", os.O_CREAT), 0o4755),
        "have rights by a setuid program": have_rights_by_a_setuid_program,
        "make a namespace": lambda: libc.unshare(0x10000000) and (_ for _ in ()).throw(OSError(ctypes.get_errno(), "")),
        "signal another service": lambda: os.kill(pid, 0),
        "read another service's variables": read_memory,
        "trace another service": trace,
    }
    found = {}
    for what, attempt in tries.items():
        try:
            attempt()
            found[what] = "done"
        except OSError as error:
            found[what] = os.strerror(error.errno or 0)
    return found


def main() -> None:
    """Do what the first argument says."""
    what, *arguments = sys.argv[1:]
    if what == "long":
        if not arguments:
            variables = {b"V%d" % number: NAME * 500 for number in range(7)}
            os.execve(sys.executable, [sys.executable, __file__, what, NAME * 400], {**os.environb, **variables})
        say_what_is_read()
    elif what == "many":
        be_many()
    elif what == "flood":
        for work in (connect, connect, spoil):
            threading.Thread(target=work, daemon=True).start()
    elif what == "good":
        threading.Thread(target=train, daemon=True).start()
    elif what == "tries":
        with open("/srv/sibling", encoding="ascii") as file:
            sibling, pid = file.read().split()
        print(json.dumps(attempts(sibling, int(pid))), flush=True)
    print("ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()

"""A job that died by the malloc that torchpar preloads runs once more without it; see torchpar-runtime(7).

/usr/lib/torchpar/stopped, the ExecStopPost= of the unit, sees how a job has died and leaves a note in its cache
directory. The next start reads it here. What a script's last traceback says of a library or of a process that died is
left for that command in the unit's runtime directory.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator

from torchpar.contract.journal import Priority, say
from torchpar.contract.preload import GLIBC_THRESHOLDS, VARIABLE, WITHOUT, preloaded
from torchpar.runtime.start.refusal import section

NOTE = "torchpar-preload"  # in CACHE_DIRECTORY: "without" or "with", the preload, and why, a line each
CAUSE = "died-of"  # in RUNTIME_DIRECTORY
SIZE = 4096  # of a note at the most
ERRORS = 20  # of a chain of exceptions

# What the dynamic loader, torch.multiprocessing, a DataLoader and subprocess say in the last line of a traceback.
_CAUSES = re.compile(
    r"version `(?:GLIBCXX|CXXABI)_[\w.]{1,30}' not found"
    r"|signal: (?:Aborted|Segmentation fault|Bus error|Illegal instruction|Floating point exception)"
    r"|(?:terminated with signal |died with <Signals\.)SIG(?:ABRT|SEGV|BUS|ILL|FPE)"
)


def start_without() -> None:
    """Executes this interpreter anew without the preload, where the note says so. Else it returns."""
    preload = preloaded(os.environ)
    state, of, why = read_note(os.path.join(folder("CACHE_DIRECTORY"), NOTE))
    if not preload or (state, of) != ("without", preload):
        return
    environment = {**GLIBC_THRESHOLDS, **os.environ, WITHOUT: why}
    del environment["LD_PRELOAD"]
    say(
        f"its last start with {preload} preloaded failed ({why}), so it runs with glibc's malloc now; {cure()}",
        Priority.WARNING,
    )
    try:
        with open("/proc/self/cmdline", "rb") as file:
            command = file.read().split(b"\0")[:-1]
        os.execve(sys.executable, command, environment)
    except OSError as error:
        say(f"{sys.executable}: cannot be executed without the preload: {error.strerror}", Priority.WARNING)


def read_note(path: str) -> tuple[str, str, str]:
    """Reads the three lines of a note, empty if it is none. Any process of the service's user can write there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            data = os.read(descriptor, SIZE) if regular else b""
        finally:
            os.close(descriptor)
    except OSError:
        return "", "", ""
    state, of, why = [*os.fsdecode(data).split("\n"), "", "", ""][:3]
    return state, of, "".join(letter for letter in why[:200] if letter.isprintable())


def keep_cause(error: BaseException) -> None:
    """Leaves why the script has come to its end where the preload may be why, and says so."""
    if VARIABLE not in os.environ:
        return
    found = next((match for text in texts(error) if (match := _CAUSES.search(text))), None)
    if found is None:
        return
    if preload := preloaded(os.environ):
        say(f"{found[0]}: {preload} is preloaded and may be why; {cure()}", Priority.WARNING)
    if runtime := folder("RUNTIME_DIRECTORY"):
        with open(os.path.join(runtime, CAUSE), "w", encoding="ascii") as file:
            file.write(f"{found[0]}\n")


def texts(error: BaseException | None) -> Iterator[str]:
    """Yields the texts of an exception and of those that led to it."""
    for _ in range(ERRORS):
        if error is None:
            return
        yield str(error)
        error = error.__cause__ or error.__context__


def cure() -> str:
    """Returns the advice that leaves the preload out for good."""
    declared = section()
    where = f"in {declared} of torchpar.conf" if declared else "(torchpar run --set Allocator=glibc)"
    return f"Allocator=glibc {where} leaves it out for good"


def folder(variable: str) -> str:
    """Returns the service's own folder of a kind, "" where there is none; systemd separates several by colons."""
    return os.environ.get(variable, "").partition(":")[0]

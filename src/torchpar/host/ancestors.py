"""The programs above a process: of a scheduler's job, its daemon is one of them."""

from __future__ import annotations

from torchpar.host.proc import ProcReader, TooLateError, TooLongError

_SECONDS = 2.0
# More are no chain of programs that somebody has started.
_MOST = 1000


def is_below_others_alone(program: str, pid: int, root: str = "/proc") -> bool:
    """Says whether none of the programs above a process, up to PID 1, is this one; not where any of them is hidden.

    It is known by its name or its command line, as it may be run from a file without a name.
    """
    proc = ProcReader(_SECONDS, root)
    wanted = program.encode()
    try:
        for _ in range(_MOST):
            name, _, fields = proc.read(f"{pid}/stat").rpartition(b")")
            if wanted in name or wanted in proc.start(f"{pid}/cmdline", 200):
                return False
            if pid == 1:
                return True
            pid = int(fields.split()[1])
    except (OSError, ValueError, IndexError, TooLateError, TooLongError):
        pass
    return False

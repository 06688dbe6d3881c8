"""Runs a job as a transient unit, from a terminal: output streams, Ctrl-C reaches it, its exit status comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from torchpar.contract.errors import SystemdError
from torchpar.host.program import run

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PAUSE = 0.05


def run_transient(unit: str, argv: Sequence[str], started: Callable[[], None]) -> tuple[int, str]:
    """Runs systemd-run's command and waits for the job; calls `started` when the unit runs or has failed to.

    Returns the exit status as a shell gives it (128 + signal for a job that was killed), and what else a person should
    know, or "". The first Ctrl-C is an interrupt of the script, as without a unit, the second one stops the unit; so
    does the end of this process. Raises SystemdError when there is no systemd-run.
    """
    with _asked() as asked:
        try:
            # In a session of its own: Ctrl-C is for the job, and systemd-run must stay to tell how that ended.
            process = subprocess.Popen(argv, start_new_session=True)
        except OSError as error:
            raise SystemdError(f"{argv[0]}: {error.strerror}") from None
        interrupts, begun = 0, False
        while process.poll() is None:
            number = asked.pop(0) if asked else None
            if number == signal.SIGINT:
                interrupts += 1
                if interrupts == 1:
                    run(["systemctl", "kill", "--kill-who=main", "--signal=SIGINT", unit], apart=True)
                else:
                    run(["systemctl", "stop", "--no-block", unit], apart=True)
            elif number is not None:
                run(["systemctl", "stop", unit], apart=True)
                process.wait()
                _outcome(unit, 1)
                return 128 + number, ""
            elif not begun and _has_begun(unit):
                begun = True
                started()
            else:
                time.sleep(_PAUSE)
        if not begun:
            started()
        return _outcome(unit, process.returncode)


def _has_begun(unit: str) -> bool:
    """Says whether the unit runs, or has failed to."""
    return run(["systemctl", "is-active", unit], apart=True).stdout.strip() in ("active", "failed", "deactivating")


def _outcome(unit: str, status: int) -> tuple[int, str]:
    """Returns a job's exit status and the reason, by its unit: it stays until reset, and says more than systemd-run."""
    if status == 0:
        return 0, ""
    names = "ExecMainCode,ExecMainStatus,Result,LoadState"
    shown = run(["systemctl", "show", f"--property={names}", unit], apart=True).stdout
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    run(["systemctl", "reset-failed", unit], apart=True)
    number, result = int(values.get("ExecMainStatus", "0") or 0), values.get("Result", "")
    if values.get("ExecMainCode") in ("2", "3"):  # CLD_KILLED, CLD_DUMPED
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            why = " for want of memory" if result == "oom-kill" else ""
            return 128 + number, f"the job was killed by {name}{why}"
    if 200 <= number <= 243 and result == "exit-code":
        return number, f"systemd could not start the job (status {number}); see: journalctl -u {unit}"
    return status, ""


@contextlib.contextmanager
def _asked() -> Iterator[list[int]]:
    """Collects the signals that come, for code that can act on them: none interrupts what is done about another.

    So no job outlives its terminal unnoticed, however often and whenever somebody presses Ctrl-C.
    """
    asked: list[int] = []
    before = [signal.signal(number, lambda number, frame: asked.append(number)) for number in _SIGNALS]
    try:
        yield asked
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def private_file(path: str, text: str) -> Iterator[Callable[[], None]]:
    """Makes a file that only root can read, until the yielded function is called, or the end. Raises SystemdError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise SystemdError(f"{path}: {error.strerror}") from None

    def remove() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    try:
        yield remove
    finally:
        remove()

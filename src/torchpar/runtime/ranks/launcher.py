"""Starts the ranks of a job, if there is something to run, and ends as they end.

It is the main process of its unit. `torchrun` knows torch's agent, and what that does when the service is stopped.
"""

from __future__ import annotations

import os
import sys

from torchpar.contract.errors import ExitStatus, JobSettingsError, RendezvousError
from torchpar.contract.job import JobSettings, parse_job_environment
from torchpar.contract.journal import Priority, say
from torchpar.runtime.ranks.rendezvous import arguments
from torchpar.runtime.start.refusal import refusal

USAGE = "usage: launch.py -- SCRIPT [ARGUMENT...]\n       launch.py -m MODULE [ARGUMENT...]\n"


def main(run: str) -> int:
    """Runs what sys.argv names as several ranks, each by the file `run`; returns the exit status."""
    if len(sys.argv) < 3 or sys.argv[1] not in ("--", "-m"):
        sys.stderr.write(USAGE)
        return ExitStatus.USAGE
    try:
        settings = parse_job_environment(os.environ)
    except JobSettingsError as error:
        say(str(error), Priority.ERROR)
        return ExitStatus.CONFIG
    if settings is None:
        say(
            "TORCHPAR_JOB is not set: launch.py is what the unit of a [Train] service with several ranks starts",
            Priority.ERROR,
        )
        return ExitStatus.CONFIG
    option, what = sys.argv[1:3]
    if option == "--" and (why := unreadable(what)):
        say(refusal(os.path.abspath(what), why, "Script="), Priority.ERROR)
        return ExitStatus.CONFIG
    return launch(settings, run)


def launch(settings: JobSettings, run: str) -> int:
    """Starts the ranks and stays until all have ended; returns the exit status."""
    try:
        import torch.distributed
    except ImportError as error:
        say(refusal(sys.executable, f"this Python cannot import torch: {error}", "Python="), Priority.ERROR)
        return ExitStatus.CONFIG
    if not torch.distributed.is_available():
        say(
            refusal(sys.executable, f"its torch {torch.__version__} is built without torch.distributed", "Python="),
            Priority.ERROR,
        )
        return ExitStatus.CONFIG
    from torchpar.runtime.ranks import torchrun

    try:
        flags, environment = arguments(settings)
    except RendezvousError as error:
        say(str(error), Priority.ERROR)
        return error.exit_status
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    flags = [*flags, f"--nproc-per-node={len(settings.ranks)}", f"--max-restarts={settings.max_restarts}"]
    return torchrun.run(flags, [*interpreter(), run, *sys.argv[1:]])


def interpreter() -> list[str]:
    """Returns this interpreter's command line with its flags, which torchrun would lose: -O, -X, -W, -I and so on."""
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

    # That knows all but these two, whose meaning a child would get from the environment only.
    plain = [f"-{letter}" for letter, flag in (("q", "quiet"), ("i", "interactive")) if getattr(sys.flags, flag)]
    return [sys.executable, *_args_from_interpreter_flags(), *plain]


def unreadable(script: str) -> str | None:
    """Returns the reason why a script cannot be run, None if it can; told once here rather than by every rank."""
    try:
        if not os.path.isdir(script):
            with open(script, "rb"):
                pass
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None

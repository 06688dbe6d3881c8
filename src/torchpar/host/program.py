"""Runs another program and waits for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence


def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    apart: bool = False,
    seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program with its messages in English; its exit status, stdout and stderr are in what is returned.

    `apart` keeps it from the terminal's signals. One that has not ended after so many `seconds` is killed, with status
    124 as by timeout(1). A program that is not installed gives status 127 and says so on
    stderr, as in a shell.
    """
    try:
        return subprocess.run(
            argv,
            env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            start_new_session=apart,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"{argv[0]}: has not ended within {seconds:g} s")
    except FileNotFoundError:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: not found")


def run_shown(command: str) -> int:
    """Runs a line in a shell with its output on this one's stderr, so that stdout stays the answer; returns its exit
    status."""
    return subprocess.run(
        ["/bin/sh", "-c", command],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=2,
        check=False,
    ).returncode

"""A job as a transient unit, with a systemctl that only keeps what it is asked: what the terminal's signals do."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from torchpar.host.transient import run_transient

pytestmark = pytest.mark.subprocess

# While it is busy with a request, the next signal comes to the process that waits for it.
SYSTEMCTL = """#!/bin/sh
[ "$1" = is-active ] && { echo active; exit 0; }
echo "$*" >>"$FOLDER/requests"
case "$1 $2" in
"kill --kill-who=main") kill -TERM "$PPID"; sleep 0.3 ;;
"stop a.service") kill -INT "$PPID"; kill -HUP "$PPID"; sleep 0.3; touch "$FOLDER/stopped" ;;
esac
"""
SYSTEMD_RUN = """#!/bin/sh
while ! [ -e "$FOLDER/stopped" ]; do sleep 0.05; done
exit 1
"""


def test_a_signal_that_comes_while_another_is_acted_on_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is stopped first, and the exit status is that of the signal that did it."""
    for name, text in (("systemctl", SYSTEMCTL), ("systemd-run", SYSTEMD_RUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    started: list[bool] = []

    def start() -> None:
        started.append(True)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    assert run_transient("a.service", [str(tmp_path / "systemd-run")], start) == (128 + signal.SIGTERM, "")
    assert started == [True] and (tmp_path / "stopped").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    requests = (tmp_path / "requests").read_text().splitlines()
    assert requests[:2] == ["kill --kill-who=main --signal=SIGINT a.service", "stop a.service"]

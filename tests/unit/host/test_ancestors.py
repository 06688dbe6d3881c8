"""Whose job a process is: by the programs above it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchpar.host.ancestors import is_below_others_alone

SYSTEMD = {1: (0, "systemd", "/sbin/init")}
STEP = {40: (1, "slurmstepd", "slurmstepd: [7.0]"), 50: (40, "odd) (name", "bash")}


@pytest.mark.parametrize(
    ("processes", "others_alone"),
    [
        (SYSTEMD | STEP, False),
        (SYSTEMD | STEP | {40: (1, "9", "slurmstepd: [7.0]")}, False),
        # tmux was begun in a step, and has outlived it.
        (SYSTEMD | {40: (1, "tmux: server", "tmux"), 50: (40, "bash", "-bash")}, True),
        # The parent is in another PID namespace, is hidden, or is gone.
        ({50: (0, "bash", "bash")}, False),
        ({50: (40, "bash", "bash")}, False),
        ({}, False),
        ({50: (50, "loop", "loop")}, False),
    ],
    ids=["step", "step without a file", "left over", "namespace", "hidden", "gone", "endless"],
)
def test_a_process_is_left_over_only_where_all_above_it_are_known(
    tmp_path: Path, processes: dict[int, tuple[int, str, str]], others_alone: bool
) -> None:
    """Else it may be the job's all the same."""
    for pid, (parent, name, command) in processes.items():
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "stat").write_text(f"{pid} ({name}) S {parent} 0 0\n")
        (folder / "cmdline").write_text(command.replace(" ", "\0"))
    assert is_below_others_alone("slurmstepd", 50, str(tmp_path)) is others_alone


def test_this_process_is_below_no_program_that_nobody_has() -> None:
    """With the /proc of this host."""
    assert not is_below_others_alone("py", os.getpid())

"""Why a unit failed: the words for what systemd says, and the line of its own that says most."""

from __future__ import annotations

from typing import Any

import pytest

from torchpar.verify.failure import find_last_words, misplaced_by, why_failed

TRACEBACK = ["Traceback (most recent call last):", '  File "/a.py", line 1, in <module>', "    f()"]
RANK = "[rank0]: "
UNIT, PROGRAMS = "torchpar-train@a.service", ("/usr/bin/python3", "/usr/lib/torchpar/stopped")
STEP = "Failed at step EXEC spawning"
LAUNCHER = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "


@pytest.mark.parametrize(
    ("properties", "why"),
    [
        ({"Result": "timeout"}, "it took too long to start or stop"),
        ({"Result": "oom-kill", "ExecMainCode": 2, "ExecMainStatus": 9}, "killed for want of memory"),
        ({"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 3}, "exit status 3"),
        ({"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 203}, "its program cannot be run"),
        ({"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 216}, "its group does not exist"),
        ({"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 139}, "exit status 139 (SIGSEGV)"),
        ({"Result": "signal", "ExecMainCode": 2, "ExecMainStatus": 9}, "killed by SIGKILL"),
        ({"Result": "core-dump", "ExecMainCode": 3, "ExecMainStatus": 11}, "killed by SIGSEGV"),
        ({"Result": "signal", "ExecMainCode": 2, "ExecMainStatus": 40}, "killed by signal 40"),
        ({"Result": "something-new"}, "something-new"),
        (
            {"Result": "exit-code", "ExecMainPID": 0, "ExecStartPre": [["/x", [], False, 0, 0, 0, 0, 7, 1, 242]]},
            "its memory policy cannot be set (NUMA policy)",
        ),
        ({"Result": "signal", "ExecStartPre": [["/x", [], False, 0, 0, 0, 0, 7, 2, 15]]}, "killed by SIGTERM"),
    ],
)
def test_a_failure_is_told_in_words(properties: dict[str, Any], why: str) -> None:
    """A signal by its name, and not as an exit status; by the command that failed."""
    assert why_failed({"ExecMainPID": 7, "ExecMainCode": 0, "ExecMainStatus": 0, **properties}) == why


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], None),
        (["", "  "], None),
        (["one", "torchpar: no [Train x]"], "torchpar: no [Train x]"),
        ([*TRACEBACK, "ValueError: bad", "saving nothing"], "ValueError: bad"),
        ([*TRACEBACK, "ValueError: a", "", "During handling", "", *TRACEBACK, "KeyError: 'b'"], "KeyError: 'b'"),
        ([*(f"{RANK}{line}" for line in [*TRACEBACK, "ValueError: bad"]), *TRACEBACK, LAUNCHER], "ValueError: bad"),
        ([*TRACEBACK, "MemoryError: " + "x" * 999], "MemoryError: " + "x" * 287 + "..."),
        ([*TRACEBACK, "E: \x1b[31m"], r"E: \x1b[31m"),
        ([TRACEBACK[0]], TRACEBACK[0]),
        ([*TRACEBACK, LAUNCHER], LAUNCHER.strip()),
        ([f"{UNIT}: Failed at step CHDIR spawning {each}: Not a directory" for each in PROGRAMS], "Not a directory"),
        (
            [
                line
                for each in PROGRAMS
                for line in (
                    f"{UNIT}: Failed to set up mount namespacing: /nope: No such file or directory",
                    f"{UNIT}: Failed at step NAMESPACE spawning {each}: No such file or directory",
                )
            ],
            "Failed to set up mount namespacing: /nope: No such file or directory",
        ),
        (["epoch 3: nan, giving up", f"{UNIT}: {STEP} {PROGRAMS[1]}: Permission denied"], "epoch 3: nan, giving up"),
        (
            ["epoch 3: nan", f"{UNIT}: Failed to set up x: No such y", f"{UNIT}: {STEP} {PROGRAMS[1]}: No such y"],
            "epoch 3: nan",
        ),
        (["looked", *(f"{UNIT}: {STEP} {each}: Permission denied" for each in PROGRAMS)], "Permission denied"),
        ([f"{UNIT}: {STEP} {PROGRAMS[1]}: Permission denied"], "Permission denied"),
        ([f"{UNIT}: Failed to set up x: No such y"], "Failed to set up x: No such y"),
    ],
)
def test_the_line_that_says_most_is_the_last_exceptions(lines: list[str], said: str | None) -> None:
    """That of a rank, not of the launcher that tells of it; one line, escaped and not endless. Of systemd's, not that
    which names the programs that it did not come to."""
    assert find_last_words(lines) == said


@pytest.mark.parametrize(
    ("properties", "status"),
    [
        ({"ExecMainStatus": 215}, 215),
        ({"ExecMainStatus": 242}, 242),
        ({"ExecMainStatus": 0, "ExecMainPID": 0, "ExecStartPre": [["/x", [], False, 0, 0, 0, 0, 7, 1, 215]]}, 215),
        ({"ExecMainStatus": 203}, None),
        ({"ExecMainStatus": 215, "ActiveState": "active"}, None),
        ({"ExecMainStatus": 215, "Result": "signal"}, None),
        # It ran, and ended so itself: sys.exit(-41), sys.exit(-14).
        ({"ExecMainStatus": 215, "ActiveEnterTimestampMonotonic": 210}, None),
        ({"ExecMainStatus": 242, "ActiveEnterTimestampMonotonic": 200}, None),
        # Its run before this one did.
        ({"ExecMainStatus": 242, "ActiveEnterTimestampMonotonic": 199}, 242),
    ],
)
def test_a_start_that_could_not_get_its_place_is_known_by_systemds_status(
    properties: dict[str, Any], status: int | None
) -> None:
    """One that has begun has it, whatever it ends with."""
    ended = {"ActiveState": "failed", "Result": "exit-code", "ExecMainPID": 7, "ExecMainCode": 1}
    ended |= {"InactiveExitTimestampMonotonic": 200, "ActiveEnterTimestampMonotonic": 0}
    assert misplaced_by({**ended, **properties}) == status

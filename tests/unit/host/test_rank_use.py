"""What one rank uses, by what the kernel says: only of a process that is the service's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchpar.host.rank_use import read_rank_use

UNIT = "torchpar-train@a.service"
STAT = "7 (a ) b) S " + " ".join(["0"] * 10 + ["250", "50"] + ["0"] * 8 + ["100"] + ["0"] * 20)


def put(folder: Path, group: str, stat: str = STAT) -> str:
    process = folder / "7"
    process.mkdir()
    (process / "cgroup").write_text(f"0::{group}\n")
    (process / "stat").write_text(stat)
    (process / "status").write_text("Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n")
    return str(folder)


def test_cpu_time_memory_and_cpus_are_read(tmp_path: Path) -> None:
    use = read_rank_use(7, UNIT, put(tmp_path, f"/torchpar.slice/{UNIT}"))
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert use and (use.cpu_seconds, use.memory_bytes, use.cpus) == (300 / ticks, 100 * page, "0-3")


@pytest.mark.parametrize("group", ["/system.slice/ssh.service", f"/torchpar.slice/x{UNIT}", f"/{UNIT}x"])
def test_a_process_of_another_unit_is_none(tmp_path: Path, group: str) -> None:
    assert read_rank_use(7, UNIT, put(tmp_path, group)) is None


def test_what_is_gone_or_no_number_is_none(tmp_path: Path) -> None:
    assert read_rank_use(7, UNIT, str(tmp_path)) is None
    assert read_rank_use(7, UNIT, put(tmp_path, f"/{UNIT}", "7 (x) S")) is None

"""What a control group has used, from the files of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchpar.host import processes
from torchpar.host.usage import CpuStat, Use, parse_cpu_stat, read_use


@pytest.mark.parametrize(
    ("text", "stat"),
    [
        ("usage_usec 1500000\nuser_usec 1\nnr_periods 9\nnr_throttled 4\n", CpuStat(1.5, 4)),
        ("usage_usec 7\n", CpuStat(7e-6, None)),
        ("nr_throttled x\nusage_usec\n", CpuStat(None, None)),
        (f"usage_usec {'9' * 400}\nnr_throttled {'9' * 5000}\n", CpuStat(None, None)),
        ("", CpuStat(None, None)),
    ],
)
def test_cpu_stat_has_numbers_or_nothing(text: str, stat: CpuStat) -> None:
    """Without the cpu controller there are no periods."""
    assert parse_cpu_stat(text) == stat


def test_a_control_group_tells_its_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has gone tells nothing; memory is counted where the controller is."""
    monkeypatch.setattr(processes, "_HIERARCHIES", (str(tmp_path),))
    (tmp_path / "a").mkdir()
    assert read_use("/a") is None and read_use("/b") is None and read_use("") is None
    (tmp_path / "a/cpu.stat").write_text("usage_usec 2000000\n")
    assert read_use("/a") == Use(2.0, None)
    (tmp_path / "a/memory.current").write_text("4096\n")
    assert read_use("/a") == Use(2.0, 4096)

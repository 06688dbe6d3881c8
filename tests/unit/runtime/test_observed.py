"""What a process reports of itself once torch is imported."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from torchpar.contract.cpulist import CpuSet
from torchpar.runtime.observed import observe


@pytest.mark.parametrize(
    ("told", "size"), [(None, None), ("8", 8), ("", None), ("-1", None), ("x", None), ("9" * 5000, None)]
)
def test_how_many_ranks_there_are_on_all_hosts_is_what_torchrun_says(
    monkeypatch: pytest.MonkeyPatch, told: str | None, size: int | None
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if told is not None:
        monkeypatch.setenv("WORLD_SIZE", told)
    torch = SimpleNamespace(__version__="2", get_num_threads=lambda: 3, get_num_interop_threads=lambda: 1)
    report = observe(torch, 1)
    assert (report.world_size, report.local_rank, report.threads) == (size, 1, 3)
    assert report.cpus == str(CpuSet(os.sched_getaffinity(0)))

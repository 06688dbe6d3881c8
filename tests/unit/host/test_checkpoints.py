"""When a job has saved last, by the files in its folder: whatever else is there."""

from __future__ import annotations

import os
from pathlib import Path

from torchpar.host.checkpoints import Checkpoints


def put(path: Path, time: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    os.utime(path, (time, time))


def test_the_newest_checkpoint_counts_and_nothing_else(tmp_path: Path) -> None:
    assert Checkpoints().newest(str(tmp_path)) is None
    put(tmp_path / "train.log", 9000)
    put(tmp_path / "runs/events.out.tfevents", 9000)
    assert Checkpoints().newest(str(tmp_path)) is None
    put(tmp_path / "last.pt", 1000)
    put(tmp_path / "checkpoints/step-20/__0_0.distcp", 2000)
    put(tmp_path / "checkpoints/step-20/.metadata", 2001)
    put(tmp_path / "a/b/c/too-deep.pt", 9000)
    assert Checkpoints().newest(str(tmp_path)) == 2001


def test_no_link_leads_elsewhere_and_no_folder_is_read_for_ever(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/x.pt", 9000)
    job = tmp_path / "job"
    put(job / "y.pt", 1000)
    (job / "link.pt").symlink_to(tmp_path / "elsewhere/x.pt")
    (job / "folder").symlink_to(tmp_path / "elsewhere")
    (job / "loop").symlink_to(job)
    os.mkfifo(job / "z.pt")
    assert Checkpoints().newest(str(job)) == 1000
    for number in range(3000):
        os.mkdir(job / f"many-{number}")
    assert Checkpoints().newest(str(job)) in (None, 1000)


def test_a_folder_that_is_not_there_has_none() -> None:
    assert Checkpoints().newest("/nowhere") is None

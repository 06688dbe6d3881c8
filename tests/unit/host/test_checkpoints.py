"""When a job has saved last, by the files in its folder: whatever else is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchpar.host import checkpoints
from torchpar.host.checkpoints import Checkpoint, Checkpoints


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host a thread may begin late."""
    monkeypatch.setattr(checkpoints, "_SECONDS", 60.0)


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
    assert Checkpoints().newest(str(tmp_path)) == Checkpoint(2001, complete=True)


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ({".metadata": 2001}, True),
        ({".metadata": 2000}, True),
        # By the clock of another host.
        ({".metadata": 1999.5}, True),
        ({}, False),
        # Written over one that was whole.
        ({".metadata": 1500}, False),
        ({".metadata.tmp": 2001}, False),
        # Without collectives.
        ({"__0.metadata": 1990, "__1.metadata": 2001}, True),
        ({"__0.metadata": 1500, "__1.metadata": 1500}, False),
        ({"../../last.pt": 3000}, None),
    ],
)
def test_a_checkpoint_of_many_files_is_whole_once_its_last_one_is_there(
    tmp_path: Path, files: dict[str, float], complete: bool | None
) -> None:
    """A single file does not say whether all of it is there."""
    folder = tmp_path / "checkpoints/step-20"
    put(folder / "__0_0.distcp", 1990)
    put(folder / "__1_0.distcp", 2000)
    put(tmp_path / "checkpoints/step-10/.metadata", 1000)
    for name, time in files.items():
        put(folder / name, time)
    found = Checkpoints().newest(str(tmp_path))
    assert found and found.complete is complete


def test_where_no_checkpoint_has_metadata_none_is_called_incomplete(tmp_path: Path) -> None:
    """Each host may write its own disk, and one of them the metadata."""
    put(tmp_path / "step-10/__1_0.distcp", 1000)
    put(tmp_path / "step-20/__1_0.distcp", 2000)
    assert Checkpoints().newest(str(tmp_path)) == Checkpoint(2000, complete=None)


def test_no_link_leads_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/x.pt", 9000)
    job = tmp_path / "job"
    put(job / "y.pt", 1000)
    (job / "link.pt").symlink_to(tmp_path / "elsewhere/x.pt")
    (job / "folder").symlink_to(tmp_path / "elsewhere")
    (job / "loop").symlink_to(job)
    os.mkfifo(job / "z.pt")
    assert Checkpoints().newest(str(job)) == Checkpoint(1000)


def test_of_a_folder_with_too_much_in_it_nothing_is_said(tmp_path: Path) -> None:
    """The newest of those that were seen may be older than the newest."""
    put(tmp_path / "y.pt", 1000)
    for number in range(1999):
        os.mkdir(tmp_path / f"many-{number}")
    assert Checkpoints().newest(str(tmp_path)) == Checkpoint(1000)
    os.mkdir(tmp_path / "one-more")
    assert Checkpoints().newest(str(tmp_path)) is None


def test_a_folder_that_is_not_there_has_none() -> None:
    assert Checkpoints().newest("/nowhere") is None

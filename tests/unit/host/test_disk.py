"""What is read of file systems for doctor."""

from __future__ import annotations

import os
from pathlib import Path

from torchpar.host.disk import Disks


def test_the_room_is_that_of_the_file_system(tmp_path: Path) -> None:
    disk, told = Disks().read(str(tmp_path)), os.statvfs(tmp_path)
    assert disk is not None
    assert disk.size == told.f_blocks * told.f_frsize and 0 < disk.free <= disk.size and not disk.read_only


def test_a_folder_that_is_not_made_yet_will_be_on_the_file_system_above(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    disk = Disks().read(str(tmp_path))
    for path in ("a/b/c", "file/x", "a//"):
        found = Disks().read(f"{tmp_path}/{path}")
        assert disk and found and found.size == disk.size


def test_what_is_not_there_is_missing_and_what_cannot_be_told_is_not(tmp_path: Path) -> None:
    disks = Disks()
    (tmp_path / "file").touch()
    assert disks.is_missing(f"{tmp_path}/none") and disks.is_missing(f"{tmp_path}/file/x")
    assert disks.is_missing(f"{tmp_path}/file") is False
    assert disks.is_missing(f"{tmp_path}/{'x' * 300}") is None

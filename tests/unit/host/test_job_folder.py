"""Folders in which a service's user may put anything: what is read there, and that nothing holds whoever reads."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.contract.test_reports import FIRST, REPORT, later, written
from torchpar.contract.reports import RankProgress, make_rank_json, progress_bytes
from torchpar.host import job_folder
from torchpar.host.job_folder import is_idle, read_progress, read_rank_reports

F_SETSIG = 10  # <fcntl.h>; Python has it from 3.12 on
UNIT = "torchpar-train@a.service"
GOOD = written((FIRST, 0), (later(FIRST, 1), 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """That of the service."""
    made = tmp_path / "torchpar-train@a"
    made.mkdir()
    return made


def progress(folder: Path) -> tuple[RankProgress, ...]:
    return read_progress(UNIT, 16, str(folder.parent))


def ranks(folder: Path) -> list[object]:
    return list(read_rank_reports(UNIT, str(folder.parent)))


def test_what_ranks_have_written_is_read(folder: Path) -> None:
    """And nothing of a service that has no folder."""
    assert (progress(folder), ranks(folder)) == ((), [])
    (folder / "progress").write_bytes(GOOD)
    for name in ("rank-3.json", "rank-3.json.new", "rank-x.json"):
        (folder / name).write_text(make_rank_json(REPORT))
    (folder / "rank-4.json").write_text("{")
    assert (progress(folder), ranks(folder)) == ((RankProgress(FIRST, later(FIRST, 1)),), [REPORT])
    assert read_progress("torchpar-train@b.service", 16, str(folder.parent)) == ()
    assert list(read_rank_reports(UNIT, str(folder.parent / "none"))) == []


def lease(path: Path) -> None:
    """Whoever opens it would wait until its owner gives it up."""
    path.write_bytes(GOOD)
    file = os.open(path, os.O_RDWR)
    # What its owner is then told by; the usual one would end this process.
    fcntl.fcntl(file, F_SETSIG, signal.SIGURG)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door, contextlib.chdir(path.parent):
        door.bind(path.name)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to a good file": lambda path: path.symlink_to(path.with_name("good")),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder": Path.mkdir,
    "a socket": listen,
    "a lease": lease,
    "no rights": lambda path: path.touch(0),
    "a file of a terabyte": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_file_of_the_services_is_nothing(folder: Path, make: Callable[[Path], object]) -> None:
    """At once, whatever it is; no descriptor is left open."""
    (folder / "good").write_bytes(GOOD)
    make(folder / "progress")
    make(folder / "rank-0.json")
    before = len(os.listdir("/proc/self/fd"))
    assert (progress(folder), ranks(folder)) == ((), [])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_is_a_link_is_nothing(folder: Path) -> None:
    """Nor is one on the way, and no name leads out of the folder of all services."""
    (folder / "progress").write_bytes(GOOD)
    (folder.parent / "torchpar-train@b").symlink_to(folder)
    assert read_progress("torchpar-train@b.service", 1, str(folder.parent)) == ()
    for way in (f"../{folder.parent.name}/torchpar-train@a", "torchpar-train@b/.", str(folder)):
        assert read_progress(way, 1, str(folder.parent)) == ()


def test_what_is_mounted_there_is_not_entered() -> None:
    """A user's own file system may never answer."""
    assert os.path.ismount("/proc")
    with pytest.raises(OSError, match="Invalid cross-device link"), job_folder.held_folder("proc", "/"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_nothing(folder: Path) -> None:
    """The folder's owner is the service's user; root's own is believed."""
    (folder / "progress").write_bytes(GOOD)
    os.chown(folder, 5, 5)
    assert progress(folder)
    os.chown(folder / "progress", 6, 6)
    assert progress(folder) == ()
    os.chown(folder / "progress", 5, 5)
    assert progress(folder)


def test_a_file_that_is_cut_off_or_grows_meanwhile_is_read_as_far_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its size and the reading of it."""
    path, read, sizes = folder / "progress", os.pread, []

    def pread(descriptor: int, size: int, place: int) -> bytes:
        sizes.append(size)
        os.truncate(path, length)
        return read(descriptor, size, place)

    monkeypatch.setattr(job_folder.os, "pread", pread)
    for length in (0, 100, 200, 2**40):
        path.write_bytes(GOOD)
        assert len(progress(folder)) == (length >= 128)
    path.write_bytes(GOOD.ljust(2**23, b"\0"))
    assert progress(folder)
    assert sizes == [len(GOOD)] * 4 + [progress_bytes(16)]


def test_a_folder_of_a_million_files_holds_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it is has one name, and is read without a list."""
    (folder / "progress").write_bytes(GOOD)
    seen: list[object] = []

    @contextlib.contextmanager
    def endless(path: object) -> Iterator[Iterator[SimpleNamespace]]:
        yield (seen.append(path) or SimpleNamespace(name=f"{number}") for number in itertools.count())

    monkeypatch.setattr(job_folder.os, "scandir", endless)
    assert progress(folder) and seen == []
    assert ranks(folder) == [] and len(seen) < 100_000


def test_a_service_says_by_a_mark_that_it_is_idle_wherever_that_leads(tmp_path: Path) -> None:
    folder = tmp_path / "torchpar-infer@a"
    folder.mkdir()
    assert not is_idle("torchpar-infer@a.service", str(tmp_path))
    (folder / "idle").symlink_to("/nowhere")
    assert is_idle("torchpar-infer@a.service", str(tmp_path))
    assert not is_idle("torchpar-infer@b.service", str(tmp_path))

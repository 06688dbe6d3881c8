"""What is heard of folders, by a real kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from torchpar.daemon.changes import Changes

SERVICES, OTHERS, NOTHING = (True, False, frozenset()), (False, True, frozenset()), (False, False, frozenset())


class Host:
    """Folders of a host, and its CPUs."""

    def __init__(self, root: Path) -> None:
        for name in ("etc", "lib", "group"):
            (root / name).mkdir()
        self.etc, self.lib, self.group = root / "etc", root / "lib", root / "group"
        self.cpus = "0-3"
        folders = {str(self.etc): "torchpar.conf", str(self.etc / "torchpar.conf.d"): "", str(self.lib): ""}
        self.changes = Changes(folders, lambda: self.cpus)
        self.changes.watch_groups(str(self.group))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def replace(path: Path) -> None:
    path.with_name("other").write_text("")
    os.replace(path.with_name("other"), path)


@pytest.mark.parametrize(
    "change",
    [
        lambda host: (host.etc / "torchpar.conf").write_text(""),
        lambda host: replace(host.etc / "torchpar.conf"),
        lambda host: (host.etc / "torchpar.conf.d").mkdir(),
        lambda host: (host.etc / "torchpar.conf").symlink_to("/dev/null"),
        lambda host: (host.lib / "active").symlink_to("generations/1"),
    ],
)
def test_the_conf_and_the_store_are_heard(host: Host, change: Callable[[Host], object]) -> None:
    change(host)
    assert host.changes.take() == OTHERS
    assert host.changes.take() == NOTHING


def test_what_is_not_torchpars_is_not_heard(host: Host) -> None:
    (host.etc / "passwd").write_text("")
    (host.group / "user.slice").mkdir()
    assert host.changes.take() == NOTHING


def test_a_folder_that_comes_later_is_watched_from_then_on(host: Host) -> None:
    folder = host.etc / "torchpar.conf.d"
    for _ in range(2):
        folder.mkdir()
        host.changes.take()
        (folder / "10-a.conf").write_text("")
        assert host.changes.take() == OTHERS
        (folder / "10-a.conf").unlink()
        folder.rmdir()
        host.changes.take()


def test_services_that_start_and_end_are_heard_in_each_slice_that_comes(host: Host) -> None:
    group = host.group / "torchpar.slice"
    for _ in range(2):
        group.mkdir()
        assert host.changes.take() == SERVICES
        (group / "torchpar-train@a.service").mkdir()
        assert host.changes.take() == (True, False, {"torchpar-train@a.service"})
        (group / "torchpar-train@a.service").rmdir()
        assert host.changes.take() == SERVICES
        group.rmdir()
        host.changes.take()


def test_an_idle_service_that_is_watched_is_heard_when_it_is_so_no_longer(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "torchpar-infer@a"
    folder.mkdir()
    unit, jobs = "torchpar-infer@a.service", str(tmp_path)
    for end in ("unlink", "rename", "replace"):
        (folder / "idle").write_text("")
        for _ in range(2):
            host.changes.watch_idle([unit], jobs)
        replace(folder / "serving.json")
        assert host.changes.take() == NOTHING
        {
            "unlink": (folder / "idle").unlink,
            "rename": lambda: (folder / "idle").rename(folder / "busy"),
            "replace": lambda: replace(folder / "idle"),
        }[end]()
        assert host.changes.take() == (False, False, {unit})
        host.changes.watch_idle([], jobs)
        (folder / "idle").write_text("")
        host.changes.watch_idle([unit], jobs)
        host.changes.watch_idle([], jobs)
        (folder / "idle").unlink()
        assert host.changes.take() == NOTHING


def test_a_service_that_never_rests_in_its_folder_is_heard_once(host: Host, tmp_path: Path) -> None:
    """More than the kernel keeps is a change of everything, and a look at it: no job may have one after the other."""
    folder = tmp_path / "torchpar-infer@a"
    folder.mkdir()
    (folder / "idle").write_text("")
    unit = "torchpar-infer@a.service"
    host.changes.watch_idle([unit], str(tmp_path))
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for name, heard in (("torchpar.slice", frozenset[str]()), ("idle", frozenset({unit}))):
        # The kernel keeps what happens again and again once.
        for _ in range(limit // 2 + 10):
            for other in (name, "other"):
                (folder / other).write_text("")
                (folder / other).unlink()
        assert host.changes.take() == (False, False, heard)


def test_what_is_watched_no_longer_is_forgotten(host: Host) -> None:
    known = len(host.changes._watched)
    for _ in range(3):
        group = host.group / "torchpar.slice"
        group.mkdir()
        host.changes.take()
        group.rmdir()
        host.changes.take()
    assert len(host.changes._watched) == known


def test_more_than_the_kernel_keeps_is_a_change_of_everything(host: Host) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    name = host.lib / "file"
    for _ in range(limit // 2 + 10):
        name.write_text("")
        name.unlink()
    assert host.changes.take()[:2] == (True, True)


def test_other_cpus_are_seen_once(host: Host) -> None:
    assert not host.changes.has_host_changed()
    host.cpus = "0-7"
    assert host.changes.has_host_changed()
    assert not host.changes.has_host_changed()

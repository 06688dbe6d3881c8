"""Which files are the conf, in which order, and which are refused."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchpar.contract.errors import ConfigError
from torchpar.host.conf import ConfReader, is_place


def write(root: Path, *paths: str) -> None:
    """Make files that hold their own path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"# {path}\n")


def found(root: Path) -> list[str]:
    """The files in force, relative to the root."""
    return [str(path.relative_to(root)) for path in ConfReader().find(root)]


def test_what_the_admin_writes_comes_after_what_packages_ship(tmp_path: Path) -> None:
    """Later files win: the vendor's, the main file, then drop-ins by name whatever their directory."""
    write(
        tmp_path,
        "usr/lib/torchpar.conf.d/00-vendor.conf",
        "usr/lib/torchpar.conf.d/90-site.conf",
        "etc/torchpar.conf",
        "etc/torchpar.conf.d/50-b.conf",
        "run/torchpar.conf.d/40-a.conf",
        "usr/local/lib/torchpar.conf.d/60-c.conf",
        "etc/torchpar.conf.d/README",
    )
    assert found(tmp_path) == [
        "usr/lib/torchpar.conf.d/00-vendor.conf",
        "usr/lib/torchpar.conf.d/90-site.conf",
        "etc/torchpar.conf",
        "run/torchpar.conf.d/40-a.conf",
        "etc/torchpar.conf.d/50-b.conf",
        "usr/local/lib/torchpar.conf.d/60-c.conf",
    ]


def test_the_highest_main_file_and_the_highest_file_of_a_name_count(tmp_path: Path) -> None:
    """As systemd's own files."""
    write(tmp_path, "usr/lib/torchpar.conf", "run/torchpar.conf")
    write(tmp_path, "usr/lib/torchpar.conf.d/a.conf", "run/torchpar.conf.d/a.conf", "etc/torchpar.conf.d/a.conf")
    assert found(tmp_path) == ["run/torchpar.conf", "etc/torchpar.conf.d/a.conf"]


@pytest.mark.parametrize("mask", ["empty", "null"])
def test_an_empty_file_or_a_link_to_dev_null_masks(tmp_path: Path, mask: str) -> None:
    """The demo can be hidden without touching the package's file."""
    write(tmp_path, "usr/lib/torchpar.conf.d/00-vendor.conf", "etc/torchpar.conf.d/x.conf")
    path = tmp_path / "etc/torchpar.conf.d/00-vendor.conf"
    if mask == "empty":
        path.touch()
    else:
        path.symlink_to("/dev/null")
    assert found(tmp_path) == ["etc/torchpar.conf.d/x.conf"]


def test_no_file_at_all_is_an_empty_conf(tmp_path: Path) -> None:
    """A host without a conf has nothing to run, which is no error."""
    assert ConfReader().find(tmp_path) == ()


def test_every_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A directory and a dangling link in place of files."""
    (tmp_path / "etc/torchpar.conf").mkdir(parents=True)
    (tmp_path / "etc/torchpar.conf.d").mkdir()
    (tmp_path / "etc/torchpar.conf.d/a.conf").symlink_to("nowhere")
    with pytest.raises(ConfigError) as error:
        ConfReader().read(tmp_path, trusted=False)
    assert error.value.problems == (
        f"{tmp_path}/etc/torchpar.conf: is a folder, and only regular files are read",
        f"{tmp_path}/etc/torchpar.conf.d/a.conf: cannot be read: No such file or directory; it is a link, and what "
        "masks is one to /dev/null",
    )


def test_a_huge_file_is_no_conf(tmp_path: Path) -> None:
    """It would fill the daemon's memory."""
    path = tmp_path / "torchpar.conf"
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="larger than 1024 KiB"):
        ConfReader().read_files((path,), trusted=False)


def drop_in(root: Path, name: str) -> Path:
    """A path for a file of the conf."""
    path = root / "etc/torchpar.conf.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def refused(root: Path) -> tuple[str, ...]:
    """What is said of the conf below a root, without the folder's path."""
    with pytest.raises(ConfigError) as error:
        ConfReader().read(root, trusted=False)
    folder = f"{root}/etc/torchpar.conf.d/"
    assert all(problem.startswith(folder) for problem in error.value.problems)
    return tuple(problem.removeprefix(folder) for problem in error.value.problems)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Nothing waits for the other end of a pipe, and a terminal or /dev/zero is no conf, be it behind links."""
    os.mkfifo(drop_in(tmp_path, "10-pipe.conf"))
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(drop_in(tmp_path, "20-socket.conf")))
    drop_in(tmp_path, "30-zero.conf").symlink_to("/dev/zero")
    drop_in(tmp_path, "40-loop.conf").symlink_to("40-loop.conf")
    drop_in(tmp_path, "50-link.conf").symlink_to("10-pipe.conf")
    drop_in(tmp_path, "60-good.conf").write_text("[Train good]\nScript=/good.py\n")
    only = ", and only regular files are read"
    assert refused(tmp_path) == (
        f"10-pipe.conf: is a pipe (FIFO){only}",
        f"20-socket.conf: is a socket{only}",
        f"30-zero.conf: is a device{only}",
        "40-loop.conf: cannot be read: Too many levels of symbolic links; it is a link, and what masks is one to "
        "/dev/null",
        f"50-link.conf: is a pipe (FIFO){only}",
    )


def test_a_folder_is_no_file_and_masks(tmp_path: Path) -> None:
    """As with the drop-ins of systemd's units, of both releases."""
    drop_in(tmp_path, "30-old.conf").mkdir()
    write(tmp_path, "etc/torchpar.conf.d/30-old.conf/a.conf", "usr/lib/torchpar.conf.d/30-old.conf")
    write(tmp_path, "etc/torchpar.conf.d/40.conf")
    drop_in(tmp_path, "50-link.conf").symlink_to("40.conf")
    assert found(tmp_path) == ["etc/torchpar.conf.d/40.conf", "etc/torchpar.conf.d/50-link.conf"]


def test_a_folder_that_leads_nowhere_is_no_empty_one(tmp_path: Path) -> None:
    """The disk that it is on may not be mounted yet: a conf without its services would be put in force."""
    drop_ins = tmp_path / "etc/torchpar.conf.d"
    drop_ins.parent.mkdir()
    drop_ins.symlink_to(tmp_path / "mnt/conf")
    with pytest.raises(ConfigError) as error:
        ConfReader().find(tmp_path)
    assert error.value.problems == (f"{drop_ins}: No such file or directory; it is a link",)
    (tmp_path / "mnt/conf").mkdir(parents=True)
    assert ConfReader().find(tmp_path) == ()


def test_what_editors_leave_is_not_read(tmp_path: Path) -> None:
    """Emacs makes a link that leads nowhere beside a file that is being edited; systemd passes over it."""
    drop_in(tmp_path, ".#a.conf").symlink_to("me@host.1234:56")
    write(tmp_path, "etc/torchpar.conf.d/a.conf", "etc/torchpar.conf.d/.a.conf", "etc/torchpar.conf.d/a.conf~")
    assert found(tmp_path) == ["etc/torchpar.conf.d/a.conf"]


def test_a_file_whose_name_is_no_line_of_text_is_refused(tmp_path: Path) -> None:
    """Its name stands in messages and in unit files."""
    for name in (b"a\nb.conf", b"\xff.conf", b"c\x1b[2J.conf", b"d: e.conf", "ä ö.conf".encode()):
        path = os.fsencode(drop_in(tmp_path, "x").parent) + b"/" + name
        with open(path, "w") as file:
            file.write("# nothing\n")
    why = "has a name that cannot be printed in one line of text; rename it"
    assert sorted(refused(tmp_path)) == [f"\\udcff.conf: {why}", f"a\\nb.conf: {why}", f"c\\x1b[2J.conf: {why}"]


def test_a_file_whose_name_would_go_on_in_the_next_line_is_refused(tmp_path: Path) -> None:
    """On the command line it may have any name, and stands in the first line of units."""
    path = tmp_path / "x\\"
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="ends in a backslash; rename it"):
        ConfReader().read_files((path,), trusted=False)


def test_what_is_named_on_the_command_line_is_read_as_carefully(tmp_path: Path) -> None:
    """A path may lead anywhere, or be longer than any path."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/tty"), tmp_path, tmp_path / "none", tmp_path / ("n" * 5000)):
        with pytest.raises(ConfigError) as error:
            ConfReader().read_files((path,), trusted=False)
        (problem,) = error.value.problems
        assert problem.startswith(str(path)[:300]) and len(problem) < 600
    (nothing,) = ConfReader().read_files((Path("/dev/null"),), trusted=False)
    assert nothing.text == ""


def test_many_files_are_read_and_much_text_is_not(tmp_path: Path) -> None:
    """What torchpard keeps in memory is bounded, however many files there are."""
    for number in range(10_000):
        drop_in(tmp_path, f"{number:05}.conf").write_text("# nothing\n")
    assert len(ConfReader().read(tmp_path, trusted=False)) == 10_000
    for number in range(3):
        drop_in(tmp_path, f"{number:05}.conf").write_text("#" * (2**20 - 8))
    assert refused(tmp_path) == ("00002.conf: is one too many: all files of the conf may have 2048 KiB together",)


def test_a_file_that_grows_while_it_is_read_comes_to_an_end(tmp_path: Path) -> None:
    """Somebody's log, say."""
    log, done = tmp_path / "log.conf", threading.Event()
    log.touch()

    def grow() -> None:
        with log.open("ab") as file:
            while not done.is_set():
                file.write(b"#" * 2**16)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(ConfigError, match="larger than 1024 KiB"):
            while True:
                ConfReader().read_files((log,), trusted=False)
    finally:
        done.set()
        writer.join()


def test_the_stamp_follows_what_links_lead_to(tmp_path: Path) -> None:
    """An edit of the file behind a link is an edit of the conf."""
    real = tmp_path / "real"
    real.write_text("# 1\n")
    drop_in(tmp_path, "a.conf").symlink_to(real)
    reader = ConfReader()
    before = reader.stamp(tmp_path)
    assert reader.stamp(tmp_path) == before
    real.write_text("# 1 2\n")
    assert reader.stamp(tmp_path) != before


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Path]:
    """A mount that nobody answers for, as one of a server that is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    where = tmp_path / "hung"
    where.mkdir()
    try:
        server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        pytest.skip("there is no FUSE here")
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"test", os.fsencode(where), b"fuse", 0, options):
        os.close(server)
        pytest.skip("nothing can be mounted here")
    try:
        yield where
    finally:
        # Whatever waits for it gets an error.
        os.close(server)
        libc.umount2(os.fsencode(where), 2)


def test_a_mount_that_does_not_answer_ends_in_words(tmp_path: Path, hung: Path) -> None:
    """The kernel holds one thread, and whoever asks again is answered at once."""
    drop_in(tmp_path, "a.conf").symlink_to(hung / "b.conf")
    reader = ConfReader(seconds=0.5)
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"a\.conf: has not answered within 0\.5 s") as error:
            reader.read(tmp_path, trusted=False)
        assert reader.stamp(tmp_path) == str(error.value)
    assert threading.active_count() == threads + 1


def test_a_file_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As units name it."""
    (tmp_path / "my.conf").write_text("[Train a]\n")
    monkeypatch.chdir(tmp_path)
    (file,) = ConfReader().read_files((Path("my.conf"),), trusted=False)
    assert file.path == f"{tmp_path}/my.conf"


def test_a_file_is_read_as_if_it_were_installed(tmp_path: Path) -> None:
    """In the place of the one that is there, or of none; as a mask, too. It is named by that place."""
    root, new = tmp_path / "root", tmp_path / "new"
    write(root, "etc/torchpar.conf", "usr/lib/torchpar.conf.d/50-a.conf", "etc/torchpar.conf.d/60-b.conf")
    new.write_text("[Train new]\n")
    for path in ("etc/torchpar.conf", "etc/torchpar.conf.d/50-a.conf", "run/torchpar.conf.d/70-c.conf"):
        place = root / path
        files = ConfReader().read(root, trusted=False, replacing={place: new})
        assert [file.text for file in files if file.path == str(place)] == ["[Train new]\n"]
        names = {file.path.rpartition("/")[2] for file in files}
        assert names == {"torchpar.conf", "50-a.conf", "60-b.conf", place.name}
    gone = {root / "etc/torchpar.conf.d/50-a.conf": Path("/dev/null")}
    masked = ConfReader().read(root, trusted=False, replacing=gone)
    assert [file.path.rpartition("/")[2] for file in masked] == ["torchpar.conf", "60-b.conf"]
    with pytest.raises(ConfigError, match=f"^{tmp_path}/none: "):
        ConfReader().read(root, trusted=False, replacing={root / "etc/torchpar.conf": tmp_path / "none"})


@pytest.mark.parametrize("place", [f"etc/torchpar.conf{end}" for end in ("", ".d/50-a.conf", ".d/60-b.conf")])
def test_a_file_is_read_as_if_it_were_removed(tmp_path: Path, place: str) -> None:
    """It hides nothing any more: the same is read as after its removal, with what a package has of that name."""
    names = ("torchpar.conf", "torchpar.conf.d/50-a.conf")
    write(tmp_path, *(f"{folder}/{name}" for folder in ("etc", "usr/lib") for name in names))
    write(tmp_path, "etc/torchpar.conf.d/60-b.conf")
    said = ConfReader().read(tmp_path, trusted=False, replacing={tmp_path / place: None})
    (tmp_path / place).unlink()
    assert said == ConfReader().read(tmp_path, trusted=False)
    assert said == ConfReader().read(tmp_path, trusted=False, replacing={tmp_path / place: None})


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("/etc/torchpar.conf", True),
        ("/usr/lib/torchpar.conf.d/50-a.conf", True),
        ("/etc/torchpar.conf.d/a.conf.new", False),
        ("/etc/torchpar.conf.d/.a.conf", False),
        ("/etc/torchpar.conf.d/b/a.conf", False),
        ("/srv/torchpar.conf", False),
        ("torchpar.conf", False),
    ],
)
def test_the_places_of_the_conf_are_known(path: str, is_one: bool) -> None:
    """A file elsewhere would never be read."""
    assert is_place(Path(path)) is is_one

"""The store: whole wherever its writer is killed, and clear about what is wrong with it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import BusyError, StoreError
from torchpar.generations.generation import Content
from torchpar.generations.store import Store


def content(mark: str) -> Content:
    """The content of a generation that differs by its mark."""
    return Content(
        {"torchpar-train@a.service.d/20-torchpar.conf": f"[Service]\n# {mark}\n"},
        {"torchpar.target.wants/torchpar-train@a.service": "/usr/lib/systemd/system/torchpar-train@.service"},
        '{"version": 1, "services": []}\n',
        (ConfFile("/etc/torchpar.conf", f"[Host]\n# {mark} \udcff\n"),),
        {"cpus_online": "0-1", "nodes_online": "-"},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a directory that only this user can write."""
    tmp_path.chmod(0o755)
    return Store(tmp_path / "torchpar")


def test_what_is_written_reads_back_the_same(store: Store) -> None:
    """Text, links, plan, conf with its order and odd bytes, and manifest."""
    generation = store.write(content("one"))
    assert store.active() is None
    store.activate(generation)
    active = store.active()
    assert active == generation and active.read() == content("one")
    assert [file.applied for file in active.read().conf] == [True]
    wants = generation.path / "units/torchpar.target.wants/torchpar-train@a.service"
    assert os.readlink(wants) == "/usr/lib/systemd/system/torchpar-train@.service"


def test_numbers_grow_and_the_newest_is_first(store: Store) -> None:
    """A number is never used for other content while it is kept."""
    one, two = store.write(content("one")), store.write(content("two"))
    assert store.history() == (two, one) and store.previous(two) == one and store.previous(one) is None
    assert store.generation(1).read() == content("one")


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("make", ["touch", "ln -s /", "mkdir -p .{}.new/x; touch"])
@pytest.mark.parametrize("link", ["", "active", ".active.new"])
@pytest.mark.subprocess
def test_what_is_no_folder_among_the_generations_is_in_nobodys_way(
    store: Store, number: int, make: str, link: str
) -> None:
    """An old generation moved to another disk, or a stray file, also where the links of the store lead to it."""
    with store.locked():
        store.activate(store.write(content("one")))
        store.write(content("two"))
    damage = f"rm -rf {number}; {make.format(number)} {number}"
    damage += f"; ln -sfn generations/{number} ../{link}" if link else ""
    subprocess.run(["sh", "-euc", damage], cwd=store.generations, check=True)
    for mark in ("three", "four"):
        with store.locked():
            new = store.write(content(mark))
            store.activate(new)
        active = store.active()
        assert active == new == store.history()[0] and active.read() == content(mark)
    with store.locked():
        assert not any(name.startswith(".") for name in os.listdir(store.generations))


def test_pruning_keeps_the_newest_and_the_active(store: Store) -> None:
    """What is in force is never removed."""
    generations = [store.write(content(str(i))) for i in range(5)]
    store.activate(generations[0])
    store.prune(keep=2)
    assert [generation.number for generation in store.history()] == [5, 4, 1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("echo x >> plan.json", "plan.json has changed"),
        ("rm plan.json", "plan.json: No such file"),
        (": > sha256sums", "sha256sums is not what torchpar wrote"),
        ("rm -r units", "No such file or directory"),
        ("sed -i /plan.json/d sha256sums", "plan.json is missing"),
    ],
)
@pytest.mark.subprocess
def test_damage_is_named_with_what_to_do(store: Store, damage: str, message: str) -> None:
    """A half-lost disk, or an admin who edited the store."""
    generation = store.write(content("one"))
    subprocess.run(["sh", "-c", damage], cwd=generation.path, check=True)
    with pytest.raises(StoreError, match=f"{message}.*make a new one: torchpar apply"):
        generation.read()


def test_an_active_link_that_leads_nowhere_is_an_error(store: Store) -> None:
    """It is not the same as never applied."""
    generation = store.write(content("one"))
    store.activate(generation)
    store.discard(generation)
    with pytest.raises(StoreError, match="which is not there; make a new one"):
        store.active()


@pytest.mark.parametrize("place", ["", "generations", ".."])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_store_that_others_can_write_is_refused(store: Store, place: str, mode: int) -> None:
    """Who can write it, or replace it from above, decides what runs as whom: it is not written, nor put in force."""
    one = store.write(content("one"))
    (store.directory / place).chmod(mode)
    if place == ".." and mode & stat.S_ISVTX:
        # As in /tmp: others cannot rename what is not theirs.
        store.activate(store.write(content("two")))
        return
    with pytest.raises(StoreError, match="only root can write"):
        store.write(content("two"))
    with pytest.raises(StoreError, match="only root can write"):
        store.activate(one)
    (store.directory / place).chmod(0o755)
    assert store.history() == (one,) and store.active() is None


def test_who_applies_may_have_any_umask(store: Store) -> None:
    """Of one that lets a group write the store has nothing."""
    before = os.umask(0)
    try:
        with store.locked():
            store.activate(store.write(content("one")))
    finally:
        os.umask(before)
    active = store.active()
    assert active and active.read() == content("one")


def test_a_link_in_place_of_the_store_is_refused(tmp_path: Path) -> None:
    """A link could lead to a directory of somebody else."""
    tmp_path.chmod(0o755)
    (tmp_path / "real").mkdir()
    (tmp_path / "torchpar").symlink_to("real")
    with pytest.raises(StoreError, match="must be a directory"):
        Store(tmp_path / "torchpar").write(content("one"))


def test_only_one_can_change_the_store_at_a_time(store: Store) -> None:
    """The second is told to try again."""
    with store.locked(), pytest.raises(BusyError, match="try again"), Store(store.directory).locked():
        pass
    with store.locked():
        pass


def test_only_who_can_write_the_store_can_lock_it(store: Store) -> None:
    """A user who could open the lock, for reading too, could keep the host from ever being placed again."""
    with store.locked():
        modes = {path.name: path.stat().st_mode & 0o777 for path in store.directory.iterdir()}
    assert modes == {".lock": 0o600}


def test_an_error_under_the_lock_is_not_taken_for_the_lock_being_held(store: Store) -> None:
    """EAGAIN of something else is a bug of that, with its own traceback."""
    with pytest.raises(BlockingIOError), store.locked():
        raise BlockingIOError


def test_a_store_that_cannot_be_written_says_where_and_leaves_nothing_behind(store: Store) -> None:
    """A file system that takes no file: the message has the path, the reason and what is still true."""
    store.write(content("one"))
    too_long = Content({"x" * 300 + ".d/20-torchpar.conf": ""}, {}, "", (), {})
    with pytest.raises(StoreError, match=r"cannot be written: .*/units/xxx.*: File name too long$"):
        store.write(too_long)
    assert os.listdir(store.directory / "generations") == ["1"]


# Writes a generation and activates it, and kills itself with SIGKILL before the n-th change of the file system.
_KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from tests.unit.generations.test_generation import content
from torchpar.generations.store import Store
left = int(sys.argv[2])
def hook(event, arguments):
    global left
    changes = event in ("os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir") or (
        event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if changes and sys.argv[1] in str(arguments[0]) + str(arguments[-2:]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
store = Store(Path(sys.argv[1]))
sys.addaudithook(hook)
store.activate(store.write(content("new")))
"""


@pytest.mark.subprocess
def test_a_writer_killed_anywhere_leaves_the_old_or_the_new_generation_whole(store: Store) -> None:
    """Killed before each of its changes in turn; the next writer cleans up and succeeds."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "PYTHONDONTWRITEBYTECODE": "1"}
    old = store.write(content("old"))
    store.activate(old)
    outcomes = []
    for point in range(100):
        argv = [sys.executable, "-c", _KILLED_WRITER, str(store.directory), str(point)]
        status = subprocess.run(argv, env=environment, check=False).returncode
        active = store.active()
        assert active is not None
        outcomes.append((status, "new" if active.read() == content("new") else "old"))
        assert active.read() in (content("old"), content("new"))
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert outcomes[-1] == (0, "new") and outcomes[0][1] == "old" and len(outcomes) > 10
    assert not list((store.directory / "generations").glob(".*"))

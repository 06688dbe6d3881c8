"""What in the store is not as torchpar left it: each is told once, with its place, and the next apply mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.generations.fake_systemd import FakeSystemd
from tests.unit.generations.test_generation import content
from torchpar.contract.errors import StoreError
from torchpar.generations.drift import find_drift, find_foreign, find_generation_drift, find_unloaded
from torchpar.generations.store import Store
from torchpar.generations.transition import put_new_in_force


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with two generations, of which the second is in force."""
    tmp_path.chmod(0o755)
    made = Store(tmp_path / "torchpar")
    with made.locked():
        for mark in ("1", "2"):
            put_new_in_force(made, FakeSystemd(made), content(mark))
    return made


def needs_new(store: Store) -> bool:
    """Whether apply makes a new generation although the conf has not changed."""
    try:
        active = store.active()
        return active is None or find_generation_drift(active, active.read()) != ()
    except StoreError:
        return True


WANTS = "active/units/torchpar.target.wants"

DAMAGES = {
    f"rm {WANTS}/*": "torchpar-train@a.service: is not there",
    f"rm -r {WANTS}": "torchpar-train@a.service: is not there",
    f"ln -sfn /dev/null {WANTS}/torchpar-train@a.service": "leads to /dev/null, not to /usr/lib/",
    f"ln -s x {WANTS}/torchpar-train@b.service": "torchpar-train@b.service: is not torchpar's",
    "touch active/units/x.service": "units/x.service: is not torchpar's",
    "mkdir active/units/x.service.d": "units/x.service.d: is not torchpar's",
    "touch active/units/torchpar-train@a.service.d/x.conf": "x.conf: is not torchpar's",
    "touch active/x": "/x: is not torchpar's",
    "mkdir -p active/x/y": "/x: is not torchpar's",
    "mkfifo active/x": "/x: is not torchpar's",
    "echo x >>active/plan.json": "plan.json has changed",
    "rm active/plan.json": "plan.json: No such file",
    "rm active": "active: is not there, and there are generations",
    "ln -sfn generations/9 active": "leads to generations/9, which is not there",
    "ln -sfn ../torchpar/generations/2 active": "leads to ../torchpar/generations/2, which is not there",
    "rm active && cp -a generations/2 active": "active: is not a link",
    "rm active && echo x >active": "active: is not a link",
    "rm -r generations && echo x >generations": "generations: is not a directory",
    "rm -r generations": "leads to generations/2, which is not there",
    "chmod 777 .": "torchpar: has mode 0777, not 0755",
    "chmod 700 generations": "generations: has mode 0700, not 0755",
    "chmod 666 .lock": ".lock: has mode 0666, not 0600",
    "rm .lock && mkdir .lock": ".lock: is not a file",
    "chmod 775 generations/2": "generations/2: has mode 0775, not 0755",
    "chmod 600 active/conf/000": "conf/000: has mode 0600, not 0644",
    "ln -s generations/2 .active.back": ".active.back: is left of a torchpar that was killed",
    "mkdir generations/.3.new": ".3.new: is left of a torchpar that was killed",
    "mkdir .active.old && touch .active.old/x": ".active.old: is left of a torchpar that was killed",
}


def test_a_store_as_torchpar_left_it_has_no_drift(store: Store) -> None:
    """Whatever the umask was."""
    assert find_drift(store, None) == ()
    before = os.umask(0o077)
    try:
        with store.locked():
            put_new_in_force(store, FakeSystemd(store), content("3"))
    finally:
        os.umask(before)
    assert find_drift(store, None) == () and not needs_new(store)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.subprocess
def test_what_drifted_is_told_and_mended(store: Store, damage: str) -> None:
    """In a line or two, whoever looks; and the store is whole after the next apply."""
    subprocess.run(["sh", "-euc", damage], cwd=store.directory, check=True)
    told = find_drift(store, None)
    assert any(DAMAGES[damage] in line for line in told) and len(told) <= 2
    assert all("torchpar apply" in line for line in told)
    with store.locked():
        if needs_new(store):
            put_new_in_force(store, FakeSystemd(store), content("new"))
    assert find_drift(store, None) == ()
    active = store.active()
    assert active and active.read().files
    for other in (".active.new", ".active.back", ".active.old"):
        assert not os.path.lexists(store.directory / other)


MISPLACED = {
    "rm .lock && ln -s active .lock": ".lock: is not a file",
    "rm .lock && mkdir -p .lock/x": ".lock: is not a file",
    "mv generations ../disk && ln -s ../disk generations": "generations: is a link",
    "mv ../torchpar ../disk && ln -s disk ../torchpar": "torchpar: is a link",
    "mv ../torchpar ../disk && touch ../torchpar": "torchpar: is not a directory",
    "mv ../torchpar ../disk && ln -s none ../torchpar": "torchpar: is a link",
}


@pytest.mark.parametrize("damage", MISPLACED)
@pytest.mark.subprocess
def test_what_is_not_torchpars_to_remove_is_told_with_what_mends_it(store: Store, damage: str) -> None:
    """By check and by what would change the store; and after the first step as it is told, apply does the rest."""
    subprocess.run(["sh", "-euc", damage], cwd=store.directory, check=True)
    (told,) = (line for line in find_drift(store, None) if MISPLACED[damage] in line)
    assert told.endswith("; then: torchpar apply") and "to mend it" not in told
    with pytest.raises(StoreError, match="nothing has changed") as refused, store.locked():
        pass
    assert str(refused.value).removesuffix("; nothing has changed") == told.removesuffix("; then: torchpar apply")
    first = told.partition("; first: ")[2].partition("; then: ")[0].partition(",")[0]
    subprocess.run(["sh", "-euc", first], check=True)
    with store.locked():
        put_new_in_force(store, FakeSystemd(store), content("new"))
    assert find_drift(store, None) == ()


def test_many_things_are_told_in_a_few_lines(store: Store) -> None:
    """A thousand files are one line."""
    for number in range(1000):
        (store.directory / "active" / str(number)).touch()
    assert len(find_drift(store, None)) == 11 and "990 more things are not as" in find_drift(store, None)[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("place", [".", "generations", ".lock", "generations/2", "active/plan.json"])
def test_what_belongs_to_another_user_is_told_taken_back_or_replaced(store: Store, place: str) -> None:
    """The places are root's again. A generation that was another user's is not used."""
    os.chown(store.directory / place, 1, 1)
    assert any("belongs to user 1, not to root" in told for told in find_drift(store, None))
    active = store.active()
    assert active and (find_foreign(active) is None) == (place == ".lock")
    with store.locked():
        if needs_new(store):
            put_new_in_force(store, FakeSystemd(store), content("new"))
    assert find_drift(store, None) == ()


@pytest.mark.subprocess
def test_what_a_command_has_not_finished_is_no_drift(store: Store) -> None:
    """As long as it holds the lock."""
    (store.generations / ".3.new").mkdir()
    assert len(find_drift(store, None)) == 1
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    argv = [sys.executable, "-c", hold, str(store.lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline()
        assert find_drift(store, None) == ()
        holder.communicate(b"\n")
    assert len(find_drift(store, None)) == 1


def test_units_that_systemd_has_not_read_are_told(store: Store, tmp_path: Path) -> None:
    """A command that was killed between the flip and the reload: the conf is in force, but not in systemd."""
    what = content("2")
    loaded = tmp_path / "generator"
    (path,) = what.files
    (loaded / path).parent.mkdir(parents=True)
    assert find_unloaded(what, loaded) == path
    (loaded / path).write_text(what.files[path])
    (link,) = what.links
    assert find_unloaded(what, loaded) == link
    (loaded / link).parent.mkdir()
    (loaded / link).symlink_to("anywhere")
    assert find_unloaded(what, loaded) is None
    (told,) = find_drift(store, tmp_path)
    assert told.startswith(f"generation 2 is active, and systemd has not read {path} of it")

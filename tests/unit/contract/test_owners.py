"""Who could change what a path leads to, place by place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchpar.contract.owners import code_places, find_strangers
from torchpar.host.files import find_open

ME = os.geteuid()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of our own, in which nobody else is let in."""
    (tmp_path / "p").mkdir(mode=0o755)
    (tmp_path / "p").chmod(0o755)
    return tmp_path / "p"


def places(path: object, *, owners: tuple[int, ...] = (0, ME), shared: bool = False) -> list[str]:
    """The names of the places that others can change."""
    return [os.path.basename(found.place) for found in find_strangers(str(path), owners, shared=shared)]


def make(path: Path, mode: int = 0o644) -> Path:
    path.touch()
    path.chmod(mode)
    return path


def test_what_is_ones_own_all_the_way_has_no_strangers(folder: Path) -> None:
    """A file, a folder, a link to either; what is not there yet."""
    file = make(folder / "f")
    (folder / "link").symlink_to("f")
    (folder / "up").symlink_to("../p/./link")
    for path in (file, folder, folder / "link", folder / "up", folder / "none", folder / "none/x", folder / "f/x"):
        assert places(path) == []


@pytest.mark.parametrize(("mode", "alone", "with_groups"), [(0o664, ["f"], []), (0o646, ["f"], ["f"]), (0o755, [], [])])
def test_a_mode_lets_others_in(folder: Path, mode: int, alone: list[str], with_groups: list[str]) -> None:
    """A group counts where the owner has nobody beside."""
    file = make(folder / "f", mode)
    assert places(file) == alone
    assert places(file, shared=True) == with_groups
    assert [found.is_writable((0, ME)) for found in find_strangers(str(file), (0, ME))] == [True] * len(alone)


def test_a_folder_that_everybody_may_write_is_found_wherever_it_is_on_the_way(folder: Path) -> None:
    """Above the file, above a link to it, and where only the name of a link leads through."""
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    make(folder / "open" / "f")
    make(folder / "f")
    (folder / "link").symlink_to("open/f")
    (folder / "open" / "back").symlink_to(folder / "f")
    (folder / "chain").symlink_to("open/back")
    for path in ("open/f", "link", "chain", "open/none", "open/../f"):
        assert places(folder / path, shared=True) == ["open"], path


def test_in_a_sticky_folder_each_file_stands_for_itself(folder: Path) -> None:
    """As in /tmp; but a name that is not taken yet is anybody's, and so is what is in the folder itself."""
    (folder / "sticky").mkdir()
    (folder / "sticky").chmod(0o1777)
    make(folder / "sticky" / "f")
    assert places(folder / "sticky" / "f") == []
    assert places(folder / "sticky" / "none") == ["sticky"]
    (folder / "sticky" / "own").mkdir()
    (folder / "link").symlink_to("sticky/.")
    for end in ("sticky", "sticky/", "sticky/.", "sticky//./", "sticky/own/..", "sticky/own/../.", "link", "link/."):
        assert places(f"{folder}/{end}") == ["sticky"], end
    for end in ("sticky/own/.", "sticky/..", "sticky/own/../..", "link/own/", "link/f"):
        assert places(f"{folder}/{end}") == [], end
    assert places("/tmp/..") == places("/")


def test_what_belongs_to_others_is_found_with_every_link(folder: Path) -> None:
    """The link itself, what it leads through, and where it ends."""
    if ME == 0:
        (folder / "theirs").mkdir()
        make(folder / "theirs" / "f")
        (folder / "theirs" / "link").symlink_to(folder / "f")
        make(folder / "f")
        os.lchown(folder / "theirs" / "link", 4242, 4242)
        assert places(folder / "theirs" / "link") == ["link"]
        os.chown(folder / "theirs", 4242, 4242)
        assert places(folder / "theirs" / "link", owners=(0, 4242)) == []
        assert places(folder / "theirs" / "f") == ["theirs"]
        assert places(folder / "theirs" / ".." / "f") == ["theirs"]
    else:
        found = places(make(folder / "f"), owners=(0,))
        assert found[-2:] == ["p", "f"]


def test_code_is_looked_for_where_a_file_is_named_and_where_it_is(folder: Path) -> None:
    """Not where the text alone would lead: what is behind .. is the kernel's to say."""
    (folder / "real").mkdir()
    file = make(folder / "real" / "x.py")
    (folder / "link").symlink_to("real")
    (folder / "x.py").symlink_to("link/x.py")
    assert code_places(str(file)) == [str(file), str(folder / "real")]
    assert code_places(f"{folder}/x.py") == [f"{folder}/x.py", str(folder), str(folder / "real")]
    assert code_places(f"{folder}/link/../x.py")[1:] == [f"{folder}/link/..", str(folder / "real")]
    assert code_places("/x.py") == ["/x.py", "/"]


def test_directories_are_ones_own_with_all_the_way_to_them(folder: Path) -> None:
    """Also the links of the way; a directory where everybody may make files is none, and a file neither."""
    (folder / "store" / "in").mkdir(parents=True)
    store = folder / "store"
    assert find_open(store, store / "in") is None
    (folder / "open").mkdir()
    (folder / "open" / "link").symlink_to(folder)
    (folder / "open").chmod(0o777)
    assert find_open(folder / "open/link/store") == folder / "open"
    (folder / "open").chmod(0o1777)
    assert find_open(folder / "open/link/store") is None and find_open(folder / "open") == folder / "open"
    (folder / "to").symlink_to("store")
    assert find_open(folder / "to") == folder / "to" and find_open(make(folder / "f")) == folder / "f"
    if ME == 0:
        os.lchown(folder / "open/link", 4242, 4242)
        assert find_open(folder / "open/link/store") == folder / "open/link"


def test_a_circle_of_links_comes_to_an_end(folder: Path) -> None:
    """And so does a path that is no path."""
    (folder / "circle").symlink_to("circle")
    assert places(folder / "circle") == []
    with pytest.raises(OSError):
        places(folder / ("x" * 300))

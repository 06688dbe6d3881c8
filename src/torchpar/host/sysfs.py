"""Small files of the kernel below a root: text, numbers, CPU sets, names.

None stands for whatever cannot be read or makes no sense; of the latter the Tree keeps what it was. The kernel's -1 for
"unknown" becomes None here and nowhere else. Links lead below the root, absolute ones too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from torchpar.contract.cpulist import MAX_NUMBER, CpuSet
from torchpar.contract.errors import printable

_DOUBTS = 8  # enough to see what is wrong with a machine

_LIMIT = 2**20  # no file that is read here is longer, also not the mounts of a host with thousands of containers

_PIECE = 2**16

_LINKS = 40  # the kernel's own limit, path_resolution(7)


class Tree:
    """The files below one root directory. Paths are relative to it."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root).rstrip("/")
        # The same list stands in the folder of every CPU of a package: each text is parsed once.
        self._parsed: dict[tuple[Callable[[str], CpuSet], str], CpuSet] = {}
        self._doubts: dict[str, None] = {}

    def doubt(self, what: str) -> None:
        """Keeps that something the kernel shows makes no sense, and what is done instead."""
        self._doubts[printable(what)] = None

    def doubts(self) -> tuple[str, ...]:
        """Returns the values that made no sense, in the order of reading; of a long list the beginning."""
        found = tuple(self._doubts)
        return found if len(found) <= _DOUBTS else (*found[:_DOUBTS], f"and {len(found) - _DOUBTS} more of this kind")

    def path(self, path: str) -> str:
        """Returns the path on this machine."""
        return f"{self._root}/{path}"

    def text(self, path: str) -> str | None:
        """Reads a file's text without white space around it."""
        data = self.data(path, _LIMIT)
        return None if data is None else data.decode("ascii", "replace").strip("\0 \t\r\n")

    def word(self, path: str) -> str | None:
        """Reads a file's text that is shown as it is: a name or a number in the kernel's writing."""
        text = self.text(path)
        return None if text is None else printable(text, 100)

    def data(self, path: str, size: int) -> bytes | None:
        """Reads the first `size` bytes of a regular file.

        The kernel makes many files below /proc as they are read, such as the list of mounts, and gives a page or less
        at a time, whatever is asked for.
        """
        try:
            descriptor = os.open(self._resolve(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            return None
        try:
            data = b""
            while len(data) < size and (piece := os.read(descriptor, min(_PIECE, size - len(data)))):
                data += piece
            return data
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def number(self, path: str) -> int | None:
        """Reads a whole number from 0; None also for the kernel's -1."""
        text = self.text(path)
        if text and text.isascii() and text.isdigit() and len(text) < 19:
            return int(text)
        if text and text != "-1":
            self.doubt(f"/{path}: {text[:40]!r} is not a number; taken as unknown")
        return None

    def cpulist(self, *paths: str) -> CpuSet | None:
        """Reads the CPU set of the first of the files that holds a list such as 0-3,8."""
        return self._first(paths, CpuSet.parse)

    def cpumask(self, *paths: str) -> CpuSet | None:
        """Reads the CPU set of the first of the files that holds a hexadecimal mask."""
        return self._first(paths, CpuSet.parse_mask)

    def names(self, path: str) -> tuple[str, ...]:
        """Lists the names in a directory, sorted; none where there is no such directory."""
        try:
            return tuple(sorted(os.listdir(self._resolve(path))))
        except OSError:
            return ()

    def numbered(self, path: str, prefix: str) -> tuple[int, ...]:
        """Lists the numbers N of the entries prefixN in a directory, sorted."""
        tails = [name.removeprefix(prefix) for name in self.names(path) if name.startswith(prefix)]
        numbers = [int(tail) for tail in tails if tail.isascii() and tail.isdigit() and len(tail) < 9]
        return tuple(sorted(number for number in numbers if number <= MAX_NUMBER))

    def link_name(self, path: str) -> str | None:
        """Returns the last part of what a link leads to, whether it is there or not."""
        target = self.link_target(path)
        return None if target is None else target.rstrip("/").rpartition("/")[2]

    def link_target(self, path: str) -> str | None:
        """Returns what a link leads to as it is written there; None where there is no link."""
        try:
            return os.readlink(self.path(path))
        except OSError:
            return None

    def mode(self, path: str) -> int | None:
        """Returns the permissions of a file or folder, behind links too; None where there is none."""
        try:
            return stat.S_IMODE(os.stat(self._resolve(path)).st_mode)
        except OSError:
            return None

    def real_path(self, path: str) -> str:
        """Returns the path of a file when all links on the way to it are followed, absolute ones below the root.

        What is not there stands in it as it was asked for; so does a link that leads in a circle.
        """
        done: list[str] = []
        todo = path.split("/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                done = done[:-1]
                continue
            try:
                target = os.readlink(self.path("/".join((*done, name)))) if links < _LINKS else ""
            except OSError:
                target = ""
            if not target:
                done.append(name)
                continue
            links += 1
            todo += target.split("/")[::-1]
            if target.startswith("/"):
                done = []
        return "/".join(done)

    def exists(self, path: str) -> bool:
        """Says whether a file or folder is there, behind links too."""
        return os.path.exists(self._resolve(path))

    def _first(self, paths: tuple[str, ...], parse: Callable[[str], CpuSet]) -> CpuSet | None:
        for path in paths:
            text = self.text(path)
            if text is None:
                continue
            # A mask and a list may have the same text.
            key = parse, text
            if key not in self._parsed:
                try:
                    self._parsed[key] = parse(text)
                except ValueError as error:
                    self.doubt(f"/{path}: {error}; not used"[:200])
                    continue
            return self._parsed[key]
        return None

    def _resolve(self, path: str) -> str:
        """Follows absolute links below the root; a host's own root needs no care, as they are right there."""
        whole = f"{self._root}/{path}"
        if not self._root:
            return whole
        for _ in range(8):
            try:
                target = os.readlink(whole)
            except OSError:
                return whole
            whole = self._root + target if target.startswith("/") else os.path.join(os.path.dirname(whole), target)
        return whole

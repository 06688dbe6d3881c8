"""Finds and reads the files of the configuration, and refuses those that others than root can write.

Whoever can write the conf decides what runs as whom, so a file that is not root's alone is not read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, NotPermittedError, Place, Problem, printable
from torchpar.contract.owners import find_strangers
from torchpar.host.reading import NotReadableError, Reader

T = TypeVar("T")

# What packages ship is read first, so that whatever the admin writes wins; otherwise as systemd's own files.
_MAIN = ("etc/torchpar.conf", "run/torchpar.conf", "usr/lib/torchpar.conf")
_VENDOR = "usr/lib/torchpar.conf.d"
_DROP_INS = (_VENDOR, "usr/local/lib/torchpar.conf.d", "run/torchpar.conf.d", "etc/torchpar.conf.d")
# The folders that hold all of it, each with the beginning of the names there that matter.
FOLDERS = {
    **{os.path.dirname(f"/{path}"): os.path.basename(path) for path in _MAIN},
    **{os.path.dirname(f"/{path}"): "torchpar.conf" for path in _DROP_INS},
    **{f"/{path}": "" for path in _DROP_INS},
}
_LIMIT = 2**20  # of one file
_LIMIT_OF_ALL = 2**21

_NULL = os.makedev(1, 3)  # /dev/null, null(4)

_NOTHING: Mapping[Path, Path | None] = MappingProxyType({})


class ConfReader:
    """Reads the conf, and answers within seconds whatever lies in its place."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._reader = Reader(seconds)

    def read(
        self, root: Path = Path("/"), *, trusted: bool, replacing: Mapping[Path, Path | None] = _NOTHING
    ) -> tuple[ConfFile, ...]:
        """Reads the files in force below `root`, as read_files() does.

        `replacing` has other files for places of the conf (see is_place), which are read as if they were installed
        there; None is none, as if that of the place were removed. Whoever may write them is not looked at.
        """
        return self._do(lambda: self._read(self._find(root, replacing=replacing), trusted=trusted, replacing=replacing))

    def read_files(self, paths: Iterable[Path], *, trusted: bool) -> tuple[ConfFile, ...]:
        """Reads these files. With `trusted` each, and the folders above it, must be root's and writable by root alone.

        Raises ConfigError with every file that cannot be read or trusted, and what to do about it.
        """
        return self._do(lambda: self._read(paths, trusted=trusted))

    def read_given(self, path: Path) -> tuple[ConfFile, ...]:
        """Reads a file as the only one, or a folder in the place of /etc: the files in it are named as they are there,
        and the only others are what packages ship on this machine. Raises ConfigError."""
        return self._do(lambda: self._read_given(path))

    def _read_given(self, path: Path) -> tuple[ConfFile, ...]:
        folder = Path(os.path.abspath(path))
        if not os.path.isdir(self._reader.at(folder)):
            return self._read([path], trusted=False)
        main, drop_ins = (str(folder / name.removeprefix("etc/")) for name in (_MAIN[0], _DROP_INS[-1]))
        if not os.path.lexists(main) and not os.path.lexists(drop_ins):
            what = "has neither torchpar.conf nor torchpar.conf.d in it, as /etc has"
            raise ConfigError([Problem(Place(str(folder)), what)])
        read = self._read(self._find(Path("/"), (main, _MAIN[-1]), (_VENDOR, drop_ins)), trusted=False)
        own = f"{folder}/"
        return tuple(
            replace(file, path=f"/etc/{file.path.removeprefix(own)}") if file.path.startswith(own) else file
            for file in read
        )

    def find(self, root: Path = Path("/")) -> tuple[Path, ...]:
        """Finds the files in force below `root`, in the order in which later ones win.

        A file name in a higher folder masks the same name in a lower one; an empty file or a link to /dev/null masks
        without adding anything, and so does a folder, as with systemd's own drop-ins. Raises ConfigError.
        """
        return self._do(lambda: self._find(root))

    def stamp(self, root: Path = Path("/")) -> object:
        """Changes whenever a file of the conf does, comes or goes."""
        try:
            return self._do(lambda: tuple((str(path), self._stat(path)) for path in self._find(root)))
        except ConfigError as error:
            return str(error)

    def _do(self, work: Callable[[], T]) -> T:
        try:
            return self._reader.do(work)
        except NotReadableError as error:
            raise ConfigError([Problem(Place(error.path), error.why)]) from None

    def _find(
        self,
        root: Path,
        main_files: Iterable[str] = _MAIN,
        folders: Iterable[str] = _DROP_INS,
        replacing: Mapping[Path, Path | None] = _NOTHING,
    ) -> tuple[Path, ...]:
        mains = (path for name in main_files if replacing.get(path := root / name, path))
        main = next((path for path in mains if path in replacing or os.path.lexists(self._reader.at(path))), None)
        drop_ins: dict[str, Path] = {}
        for directory in folders:
            folder = self._reader.at(root / directory)
            names = [path.name for path in replacing if path.parent == folder]
            try:
                names += os.listdir(folder)
            except OSError as error:
                # What a link leads to may be on a disk that is not mounted yet.
                if not isinstance(error, FileNotFoundError) or folder.is_symlink():
                    what = f"{error.strerror}; it is a link" if folder.is_symlink() else str(error.strerror)
                    raise ConfigError([Problem(Place(str(folder)), what)]) from None
            paths = {name: folder / name for name in names if _is_drop_in(name)}
            drop_ins.update({name: path for name, path in paths.items() if replacing.get(path, path)})
        sources = [(path, replacing.get(path) or path) for _, path in sorted(drop_ins.items())]
        in_order = [path for path, source in sources if not self._adds_nothing(source, stat.S_ISDIR)]
        vendor = [path for path in in_order if path.parent == root / _VENDOR]
        own = [path for path in in_order if path.parent != root / _VENDOR]
        of_main = [main] if main and not self._adds_nothing(replacing.get(main) or main) else []
        return (*vendor, *of_main, *own)

    def _adds_nothing(self, path: Path, also: Callable[[int], bool] = lambda mode: False) -> bool:
        try:
            status = os.stat(self._reader.at(path))
        except OSError:
            return False
        return _is_null(status) or (stat.S_ISREG(status.st_mode) and status.st_size == 0) or also(status.st_mode)

    def _read(
        self, paths: Iterable[Path], *, trusted: bool, replacing: Mapping[Path, Path | None] = _NOTHING
    ) -> tuple[ConfFile, ...]:
        files: list[ConfFile] = []
        problems: list[Problem] = []
        left = _LIMIT_OF_ALL
        # As they are in the first line of a unit, from wherever they were named.
        for path in map(Path, map(os.path.abspath, paths)):
            source = replacing.get(path) or path
            try:
                data = self._data(source)
                if trusted and source == path:
                    problems += self._distrust(path)
            except NotReadableError as error:
                problems.append(Problem(Place(error.path), error.why))
                continue
            except OSError as error:
                if isinstance(error, PermissionError) and os.geteuid() != 0:
                    raise NotPermittedError(f"{printable(str(source))}: only root may read it: sudo torchpar") from None
                problems.append(Problem(Place(str(source)), f"cannot be read: {error.strerror}{_hint(source)}"))
                continue
            left -= len(data)
            if left < 0:
                what = f"is one too many: all files of the conf may have {_LIMIT_OF_ALL // 1024} KiB together"
                problems.append(Problem(Place(str(path)), what))
                break
            # surrogateescape keeps what is not UTF-8 until the parser can name the line.
            files.append(ConfFile(str(path), data.decode("utf-8", "surrogateescape")))
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return tuple(files)

    def _data(self, path: Path) -> bytes:
        # It is named in messages and in units, each a line.
        if not str(path).isprintable():
            raise NotReadableError(str(path), "has a name that cannot be printed in one line of text; rename it")
        if str(path).endswith("\\"):
            raise NotReadableError(str(path), "has a name that ends in a backslash; rename it")
        if _is_null(os.stat(self._reader.at(path))):
            return b""
        return self._reader.bytes(path, _LIMIT)

    def _stat(self, path: Path) -> tuple[int, int, int] | None:
        """Reads the status of a file that a link leads to; of the link where the file is not there."""
        for look in (os.stat, os.lstat):
            try:
                status = look(self._reader.at(path))
            except OSError:
                continue
            return status.st_mtime_ns, status.st_size, status.st_ino
        return None

    def _distrust(self, path: Path) -> Iterator[Problem]:
        """Yields the problems with owners and modes of a file, of the folders above it and of links that lead there."""
        for stranger in find_strangers(os.fspath(self._reader.at(path)), (0,)):
            if stranger.is_writable((0,)):
                what = f"can be written by others than root; chmod go-w {printable(stranger.place)}"
            else:
                link = " -h" if os.path.islink(stranger.place) else ""
                what = (
                    "does not belong to root, who alone may decide what runs; "
                    f"chown{link} root {printable(stranger.place)}"
                )
            yield Problem(Place(stranger.place), what)


def is_place(path: Path, root: Path = Path("/")) -> bool:
    """Says whether a file of this path would be read as a file of the conf below `root`."""
    drop_in = path.parent in (root / folder for folder in _DROP_INS) and _is_drop_in(path.name)
    return drop_in or path in (root / main for main in _MAIN)


def _is_drop_in(name: str) -> bool:
    # Hidden ones are no drop-ins of systemd's either, such as the link that Emacs makes beside a file.
    return name.endswith(".conf") and not name.startswith(".")


def _is_null(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL


def _hint(path: Path) -> str:
    """Returns a hint for a link that leads nowhere, "" for anything else."""
    return "; it is a link, and what masks is one to /dev/null" if os.path.islink(path) else ""

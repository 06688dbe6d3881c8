"""Sees the files that a handler reads while it loads, by Python or by a library in C++ or Rust. Imports no torch.

Python tells of its own. Of all others the kernel does, by inotify(7), in folders that can be known beforehand: those of
the handler and of what Python reads, and those that its text, its settings and the environment name; the path of what a
library opens comes from somewhere. What is mapped or still open afterwards is there to be seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import site
import stat
import struct
import sys
import sysconfig
import threading
from collections.abc import Iterator
from typing import Any

from torchpar.serve.models.identity import Look, look_at

# What is in these is no model's; nor is what comes with the interpreter, see Opened.
_DEVICES = ("/proc/", "/sys/", "/dev/")
_SYSTEM = (*_DEVICES, "/bin/", "/boot/", "/etc/", "/lib", "/run/", "/sbin/", "/usr/bin/", "/usr/lib", "/usr/sbin/")
# Variables whose folders are no model's: the service writes there, or programs and libraries are there.
_OTHERS = re.compile(r"PATH|PYTHON.*|LD_.*|PWD|HOME|.*_DIRECTORY|NOTIFY_SOCKET|.*CACHE_DIR|TMPDIR")

# Of what the kernel tells, which may be of another process: Python's own are heard, and a log is none.
_PYTHONS = (".py", ".pyc", ".log")

# Files of one model version, at the most: those that are opened first are its own.
MOST = 256
# Folders that are watched, their depth and entries, and the size of a text that may name some.
MOST_FOLDERS, DEPTH, MOST_ENTRIES, MOST_TEXT = 512, 3, 10_000, 1 << 18

_WORDS = re.compile(r"""["']([^"'\n]{1,4096})["']|([^\s"'<>|;,()\[\]{}=]+)""")

# inotify's.
_MODIFY, _OPEN, _CLOSE_WRITE, _CLOSE, _MOVED_TO, _IS_FOLDER = 0x2, 0x20, 0x8, 0x10, 0x80, 0x40000000
_EVENT = struct.Struct("iIII")


class Opened:
    """The files that are read while this is entered: weights, settings, modules.

    What comes with the interpreter is none of the model's, nor is what the code writes itself.
    """

    def __init__(self, source: str | None = None) -> None:
        """source: the handler."""
        self.files: dict[str, Look] = {}
        self.written: set[str] = set()
        self._source = source
        self._active = False
        self._inside = threading.local()
        self._modules: set[str] = set()
        self._before: set[str] = set()
        self._folders = _Folders()
        installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        caches = [os.environ.get("TORCHINDUCTOR_CACHE_DIR"), os.environ.get("TRITON_CACHE_DIR")]
        paths = {os.path.realpath(path) for path in (*installed, *site.getsitepackages(), *caches) if path}
        self._foreign = (*_DEVICES, *(f"{path}/" for path in paths if path != "/"))

    def __enter__(self) -> Opened:
        self._modules = set(sys.modules)
        self._before = set(_files_in_use())
        if self._source:
            self._watch(os.path.dirname(os.path.abspath(self._source)), DEPTH)
            self._read(os.path.abspath(self._source))
        for name, value in os.environ.items():
            if not _OTHERS.fullmatch(name):
                for word in value.split(":"):
                    self._name(word, os.getcwd())
        self._active = True
        sys.addaudithook(self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        self._active = False
        # Of a module that was compiled before only what was compiled is opened.
        for name in set(sys.modules) - self._modules:
            path = getattr(sys.modules[name], "__file__", None)
            if isinstance(path, str):
                self._add(path)
        read, written, replaced = self._folders.seen()
        self.written |= written
        in_use = (path for path in _files_in_use() if path not in self._before)
        for path in (*sorted(read), *in_use):
            if not path.endswith(_PYTHONS):
                self._add(path)
        # Nobody knows which of the two it has read.
        self.files.update((path, ()) for path in replaced & self.files.keys())
        # What it wrote, or put away again, is no part of the model.
        self.files = {path: look for path, look in self.files.items() if path not in self.written and look_at(path)}

    def _hear(self, event: str, arguments: Any) -> None:
        if not self._active or event not in ("open", "os.listdir", "os.scandir", "os.rename"):
            return
        if getattr(self._inside, "hook", False):
            return  # it is this that opens it
        path = arguments[event == "os.rename"]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str):
            return
        self._inside.hook = True
        try:
            path = os.path.abspath(path)
            if event == "os.rename":
                self.written.add(path)
            elif event != "open":
                self._watch(path, 1)
            elif isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
                self.written.add(path)
            elif self._add(path):
                self._watch(os.path.dirname(path), 1)
                self._read(path)
        finally:
            self._inside.hook = False

    def _add(self, path: str) -> bool:
        """Adds a file; says whether it belongs to the model and is new."""
        path = os.path.abspath(path)
        if path in self.files or len(self.files) >= MOST or path.endswith(".pyc"):
            return False
        try:
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except (OSError, ValueError):
            return False
        if not regular or self._is_foreign(path):
            return False
        self.files[path] = look_at(path)
        return True

    def _is_foreign(self, path: str) -> bool:
        return f"{os.path.realpath(path)}/".startswith(self._foreign)

    def _read(self, path: str) -> None:
        """Watches the folders that a text names."""
        try:
            if os.path.getsize(path) > MOST_TEXT:
                return
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError):
            return
        for word in {quoted or bare for quoted, bare in _WORDS.findall(text)}:
            self._name(word, os.path.dirname(path))

    def _name(self, word: str, folder: str) -> None:
        if "/" not in word or "\0" in word or len(word) > 4096:
            return
        path = os.path.abspath(os.path.join(folder, os.path.expanduser(word)))
        if f"{path}/".startswith(_SYSTEM):
            return
        if os.path.isdir(path):
            self._watch(path, DEPTH)
        else:
            self._watch(os.path.dirname(path), 0)

    def _watch(self, path: str, depth: int) -> None:
        if self._is_foreign(path) or path == "/":
            return
        self._folders.watch(path, depth if path.count("/") > 1 else 0)


class _Folders:
    """Folders in which the kernel tells of every file that is opened. Where there is no inotify, of none."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths: dict[int, list[str]] = {}  # by the kernel's number; a folder may have several
        self._links: dict[str, list[str]] = {}  # of a file elsewhere, the links to it
        self._known: dict[str, int] = {}  # folder → depth

    def watch(self, path: str, depth: int) -> None:
        """And those below."""
        if self._fd < 0 or len(self._known) >= MOST_FOLDERS or self._known.get(path, -1) >= depth:
            return
        mask = _MODIFY | _OPEN | _CLOSE_WRITE | _CLOSE | _MOVED_TO
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if number < 0:
            return
        self._known[path] = depth
        paths = self._paths.setdefault(number, [])
        if path not in paths:
            paths.append(path)
        for entry in _entries(path):
            with contextlib.suppress(OSError):
                if entry.is_dir() and depth and not _is_no_models(entry):
                    self.watch(entry.path, depth - 1)
                elif entry.is_symlink() and entry.is_file():
                    # The kernel tells of it where it really is.
                    real = os.path.realpath(entry.path)
                    links = self._links.setdefault(real, [])
                    if entry.path not in links:
                        links.append(entry.path)
                    if not real.startswith(_SYSTEM):
                        self.watch(os.path.dirname(real), 0)

    def seen(self) -> tuple[set[str], set[str], set[str]]:
        """Stops watching; returns the paths that were read, that were written, and that were replaced once open."""
        read: set[str] = set()
        written: set[str] = set()
        opened: set[str] = set()
        replaced: set[str] = set()
        for number, mask, name in self._events():
            for folder in self._paths.get(number, ()):
                path = os.path.join(folder, name)
                every = {path, *self._links.get(path, ())}
                if mask & _OPEN:
                    opened |= every
                elif mask & _MOVED_TO:
                    replaced |= every & opened
                elif mask & (_MODIFY | _CLOSE_WRITE):
                    written |= every
                elif mask & _CLOSE and not mask & _IS_FOLDER:
                    read |= every
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return read, written, replaced

    def _events(self) -> Iterator[tuple[int, int, str]]:
        while self._fd >= 0:
            try:
                data = os.read(self._fd, 1 << 20)
            except BlockingIOError:
                return
            place = 0
            while place < len(data):
                number, mask, _, size = _EVENT.unpack_from(data, place)
                place += _EVENT.size + size
                yield number, mask, os.fsdecode(data[place - size : place].rstrip(b"\0"))


def _is_no_models(folder: os.DirEntry[str]) -> bool:
    return folder.name.startswith((".", "__pycache__")) or f"{folder.path}/".startswith(_SYSTEM)


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            for _, entry in zip(range(MOST_ENTRIES), entries):
                yield entry
    except OSError:
        return


def _files_in_use() -> Iterator[str]:
    """Yields the files that this process has open to read, or mapped and not as code."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, ValueError):
            path = os.readlink(f"/proc/self/fd/{name}")
            with open(f"/proc/self/fdinfo/{name}", encoding="ascii") as about:
                flags = next(int(line.split()[1], 8) for line in about if line.startswith("flags:"))
            if not flags & (os.O_WRONLY | os.O_RDWR):
                yield path
    mapped: dict[str, bool] = {}
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            words = line.rstrip("\n").split(maxsplit=5)
            if len(words) == 6 and words[5].startswith("/"):
                mapped[words[5]] = mapped.get(words[5], False) or "x" in words[1]
    yield from (path for path, is_code in mapped.items() if not is_code and not path.startswith(_SYSTEM))

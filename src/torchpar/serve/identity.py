"""Which files a model was made of, so that all processes of a service serve the same. Imports no torch.

A file is told from another by its inode, size and time: what is in it need not be read again.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import site
import stat
import sys
import sysconfig
from collections.abc import Mapping
from typing import Any, Optional

# Inode, size and nanoseconds of the last change; None for a file that is not there. Not the device, which a network's
# file system may have anew with each mount.
Look = Optional[tuple[int, ...]]
Files = Mapping[str, Look]
# What processes tell each other: for each "NAME/VERSION" its files, paths and looks shortened.
Serves = Mapping[str, Mapping[str, str]]

_DEVICES = ("/proc/", "/sys/", "/dev/")
_WEIGHTS = (".pt", ".pth", ".pt2", ".bin", ".safetensors", ".onnx", ".gguf", ".npz", ".npy", ".ckpt", ".h5", ".model")

# Files of one model version, at the most: those that are opened first are its own.
MOST = 256


def look_at(path: str) -> Look:
    """How a file is now."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def own_files(path: str) -> dict[str, Look]:
    """A model's file and its description, which may come or go."""
    return {each: look_at(each) for each in (path, os.path.splitext(path)[0] + ".json")}


def changed(files: Files) -> str:
    """The first of these files that is another by now; "" if none is."""
    return next((path for path, look in files.items() if look_at(path) != look), "")


def shortened(files: Files) -> dict[str, str]:
    """For a message to another process."""
    return {_short(path): _short(repr(look)) for path, look in files.items()}


def own_key(name: str, version: str, path: str, files: Files) -> str:
    """A model version with its own file and description, in a word: the same in all processes that serve it."""
    return f"{name}/{version} {_short(repr([files.get(each) for each in own_files(path)]))}"


def same(one: Serves, other: Serves) -> bool:
    """Whether two processes serve the same versions, of the same files as far as both have them."""
    return one.keys() == other.keys() and not any(differs(one[key], other[key]) for key in one)


def differs(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether any file that both have is another."""
    return any(other.get(path, look) != look for path, look in one.items())


class Opened:
    """The files that Python code reads while this is entered: weights, settings, modules.

    What comes with the interpreter is none of the model's, nor is what the code writes itself.
    """

    def __init__(self) -> None:
        self.files: dict[str, Look] = {}
        self.written: set[str] = set()
        self._active = False
        self._modules: set[str] = set()
        installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        caches = [os.environ.get("TORCHINDUCTOR_CACHE_DIR"), os.environ.get("TRITON_CACHE_DIR")]
        paths = {os.path.realpath(path) for path in (*installed, *site.getsitepackages(), *caches) if path}
        self._foreign = (*_DEVICES, *(f"{path}/" for path in paths if path != "/"))

    def __enter__(self) -> Opened:
        self._modules = set(sys.modules)
        self._active = True
        sys.addaudithook(self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        # Of a module that was compiled before only what was compiled is opened.
        for name in set(sys.modules) - self._modules:
            path = getattr(sys.modules[name], "__file__", None)
            if isinstance(path, str):
                self._add(path)
        self._active = False
        # What it wrote, or put away again, is no part of the model.
        self.files = {path: look for path, look in self.files.items() if path not in self.written and look_at(path)}

    def _hear(self, event: str, arguments: Any) -> None:
        if event != "open" or not self._active:
            return
        path, _, flags = arguments
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str):
            return
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            self.written.add(os.path.abspath(path))
        else:
            self._add(path)

    def _add(self, path: str) -> None:
        path = os.path.abspath(path)
        if path in self.files or len(self.files) >= MOST or path.endswith(".pyc"):
            return
        try:
            foreign = os.path.realpath(path).startswith(self._foreign)
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except (OSError, ValueError):
            return
        if regular and not foreign:
            self.files[path] = look_at(path)


def named_files(source: str) -> dict[str, Look]:
    """Weights that a Python file names, absolute or from its own folder, and those in the folders that it names.

    Libraries that are no Python, such as torch.jit.load, open them unseen.
    """
    try:
        with open(source, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found: list[str] = []
    for word in sorted(word for word in words if word.strip("./") and len(word) < 4096 and "\0" not in word):
        path = os.path.abspath(os.path.join(os.path.dirname(source), word))
        inside = []
        if os.path.isdir(path):
            with contextlib.suppress(OSError):
                inside = [os.path.join(path, name) for name in sorted(os.listdir(path))]
        found += [each for each in (path, *inside) if each.endswith(_WEIGHTS) and os.path.isfile(each)]
    return {path: look_at(path) for path in found[:MOST]}


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=6).hexdigest()

"""Identifies the files that a model was made of: all processes of a service serve the same. Imports no torch.

A file is told from another by its inode, size and time: what is in it need not be read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Optional

# Inode, size and nanoseconds of the last change; None for a file that is not there. Not the device, which a network's
# file system may have anew with each mount.
Look = Optional[tuple[int, ...]]
Files = Mapping[str, Look]
# What processes tell each other: for each "NAME/VERSION" its files, paths and looks shortened.
Serves = Mapping[str, Mapping[str, str]]


def look_at(path: str) -> Look:
    """Returns a file's inode, size and time of modification (ns); None if it cannot be read."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def own_files(path: str) -> dict[str, Look]:
    """Looks at a model's file and its description, which may come or go."""
    return {each: look_at(each) for each in (path, os.path.splitext(path)[0] + ".json")}


def changed(files: Files) -> str:
    """Returns the path of the first file that has changed since; "" if none has."""
    return next((path for path, look in files.items() if look_at(path) != look), "")


def shortened(files: Files) -> dict[str, str]:
    """Shortens paths and looks for a message to another process."""
    return {_short(path): _short(repr(look)) for path, look in files.items()}


def own_key(name: str, version: str, path: str, files: Files) -> str:
    """Returns one word for a version with its own file and description, the same in all processes that serve it."""
    return f"{name}/{version} {_short(repr([files.get(each) for each in own_files(path)]))}"


def same(one: Serves, other: Serves) -> bool:
    """Says whether two processes serve the same versions, of the same files as far as both know them."""
    return one.keys() == other.keys() and not any(differs(one[key], other[key]) for key in one)


def differs(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Says whether a file that both know is not the same."""
    return any(other.get(path, look) != look for path, look in one.items())


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=6).hexdigest()

"""Finds installed allocators, interpreters and systemd, on which plans depend, by their files alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from torchpar.facts.topology import Library
from torchpar.host.sysfs import Tree

# By the sonames of Debian's packages, each allocator's best first.
_ALLOCATORS = (
    ("tcmalloc", "libtcmalloc_minimal.so.4"),
    ("tcmalloc", "libtcmalloc.so.4"),
    ("jemalloc", "libjemalloc.so.2"),
)

# The largest allocator has less than 1 MiB; 16 MiB bound what an odd file can cost.
_LIBRARY_SIZE = 2**24

_LIBSTDCXX = "libstdc++.so.6"

# ELF e_machine → what `uname -m` says there, for a root whose kernel is not the running one (elf.h).
_ARCHITECTURES = {
    3: "i686", 21: "ppc64le", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64",
}  # fmt: skip


def read_libraries(tree: Tree) -> tuple[Library, ...]:
    """Reads the allocators in the multiarch and the plain library directories, each with its ELF machine."""
    folders = [f"usr/lib/{name}" for name in tree.names("usr/lib") if name.count("-") >= 2]
    return tuple(_read_allocators(tree, (*folders, "usr/lib64", "usr/lib")))


def _read_allocators(tree: Tree, folders: Iterable[str]) -> Iterator[Library]:
    for name, soname in _ALLOCATORS:
        for folder in folders:
            machine = read_elf_machine(tree, f"{folder}/{soname}")
            if machine is not None:
                # The name of a library that is needed stands in the file as it is; so it does where it only looks
                # needed, which costs no more than another allocator.
                data = tree.data(f"{folder}/{soname}", _LIBRARY_SIZE) or b""
                yield Library(name, f"/{folder}/{soname}", machine, _LIBSTDCXX.encode() in data)


def read_interpreters(root: Path, paths: Iterable[str]) -> dict[str, int | None]:
    """Reads the ELF machine of each interpreter; None where there is no such program, or it is a script."""
    tree = Tree(root)
    return {path: read_elf_machine(tree, path.lstrip("/")) for path in paths}


def read_interpreter_libraries(root: Path, paths: Iterable[str]) -> dict[str, tuple[Library, ...]]:
    """Reads the libraries in the `lib` of each interpreter with a libstdc++ of its own, as conda's has.

    That of a virtual environment is the one that it was made of. An interpreter of the system is not in the answer.
    """
    tree = Tree(root)
    found = {}
    for path in paths:
        prefix = tree.real_path(path.lstrip("/")).rpartition("/")[0].rpartition("/")[0]
        folder = f"{prefix}/lib"
        machine = read_elf_machine(tree, f"{folder}/{_LIBSTDCXX}")
        if prefix not in ("", "usr") and machine is not None:
            own = Library("libstdc++", f"/{folder}/{_LIBSTDCXX}", machine)
            found[path] = (own, *_read_allocators(tree, (folder,)))
    return found


def read_elf_machine(tree: Tree, path: str) -> int | None:
    """Reads e_machine of an ELF file (elf(5)); None for anything else."""
    head = tree.data(path, 20)
    if head is None or len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    return int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")


def read_arch(tree: Tree) -> str | None:
    """Reads the architecture of a root's own programs."""
    for path in ("usr/bin/python3", "bin/sh", "usr/bin/env"):
        machine = read_elf_machine(tree, path)
        if machine is not None:
            return _ARCHITECTURES.get(machine)
    return None


def read_systemd_version(tree: Tree) -> int | None:
    """Reads systemd's version, by the name of its shared library (libsystemd-shared-257.so)."""
    for folder in ("usr/lib/systemd", *(f"usr/lib/{name}/systemd" for name in tree.names("usr/lib") if "-" in name)):
        for name in tree.names(folder):
            match = re.match(r"libsystemd-shared-(\d+)", name)
            if match:
                return int(match[1])
    return None

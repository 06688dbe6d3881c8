"""The room on a file system: values, no reading."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Disk:
    """A file system, in bytes, as an ordinary user sees it; `inodes` are the files that fit, None where any number."""

    size: int
    free: int
    inodes: int | None
    free_inodes: int
    read_only: bool = False

"""Finds when a job has saved last: by the files in its folder that are named as checkpoints are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torchpar.host.reading import NotReadableError, Reader

# PyTorch, Lightning, safetensors; torch.distributed.checkpoint writes .distcp by each rank, and .metadata last, without
# collectives each rank its own, as __0.metadata.
_SHARD, _METADATA = ".distcp", ".metadata"
_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", _SHARD, _METADATA)
# Of a disk that works, the kernel answers at once.
_SECONDS = 0.5
# Folders below the job's, as checkpoints/step-1000, and entries of all of them.
_DEPTH, _MOST_ENTRIES = 2, 2000
# The times of files may be by the clocks of several hosts.
_CLOCKS_SECONDS = 60


@dataclass(frozen=True)
class Checkpoint:
    """The time when the newest file of a checkpoint was written, in seconds since the epoch.

    `complete`: whether one of torch.distributed.checkpoint has come to its end; None of a single file, which does not
    tell, and where no folder has a .metadata: on a disk of this host it may be another one that writes it on its own.
    """

    written: float
    complete: bool | None = None


class Checkpoints:
    """Reads the folders of jobs; after one has not answered, none is read while it does not."""

    def __init__(self) -> None:
        self._reader = Reader(_SECONDS)

    def newest(self, folder: str) -> Checkpoint | None:
        """Returns the newest checkpoint in a folder.

        None without any, and where there is more in the folder than is looked at: the newest may be what was not.
        """
        try:
            return self._reader.do(lambda: _find_newest(self._reader.at(Path(folder))))
        except (OSError, NotReadableError):
            return None


def _find_newest(folder: Path) -> Checkpoint | None:
    """Finds the newest checkpoint in a folder and in those below it; follows no link."""
    newest: tuple[float, str] | None = None
    # When the last of their files were written, by folder.
    shards: dict[str, float] = {}
    metadata: dict[str, float] = {}
    left = _MOST_ENTRIES
    folders = [(os.fspath(folder), 0)]
    for path, depth in folders:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return None
                    if entry.is_dir(follow_symlinks=False):
                        folders += [(entry.path, depth + 1)] if depth < _DEPTH else []
                    elif entry.name.endswith(_SUFFIXES) and entry.is_file(follow_symlinks=False):
                        written = entry.stat(follow_symlinks=False).st_mtime
                        newest = max(newest or (written, path), (written, path))
                        if entry.name.endswith(_SHARD):
                            shards[path] = max(written, shards.get(path, written))
                        elif entry.name.endswith(_METADATA):
                            metadata[path] = max(written, metadata.get(path, written))
        except OSError:
            # One that has just gone, or that this user may not read.
            continue
    if newest is None:
        return None
    written, path = newest
    is_told = bool(metadata) and path in shards
    return Checkpoint(written, metadata.get(path, 0.0) >= shards[path] - _CLOCKS_SECONDS if is_told else None)

"""Finds when a job has saved last: by the files in its folder that are named as checkpoints are."""

from __future__ import annotations

import os
from pathlib import Path

from torchpar.host.reading import NotReadableError, Reader

# PyTorch, Lightning, safetensors; torch.distributed.checkpoint writes .distcp, and .metadata last.
_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".distcp", ".metadata")
# Of a disk that works, the kernel answers at once.
_SECONDS = 0.5
# Folders below the job's, as checkpoints/step-1000, and entries of all of them.
_DEPTH, _MOST_ENTRIES = 2, 2000


class Checkpoints:
    """Reads the folders of jobs; after one has not answered, none is read while it does not."""

    def __init__(self) -> None:
        self._reader = Reader(_SECONDS)

    def newest(self, folder: str) -> float | None:
        """Returns when the newest checkpoint in a folder was written, in seconds since the epoch.

        None without any, and where there is more in the folder than is looked at: the newest may be what was not.
        """
        try:
            return self._reader.do(lambda: _find_newest(self._reader.at(Path(folder))))
        except (OSError, NotReadableError):
            return None


def _find_newest(folder: Path) -> float | None:
    """Finds the time of the newest checkpoint in a folder and in those below it; follows no link."""
    newest: float | None = None
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
                        newest = written if newest is None else max(newest, written)
        except OSError:
            # One that has just gone, or that this user may not read.
            continue
    return newest

"""Reads which OpenMP runtimes processes have loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torchpar.host.proc import ProcReader, TooLateError, TooLongError
from torchpar.host.reading import NotReadableError, Reader

# GNU's, Intel's and LLVM's; wheels add a checksum to the name.
_RUNTIME = re.compile(rb"/(lib(?:gomp|iomp5|omp)(?:-[0-9a-f]+)?\.so[0-9.]*)\n")


def read_openmp(pids: Iterable[int], seconds: float, proc: str = "/proc") -> Mapping[int, tuple[str, ...]]:
    """Reads the names of the OpenMP libraries of processes; nothing of one that cannot be read in so many seconds."""
    found: dict[int, tuple[str, ...]] = {}

    def read() -> None:
        reader = ProcReader(seconds, proc)
        for pid in pids:
            names: dict[str, None] = {}
            try:
                for lines in reader.pieces(f"{pid}/maps", b"\n"):
                    names |= dict.fromkeys(match[1].decode() for match in _RUNTIME.finditer(lines))
            except (OSError, TooLongError):
                continue
            found[pid] = tuple(names)

    try:
        Reader(seconds).do(read)
    except (TooLateError, NotReadableError):
        pass
    return dict(found)

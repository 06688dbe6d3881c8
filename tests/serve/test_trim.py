"""Memory that a flood took is given back, whichever allocator the service has, and no time is spent where none is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchpar.serve.trim import Trimmer

MIB = 1 << 20
SOURCE = Path(__file__).parents[2] / "src"

# Small pieces between which larger ones are freed: no allocator gives those back by itself.
_TAKE = """
from torchpar.serve.trim import Trimmer, read_resident
trimmer = Trimmer()
first = read_resident()
trimmer()
pieces = [bytearray(3000) for _ in range(100_000)]
kept = pieces[::1000]
most = read_resident()
del pieces
trimmer()
print(first, most, read_resident())
"""


def libraries() -> list[str]:
    found: list[str] = [""]
    for folder in Path("/usr/lib").glob("*-linux-gnu"):
        found += [str(path) for name in ("libjemalloc.so.2", "libtcmalloc_minimal.so.4") for path in folder.glob(name)]
    return found


@pytest.mark.subprocess
@pytest.mark.parametrize("library", libraries(), ids=lambda path: Path(path).name or "glibc")
def test_what_was_needed_once_is_given_back(library: str) -> None:
    environment = {**os.environ, "LD_PRELOAD": library, "PYTHONMALLOC": "malloc", "PYTHONPATH": str(SOURCE)}
    # As torchpar sets it: kept for 30 seconds, and what is to be kept for ever else.
    environment["MALLOC_CONF"] = "dirty_decay_ms:30000,muzzy_decay_ms:-1"
    told = subprocess.run(
        [sys.executable, "-c", _TAKE], env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    first, most, last = map(int, told.stdout.split())
    assert most > first + 200 * MIB
    assert last < first + 40 * MIB


def test_memory_that_is_in_use_is_looked_for_again() -> None:
    #              first, little more, a flood that goes on,     is over,   and nothing more to give back
    sizes = iter(MIB * size for size in (100, 101, 300, 290, 295, 294, 294, 110, 102))
    released: list[None] = []
    trimmer = Trimmer(lambda: next(sizes), lambda: released.append(None))
    for _ in range(6):
        trimmer()
    assert len(released) == 3

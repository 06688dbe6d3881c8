"""Writes and reads what the processes of a service tell of themselves: files in the service's RuntimeDirectory=.

`rank-N.json` has what holds in a process once torch is imported. `progress` has how far training is: a part for each
rank, in which its last sixteen totals stand in slots of fixed size, the next one in the place of the oldest. Each slot
has a checksum, so whoever reads while a rank writes has the others whole; nobody waits for anybody.

Whatever runs as the service's user can write there: what is read is one of these values or nothing. Runs under any
Python from 3.9 on.
"""

from __future__ import annotations

import binascii
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from operator import itemgetter, le
from typing import Any

from torchpar.contract.typed_json import ShapeError, parse_json, shape

VERSION = 1

RANK_FILE = re.compile(r"rank-[0-9]{1,9}\.json")
# A report has some 200 bytes.
MOST_RANK_BYTES = 4096


@dataclass(frozen=True)
class RankReport:
    """The state of one rank's process; `cpus` is a list in the kernel's syntax.

    processes are those of an inference service that share the rank's CPUs and threads, of which this is the first; why
    there are so many is in words. world_size is torchrun's WORLD_SIZE; None where it has set none.
    """

    pid: int
    local_rank: int
    torch: str
    threads: int
    interop_threads: int
    cpus: str
    allocator: str
    processes: int = 1
    why: str = ""
    world_size: int | None = None


@dataclass(frozen=True)
class _Version:
    version: int


def rank_file(local_rank: int) -> str:
    """Makes the name of a rank's file."""
    return f"rank-{local_rank}.json"


def make_rank_json(report: RankReport) -> str:
    """Makes the text of a rank's file."""
    return json.dumps({"version": VERSION, **asdict(report)}, sort_keys=True) + "\n"


def parse_rank_json(text: bytes) -> RankReport | None:
    """Parses the report in a rank's file; None for anything else."""
    try:
        data = parse_json(text)
        return shape(data, RankReport) if shape(data, _Version).version == VERSION else None
    except ShapeError:
        return None


PROGRESS_FILE = "progress"
# With one every two seconds, the rates are those of the last half a minute.
SLOTS = 16
MOST_RANKS = 256

# The first four bytes, the checksum of the rest, then the fields of Progress in their order. What a later version adds
# has room behind them.
_MAGIC = b"tpr1"
_FIELDS = struct.Struct("<IIdQQQddQQI?")
_PID, _RANK, _TIME, _GROWING = 0, 1, 2, slice(2, 10)
_BODY_BYTES = 120
_SLOT = struct.Struct(f"<4sI{_BODY_BYTES}s")
_RANK_BYTES = SLOTS * _SLOT.size

# Of any number: a float has all below it.
_MOST = 2.0**53


@dataclass(frozen=True)
class Progress:
    """The totals of one process at `time`, the kernel's monotonic clock; see Meter in runtime/patches/progress.py.

    `time`, `waited` and `fetching` are in seconds.
    """

    pid: int
    local_rank: int
    time: float
    steps: int
    samples: int
    batches: int
    waited: float
    fetching: float
    fetched: int
    iterators: int
    workers: int
    pageable: bool


@dataclass(frozen=True)
class RankProgress:
    """The oldest and the latest totals of a rank that are known; the same where there is one."""

    first: Progress
    last: Progress


def make_slot(progress: Progress, number: int) -> tuple[int, bytes]:
    """Makes the bytes of the totals that a process tells as its `number`th, and finds their offset.

    Raises ValueError where there is none.
    """
    if not 0 <= progress.local_rank < MOST_RANKS:
        raise ValueError(f"rank {progress.local_rank} has no place among {MOST_RANKS}")
    try:
        body = _FIELDS.pack(*vars(progress).values()).ljust(_BODY_BYTES, b"\0")
    except struct.error as error:
        raise ValueError(str(error)) from None
    place = progress.local_rank * _RANK_BYTES + number % SLOTS * _SLOT.size
    return place, _SLOT.pack(_MAGIC, binascii.crc32(body), body)


def progress_bytes(ranks: int) -> int:
    """Returns the greatest length of the file of so many ranks."""
    return min(ranks, MOST_RANKS) * _RANK_BYTES


def parse_progress(data: bytes) -> tuple[RankProgress, ...]:
    """Parses what each rank has told, of its latest process alone; ranks that have told nothing are left out."""
    parts = (data[at : at + _RANK_BYTES] for at in range(0, min(len(data), progress_bytes(MOST_RANKS)), _RANK_BYTES))
    ranks = (_latest(list(_slots(part, number))) for number, part in enumerate(parts))
    return tuple(rank for rank in ranks if rank)


# A tuple with the fields of Progress: of many that torchpard looks at, few become values.
_Values = tuple[Any, ...]


def _slots(part: bytes, local_rank: int) -> Iterator[_Values]:
    """Yields the totals that stand in the part of a rank, in the order of their places."""
    for magic, checksum, body in _SLOT.iter_unpack(part[: len(part) // _SLOT.size * _SLOT.size]):
        if magic == _MAGIC and binascii.crc32(body) == checksum:
            values = _FIELDS.unpack_from(body)
            if values[_RANK] == local_rank and 0 <= values[_TIME] < _MOST:
                yield values


def _latest(told: list[_Values]) -> RankProgress | None:
    """Finds the totals of the process that told last, from where on they only grow, as they do in one process."""
    if not told:
        return None
    told.sort(key=itemgetter(_TIME), reverse=True)
    first = last = told[0]
    # Two processes of a service may tell as the same rank, by turns.
    for earlier in (values for values in told[1:] if values[_PID] == last[_PID]):
        # NaN is not less, nor more.
        if not all(map(le, earlier[_GROWING], first[_GROWING])):
            break
        first = earlier
    return RankProgress(Progress(*first), Progress(*last)) if _are_sound(first) and _are_sound(last) else None


def _are_sound(values: _Values) -> bool:
    """Says whether all are finite and in range; NaN is in none."""
    return all(0 <= value < _MOST for value in values)

"""What the processes of a service tell of themselves, both directions: files in the service's RuntimeDirectory=.

`rank-N.json` has what holds in a process once torch is imported.

Whatever runs as the service's user can write there: what is read is one of these values or nothing. Runs under any
Python from 3.9 on.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from torchpar.contract.typed_json import ShapeError, parse_json, shape

VERSION = 1

RANK_FILE = re.compile(r"rank-[0-9]{1,9}\.json")
# A report has some 200 bytes.
MOST_RANK_BYTES = 4096


@dataclass(frozen=True)
class RankReport:
    """What holds in the process of a rank; `cpus` is a list in the kernel's syntax."""

    pid: int
    local_rank: int
    torch: str
    threads: int
    interop_threads: int
    cpus: str
    allocator: str


@dataclass(frozen=True)
class _Version:
    version: int


def rank_file(local_rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{local_rank}.json"


def make_rank_json(report: RankReport) -> str:
    """The text of the file."""
    return json.dumps({"version": VERSION, **asdict(report)}, sort_keys=True) + "\n"


def parse_rank_json(text: bytes) -> RankReport | None:
    """The report of a file; None for anything else."""
    try:
        data = parse_json(text)
        return shape(data, RankReport) if shape(data, _Version).version == VERSION else None
    except ShapeError:
        return None

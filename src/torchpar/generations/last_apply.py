"""Keeps whether the last `torchpar apply` of this boot has done its work, and why not.

In /run: on a full disk it fails, too.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from torchpar.contract.errors import BusyError, printable
from torchpar.contract.typed_json import ShapeError, parse_json, shape
from torchpar.generations.restart import NOT_RUNNING
from torchpar.host.files import replace_text
from torchpar.host.reading import NotReadableError, Reader

FILE = Path("/run/torchpar-last-apply.json")
# Of an error: its lines, and the letters of one.
_MOST_LINES, _MOST = 20, 1000


@dataclass(frozen=True)
class LastApply:
    """The last apply: did it succeed, when did it end, in seconds since the epoch, and the lines of its error."""

    success: bool
    timestamp_seconds: float
    problem: tuple[str, ...] = ()


@contextlib.contextmanager
def noted(file: Path = FILE) -> Iterator[None]:
    """Keeps whether what is done in it ends without an error. One that another apply kept out has not been tried."""
    try:
        yield
    except BusyError:
        raise
    except BaseException as error:
        lines = tuple(printable(line, _MOST) for line in str(error).splitlines()[:_MOST_LINES])
        _write(file, LastApply(False, time.time(), lines))
        raise
    _write(file, LastApply(True, time.time()))


def read_last_apply(file: Path = FILE) -> LastApply | None:
    """Reads it; None where there was none in this boot."""
    try:
        return shape(parse_json(Reader().bytes(file, 2**16)), LastApply)
    except (OSError, NotReadableError, ShapeError):
        return None


def find_failed_services(number: int, file: Path = FILE) -> str:
    """Finds what the apply that put this generation in force has said of services that do not run since; "" if none."""
    last = read_last_apply(file)
    if last is None or not any(line.startswith(f"generation {number} is in force") for line in last.problem):
        return ""
    return next((line.partition(";")[0] for line in last.problem if line.startswith(NOT_RUNNING)), "")


def _write(file: Path, last: LastApply) -> None:
    # What was said before is not so any more, and an old answer is worse than none.
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        replace_text(file, json.dumps(asdict(last)) + "\n")

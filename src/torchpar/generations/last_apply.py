"""Keeps whether the last `torchpar apply` of this boot has done its work, in /run: on a full disk it fails, too."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from torchpar.contract.errors import BusyError
from torchpar.contract.typed_json import ShapeError, parse_json, shape
from torchpar.host.files import replace_text
from torchpar.host.reading import NotReadableError, Reader

FILE = Path("/run/torchpar-last-apply.json")


@dataclass(frozen=True)
class LastApply:
    """The last apply: did it succeed, and when did it end, in seconds since the epoch."""

    success: bool
    timestamp_seconds: float


@contextlib.contextmanager
def noted(file: Path = FILE) -> Iterator[None]:
    """Keeps whether what is done in it ends without an error. One that another apply kept out has not been tried."""
    try:
        yield
    except BusyError:
        raise
    except BaseException:
        _write(file, success=False)
        raise
    _write(file, success=True)


def read_last_apply(file: Path = FILE) -> LastApply | None:
    """Reads it; None where there was none in this boot."""
    try:
        return shape(parse_json(Reader().bytes(file, 4096)), LastApply)
    except (OSError, NotReadableError, ShapeError):
        return None


def _write(file: Path, *, success: bool) -> None:
    # What was said before is not so any more, and an old answer is worse than none.
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        replace_text(file, json.dumps(asdict(LastApply(success, time.time()))) + "\n")

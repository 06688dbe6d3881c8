"""What torchpar says reaches the journal, with its priority, whatever a job has done to its streams and loggers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchpar

pytestmark = pytest.mark.subprocess

SAY = r"""
import io, logging, sys
from torchpar.contract.journal import Priority, say, write
logging.disable()
sys.stderr = io.StringIO()
say("model m: unbatched")
say("it differs\nMESSAGE=forged", Priority.ERROR)
say("it is late", Priority.WARNING)
write(["a \udcff line of torchpard's"], Priority.WARNING)
try:
    raise KeyError("a bug")
except KeyError as error:
    say("a batch was not computed", Priority.ERROR, error=error)
"""

LINES = [
    (6, "torchpar: model m: unbatched"),
    (3, "torchpar: it differs"),
    (3, "torchpar: MESSAGE=forged"),
    (4, "torchpar: it is late"),
    (4, "a \\udcff line of torchpard's"),
    (3, "torchpar: a batch was not computed"),
    (3, "torchpar: Traceback (most recent call last):"),
    (3, "torchpar: KeyError: 'a bug'"),
]


@pytest.mark.parametrize("journal", [True, False], ids=["the journal", "a terminal"])
def test_every_line_has_its_priority_where_the_journal_reads_it(tmp_path: Path, journal: bool) -> None:
    with open(tmp_path / "out", "wb") as out:
        about = os.fstat(out.fileno())
        stream = f"{about.st_dev}:{about.st_ino if journal else 0}"
        source = Path(torchpar.__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(source), "JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", SAY], stderr=out, env=environment, check=True)
    # Places, which begin with blanks: Python 3.13 has the line of the source, too.
    said = [line for line in (tmp_path / "out").read_text().splitlines() if "torchpar:   " not in line]
    assert said == [f"<{priority}>{line}" if journal else line for priority, line in LINES]


def test_nobody_listens_and_nothing_ends() -> None:
    """A job goes on without its standard error."""
    source = Path(torchpar.__file__).parent.parent
    code = "import os; os.close(2)\nfrom torchpar.contract.journal import say\nsay('x')\nprint('on')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(source)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "on\n"

"""What the server logs reaches the journal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchpar

pytestmark = pytest.mark.subprocess

LOG = """
import logging
from torchpar.serve.journal import log_to_journal
log_to_journal(), log_to_journal()
log = logging.getLogger("torchpar.serve")
log.info("model %s: unbatched", "m")
log.error("it differs\\nMESSAGE=forged")
"""


@pytest.mark.parametrize(
    ("journal", "wanted"),
    [
        (True, "<6>torchpar: model m: unbatched\n<3>torchpar: it differs\n<3>torchpar: MESSAGE=forged\n"),
        (False, "torchpar: model m: unbatched\ntorchpar: it differs\ntorchpar: MESSAGE=forged\n"),
    ],
    ids=["the journal", "a terminal"],
)
def test_every_line_has_its_priority_where_the_journal_reads_it(tmp_path: Path, journal: bool, wanted: str) -> None:
    """Informative lines too, each once, though nobody configured the logger."""
    with open(tmp_path / "out", "wb") as out:
        about = os.fstat(out.fileno())
        stream = f"{about.st_dev}:{about.st_ino if journal else 0}"
        source = Path(torchpar.__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(source), "JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", LOG], stderr=out, env=environment, check=True)
    assert (tmp_path / "out").read_text() == wanted

"""The journal, as a test of the server has it."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


@pytest.fixture
def journal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """The lines that have come to standard error since it was asked last, with their priorities as for the journal."""
    about = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
    return lambda: capfd.readouterr().err

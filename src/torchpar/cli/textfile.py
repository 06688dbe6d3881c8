"""Writes metrics for node_exporter's textfile collector, where the conf has them go there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from torchpar.contract.errors import TorchparError
from torchpar.host.files import replace_text
from torchpar.host.inputs import load


def configured_metrics() -> str:
    """Reads Metrics= of the conf; its default where the conf is broken, of which metrics must tell."""
    try:
        return load().config.host.metrics
    except TorchparError:
        return "textfile"


def write_textfile(file: Path, render: Callable[[], str]) -> None:
    """Writes a file, whole or not at all; takes it away where Metrics= has metrics go elsewhere.

    What was written before would be shown for ever. Raises TorchparError where that fails.
    """
    try:
        if configured_metrics() == "textfile":
            replace_text(file, render())
        else:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
    except OSError as error:
        raise TorchparError(f"{file}: {error.strerror}") from None

"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class FilePath(click.Path):
    """A path as it is written. click's own looks at the file at once, which may be on a disk that does not answer."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the path, without a look at it."""
        return Path(value)

"""What commands print: JSON on stdout as the whole answer, tables, and warnings on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click


def echo_json(data: Any) -> None:
    """Print data as JSON."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def echo_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns as wide as their longest cell; the header is bold on a terminal."""
    table = [[cell or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *table, strict=True)]
    for number, row in enumerate([list(header), *table]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def shorten(cpulist: str) -> str:
    """A cpulist that leaves room for the other columns; `torchpar explain` and JSON have all of it."""
    return cpulist if len(cpulist) <= 32 else cpulist[:30].rpartition(",")[0] + ",..."


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on stderr."""
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)

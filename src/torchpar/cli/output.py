"""Prints for the commands: JSON on stdout as the whole answer, tables, and warnings on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

from torchpar.contract.errors import TorchparError, printable
from torchpar.contract.journal import Priority, mark

_LONGEST = 1000  # of a line for people, in letters

# DEL and the second set of control characters, soft hyphens, marks of direction, line ends of any kind, halves of
# letters, and what has no meaning yet or never.
_NOT_SHOWN = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]"
)


def echo_json(data: Any) -> None:
    """Prints data as JSON."""
    # Another encoding would not escape letters as JSON does.
    readable = getattr(sys.stdout, "encoding", "").lower() == "utf-8"
    click.echo(to_json(data, ensure_ascii=not readable))


def to_json(data: Any, *, ensure_ascii: bool, indent: int | None = 2) -> str:
    """JSON that a terminal can show too: what is no letter is escaped, of which JSON itself asks that below U+0020."""
    text = json.dumps(data, indent=indent, ensure_ascii=ensure_ascii)
    return _NOT_SHOWN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def echo_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows in columns as wide as their longest cell; the header is bold on a terminal.

    On a terminal that is narrower than the table, each row is lines of its own: the first cell, and the others by name.
    """
    table = [[printable(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *table, strict=True)]
    if sum(widths) + 2 * len(widths) > (terminal_width() or sys.maxsize):
        for row in table:
            cells = [f"{name.lower()} {cell}" for name, cell in zip(header[1:], row[1:], strict=True) if cell != "-"]
            echo_block(row[0], ["; ".join(cells)], column=widths[0])
        return
    for number, row in enumerate([list(header), *table]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def echo_block(head: str, lines: Sequence[str], *, mark: bool = False, column: int = 0) -> None:
    """Prints lines that belong to one thing; `mark`: something is wrong with it, and it begins with "!".

    On a terminal they stand in the column behind the head, as wide as it is; elsewhere they are one line, which a
    program can search. `column` is the widest head of all that stand below each other, in letters.
    """
    lines = [brief(line) for line in lines]
    sign = click.style("!", fg="red", bold=True) if mark else " "
    head = printable(head)
    name = f"{click.style(head, bold=True)}{' ' * (max(column, len(head)) - len(head))}  " if head or column else ""
    width = terminal_width()
    if width is None:
        click.echo(f"{sign} {name}{'; '.join(lines)}")
        return
    indent = max(column, len(head)) + 2 if name else 0
    if indent > width // 2:
        # A long name has a line for itself.
        click.echo(f"{sign} {click.style(head, bold=True)}")
        sign, name, indent = " ", "", 2
    for line in lines:
        # What the column would break, such as a path, could not be copied: it begins further left.
        fits = name or len(max(line.split(), key=len, default="")) <= width - 2 - indent
        before = indent if fits else min(2, indent)
        for text in wrap(line, width - 2 - before):
            click.echo(f"{sign} {name or ' ' * before}{text}")
            sign, name = " ", ""


def echo_behind(before: str, text: str) -> None:
    """Prints a text behind the beginning of its line; on a terminal all lines of the text begin below each other."""
    width, indent = terminal_width(), len(click.unstyle(before))
    first, *more = [brief(text)] if width is None else wrap(brief(text), width - indent) or [""]
    click.echo("\n".join([f"{before}{first}", *(f"{' ' * indent}{line}" for line in more)]))


def wrap(line: str, width: int) -> list[str]:
    """Breaks a line at blanks, for so many letters."""
    return textwrap.wrap(line, max(20, width), break_on_hyphens=False)


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Returns how many letters a line of the terminal has; None where the stream, stdout if none is named, is none.

    $COLUMNS says it for any.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and len(columns) < 6 and int(columns):
        return int(columns)
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or None
    return None


def count(number: int, what: str) -> str:
    """Words a number of things: "1 core", "2 cores"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def shorten(cpulist: str, most: int = 32) -> str:
    """Shortens a cpulist to leave room for the other columns; `torchpar explain` and JSON have all of it."""
    return cpulist if len(cpulist) <= most else f"{cpulist[: most - 2].rpartition(',')[0]},..."


def brief(text: str) -> str:
    """Shortens a line to what a terminal can show; `--json` and `torchpar render` have all of it."""
    line = printable(text[:_LONGEST], _LONGEST)
    return line if len(text) <= _LONGEST else f"{line}... ({len(text):,} characters)"


def warn(warnings: Iterable[str]) -> None:
    """Prints warnings on stderr."""
    for warning in warnings:
        _say(Priority.WARNING, f"warning: {warning}")


def warn_of(error: TorchparError) -> None:
    """Prints an error on stderr, each of its lines with the name of the program."""
    for line in str(error).splitlines():
        _say(Priority.ERROR, f"torchpar: {line}")


def _say(priority: Priority, line: str) -> None:
    """Says a line to people: on a terminal as wide as that is, in the journal with its priority (sd-daemon(3))."""
    before, line = mark(priority), brief(line)
    width = None if before else terminal_width(sys.stderr)
    # A path that is longer than a line stays whole, so that it can be copied.
    lines = [line] if width is None else textwrap.wrap(
        line, max(20, width), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    click.echo("\n".join(before + text for text in lines), err=True)

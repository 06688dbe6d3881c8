"""`torchpar fleet report`: all hosts on one page for a browser, which needs nothing beside it."""

from __future__ import annotations

import base64
import functools
import hashlib
import sys
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import click
import jinja2

from torchpar.cli.fleet_hosts import Fleet, fleet_options, plan_fleet
from torchpar.cli.fleet_output import echo_fleet_json
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import TorchparError, printable
from torchpar.contract.paths import TEMPLATES
from torchpar.fleet.host import HostPlan, Summary

# In a tree that is not installed they are beside the package.
_FILES = (TEMPLATES, str(Path(__file__).parents[2] / "fleet"))

_COLUMNS = ("Host", "Cores", "GPUs", "Quality", "Services", "Warnings", "Changes", "Restarts", "Generation")

_LONGEST = 1000  # of a line, in letters


class _Row(NamedTuple):
    """A host on the page: `words` are what it is found by, and `key` the name of its details, which are packed where
    no host before it has the same."""

    about: Summary
    words: str
    cells: tuple[str, ...]
    key: str
    packed: str


@click.command(short_help="Print a page of all hosts for a browser.")
@fleet_options
@click.option("--output", type=FilePath(), help="Write the page to FILE.")
def report(folder: Path, conf: Path | None, output: Path | None, as_json: bool) -> int:
    """Print a page for a browser: what is wrong, and every host with its picture, services and changes.

    It is one file that loads nothing. What the facts and the conf have in them is text on it, and runs nowhere.
    """
    fleet = plan_fleet(folder, conf, pictures=not as_json)
    status = fleet.overview.status()
    if as_json:
        echo_fleet_json(fleet, status)
        return status
    try:
        # What is no letter, such as half of one, is written as a reference to it.
        kept = output.open("w", encoding="utf-8", errors="xmlcharrefreplace") if output else nullcontext(sys.stdout)
        with kept as file:
            for piece in _page(fleet):
                file.write(piece)
    except OSError as error:
        raise TorchparError(f"{output}: {error.strerror}") from None
    return status


def _page(fleet: Fleet) -> Iterator[str]:
    style, script = _text("report.css"), _text("report.js")
    each = fleet.summaries
    yield from _environment().get_template("report.html.j2").generate(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        overview=fleet.overview,
        summaries=each,
        columns=_COLUMNS,
        totals=(
            ("Services", sum(one.services for one in each)),
            ("Hosts without a plan", sum(1 for one in each if one.errors)),
            ("Hosts with warnings", sum(1 for one in each if one.warnings)),
            ("Hosts that would change", sum(1 for one in each if one.changed)),
            ("Services to restart", sum(one.restarts for one in each)),
        ),
        hosts=_rows(fleet),
    )


def _rows(fleet: Fleet) -> Iterator[_Row]:
    template = _environment().get_template("details.html.j2")
    keys: dict[bytes, str] = {}
    for host in fleet:
        about = host.summary
        picture = zlib.decompress(host.picture).decode() if host.picture else ""
        text = template.render(about=about, services=host.services, changes=host.changes, picture=picture)
        details = text.encode("utf-8", "xmlcharrefreplace")
        digest = hashlib.sha256(details).digest()
        packed = "" if digest in keys else base64.b64encode(zlib.compress(details)).decode()
        key = keys.setdefault(digest, f"details-{len(keys)}")
        yield _Row(about, _words(host), _cells(about), key, packed)


def _words(host: HostPlan) -> str:
    return " ".join((host.summary.name, host.summary.file, *(row.service for row in host.services)))


def _cells(about: Summary) -> tuple[str, ...]:
    if about.errors:
        return ("",) * (len(_COLUMNS) - 1)
    quality = "" if about.quality is None else f"{about.quality:.2f}"
    counts = (about.services, len(about.warnings), about.changed, about.restarts)
    generation = "" if about.generation is None else str(about.generation)
    return (str(about.cores), str(about.gpus), quality, *map(str, counts), generation)


def _hash(text: str) -> str:
    """Returns the hash by which a Content-Security-Policy allows a text (CSP level 2)."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(name: str) -> str:
    loader = _environment().loader
    assert loader is not None  # _environment() gives it one
    text: str = loader.get_source(_environment(), name)[0]
    return text


@functools.cache
def _environment() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["line"] = lambda text: printable(str(text), _LONGEST)
    return environment

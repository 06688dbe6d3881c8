"""Plans all hosts of a fleet from their facts, in as many processes as there are CPUs; memory does not grow with them.

What is looked at together is kept; the services and changes of each host wait in a file until they are printed.
"""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import click

from torchpar.cli.paths import FilePath
from torchpar.conf.parse import read_matches
from torchpar.conf.settings import MatchSettings
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ExitStatus, FactsError, TorchparError, printable
from torchpar.fleet.findings import Overview, look_at
from torchpar.fleet.host import HostPlan, Planner, Summary
from torchpar.host.inputs import load_export, read_conf

F = TypeVar("F", bound=Callable[..., Any])

_MOST_FILES = 100_000

# Of fewer hosts it is done before processes have started, or a bar has been seen.
_FEW = 8
_SHOWN = 100

_CHUNK = 8


def fleet_options(command: F) -> F:
    """Adds the options that all commands on a fleet have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--config", "conf", type=FilePath(), help="Read FILE as the only conf, or DIR as /etc."),
        click.option("--facts", "folder", type=FilePath(), required=True, help="Read the facts of all hosts in DIR."),
    ):
        command = option(command)
    return command


class Fleet:
    """All planned hosts: an overview, and one after the other, by name."""

    def __init__(self, plans: Iterable[HostPlan], files: list[tuple[str, Any]]) -> None:
        self._file = tempfile.TemporaryFile()
        self.summaries: list[Summary] = []
        places = []
        for plan in plans:
            self.summaries.append(plan.summary)
            places.append((plan.summary.name, plan.summary.file, self._file.tell()))
            pickle.dump(plan, self._file)
        self._places = [place for _, _, place in sorted(places)]
        self.overview: Overview = look_at(self.summaries, files)

    def __iter__(self) -> Iterator[HostPlan]:
        """Yields the hosts; those whose facts cannot be read come first."""
        for place in self._places:
            self._file.seek(place)
            plan: HostPlan = pickle.load(self._file)  # noqa: S301  # written above, into a file without a name
            yield plan


def plan_fleet(folder: Path, conf: Path | None, *, pictures: bool = False) -> Fleet:
    """Plans every host with facts in a folder, or below it. `conf` is a file or a folder in the place of /etc.

    Raises ConfigError when the conf cannot be read at all, and FactsError where there are no facts.
    """
    files = read_conf(conf)
    paths = find_facts(folder)
    planner = Planner(files, pictures=pictures)
    matches = name_matches(files)
    plans = _plan_all(planner, folder, paths)
    if sys.stderr.isatty() and len(paths) >= _SHOWN:
        with click.progressbar(plans, len(paths), label="planning", file=sys.stderr) as shown:
            return Fleet(shown, matches)
    return Fleet(plans, matches)


def name_matches(files: Sequence[ConfFile]) -> list[tuple[str, MatchSettings | None]]:
    """Names each file of the conf, with its [Match]."""
    return [(file.path, match) for file, match in zip(files, read_matches(files), strict=True)]


def find_facts(folder: Path) -> list[str]:
    """Finds all files but hidden ones, by their paths below the folder, sorted. Raises FactsError."""
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise FactsError(f"{printable(str(error.filename))}: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += (os.path.relpath(os.path.join(parent, name), folder) for name in names if not name.startswith("."))
        if len(found) > _MOST_FILES:
            raise FactsError(f"{printable(str(folder))}: has more than {_MOST_FILES} files")
    if not found:
        raise FactsError(f"{printable(str(folder))}: has no facts in it; on each host: torchpar facts")
    return sorted(found)


def _plan_all(planner: Planner, folder: Path, paths: list[str]) -> Iterator[HostPlan]:
    """Yields the hosts in the order of the paths. Raises TorchparError when a process is killed."""
    workers = min(len(os.sched_getaffinity(0)), -(-len(paths) // _CHUNK))
    if len(paths) <= _FEW or workers < 2:
        yield from (_plan(planner, folder, path) for path in paths)
        return
    pool = concurrent.futures.ProcessPoolExecutor(workers, initializer=_Worker.start, initargs=(planner, folder))
    try:
        yield from pool.map(_Worker.plan, paths, chunksize=_CHUNK)
    except BrokenProcessPool:
        raise TorchparError("a process that planned hosts was killed, perhaps for want of memory; try again") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """A process that plans hosts."""

    _planner: Planner
    _folder: Path

    @classmethod
    def start(cls, planner: Planner, folder: Path) -> None:
        """Keeps what all hosts have in common. Who interrupts the command ends it, and with it this process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cls._planner, cls._folder = planner, folder

    @classmethod
    def plan(cls, path: str) -> HostPlan:
        """Plans one host."""
        return _plan(cls._planner, cls._folder, path)


def _plan(planner: Planner, folder: Path, path: str) -> HostPlan:
    file = printable(path, 200)
    try:
        export = load_export(folder / path)
    except FactsError as error:
        return HostPlan(Summary(file, status=error.exit_status, errors=(str(error),)))
    try:
        return planner.plan(file, export)
    except Exception as error:  # a bug: the other hosts are planned all the same
        *_, frame = traceback.extract_tb(error.__traceback__)
        where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        bug = printable(f"{type(error).__name__}: {error}", 200)
        text = f"{file}: cannot be planned, which is a bug of torchpar: {bug} ({where})"
        return HostPlan(Summary(file, status=ExitStatus.UNKNOWN, errors=(text,)))

"""`torchpar logs NAME`: the journal of one service: what it printed, and what systemd and torchpard say of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import click

from torchpar.cli.names import ServiceName
from torchpar.contract.errors import StoreError, SystemdError, TorchparError
from torchpar.contract.unit_names import is_called, no_such_service, shorten, unit_name
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.job_folder import read_rank_reports
from torchpar.host.journal import has_entries

_UNIT = re.compile(r"(?:torchpar-)?(?P<title>(?:train|infer)@[^/]+?|run-[^/]+?)(?:\.service)?")


@click.command(short_help="Show the journal of a service or job.")
@click.argument("name", type=ServiceName())
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(0), default=None, help="The last N lines; default: 100, 10 with -f.")
@click.option("--rank", type=click.IntRange(0), default=None, help="Only what the process of this rank wrote.")
@click.option("--since", metavar="TIME", help="From TIME on, as journalctl(1) has it: yesterday, -1h.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an entry a line.")
def logs(name: str, follow: bool, lines: int | None, rank: int | None, since: str | None, as_json: bool) -> None:
    """Show the journal of service or job NAME, also of one that has ended.

    Each line has the number of the process that wrote it, which tells the ranks of a job apart.
    """
    systemd.require_systemd()
    units = _find(name)
    argv = ["journalctl", "--quiet", f"--output={'json' if as_json else 'short'}"]
    argv += ["--follow"] if follow else []
    argv += [f"--lines={lines}"] if lines is not None else [] if follow or since else ["--lines=100"]
    argv += [f"--since={since}"] if since else []
    if rank is None:
        argv += [f"--unit={unit}" for unit in units]
    else:
        argv += _matches(units, rank)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise TorchparError(f"journalctl: {error.strerror}") from None


def _find(name: str) -> list[str]:
    """Finds the units that a name means: those in force and those that run, then those that the journal knows.

    Raises NoSuchServiceError.
    """
    known = dict.fromkeys(_known())
    units = [unit for unit in known if _is_called(unit, name)]
    match = _UNIT.fullmatch(name)
    if not units and match and has_entries(f"torchpar-{match['title']}.service"):
        # It has left the conf, or was an ad-hoc job, and has ended.
        units = [f"torchpar-{match['title']}.service"]
    if not units:
        # A plain name that nothing has any more may be one that the journal knows.
        candidates = [unit_name(kind, name) for kind in ("train", "infer")] if "/" not in name else []
        units = [unit for unit in candidates if has_entries(unit)]
    if not units:
        raise no_such_service(name, "is in force, runs or is in the journal", map(shorten, known))
    sockets = [unit.replace(".service", ".socket") for unit in units if unit.startswith("torchpar-infer@")]
    return [*units, *sockets]


def _known() -> Iterator[str]:
    try:
        active = Store().active()
        yield from (service.unit for service in (active.read().services() if active else ()))
    except StoreError:
        # The journal is there whatever the store is.
        pass
    try:
        yield from systemd.running_services()
        yield from systemd.ad_hoc_jobs()
    except SystemdError:
        return


def _is_called(unit: str, name: str) -> bool:
    kind, _, rest = shorten(unit).partition("@")
    return is_called(kind, rest, name) if rest else shorten(name) in (kind, kind.removeprefix("run-"))


def _matches(units: list[str], rank: int) -> list[str]:
    """Makes what asks for one process of a unit: others have had its number, in other boots and in this one."""
    reports = [(unit, report) for unit in units if unit.endswith(".service") for report in read_rank_reports(unit)]
    for unit, report in reports:
        if report.local_rank == rank:
            return ["--boot", f"_SYSTEMD_UNIT={unit}", f"_PID={report.pid}"]
    ranks = ", ".join(str(report.local_rank) for _, report in reports)
    there = f"it has {ranks}" if ranks else "none has told of itself: it has not imported torch, or does not run"
    raise TorchparError(f"{shorten(units[0])}: there is no rank {rank} that runs; {there}")

"""`torchpar doctor`: what on this host costs speed or breaks jobs, and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from torchpar.cli.findings import as_json, as_nagios, as_prom, as_text, list_checks
from torchpar.cli.output import echo_json
from torchpar.cli.paths import FilePath
from torchpar.cli.readings import read_host
from torchpar.cli.root import require_root
from torchpar.cli.textfile import write_textfile
from torchpar.conf.syntax import hint
from torchpar.contract.errors import ExitStatus, printable
from torchpar.doctor.check import Check, Result, all_checks, examine
from torchpar.doctor.finding import Finding, Severity
from torchpar.host.inputs import LIVE
from torchpar.host.program import run_shown

FILE = "torchpar-doctor.prom"


@click.command(short_help="Look for what costs speed or breaks jobs on this host.")
@click.option("--only", metavar="CHECK,...", help="Run these checks, or groups such as net.")
@click.option("--skip", metavar="CHECK,...", help="Leave these checks or groups out.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "nagios", "prom"]), default="text", help="Default: text."
)
@click.option("--json", "json_too", is_flag=True, help="The same as --format json.")
@click.option(
    "--textfile", type=FilePath(), metavar="DIR", help=f"Write the metrics to {FILE} there, for node_exporter."
)
@click.option("--strict", is_flag=True, help="Exit 1 for warnings, too.")
@click.option("--fix", is_flag=True, help="Mend what commands can mend, each after a question.")
@click.option("--yes", is_flag=True, help="With --fix: answer each question with yes.")
@click.option("--list", "listed", is_flag=True, help="List the checks, where each applies, and its source.")
@click.option("--root", type=FilePath(), default=LIVE, help="Look at the host below DIR.")
def doctor(  # noqa: PLR0913 - an option each
    only: str | None,
    skip: str | None,
    form: str,
    json_too: bool,
    textfile: Path | None,
    strict: bool,
    fix: bool,
    yes: bool,
    listed: bool,
    root: Path,
) -> int:
    """Look for what costs speed or breaks jobs on this host, and say how to mend it.

    Changes nothing without --fix. Exits 0 if nothing fails (warnings are no failure, unless --strict), 1 if something
    does, 3 if something cannot be told, for example without root.
    """
    chosen = _chosen(only, skip)
    if listed:
        click.echo(list_checks(chosen))
        return ExitStatus.DONE
    form = "json" if json_too else form
    if textfile:
        # What fails is told there, and no failure of this.
        write_textfile(textfile / FILE, lambda: as_prom(examine(read_host(root), chosen)))
        return ExitStatus.DONE
    if fix:
        _check_fix(form, yes, root)
    results = examine(read_host(root), chosen)
    if fix and _mend(results, yes=yes):
        results = examine(read_host(root), chosen)
    if form == "json":
        echo_json(as_json(results))
    elif form == "nagios":
        click.echo(as_nagios(results))
        return _nagios_status(results)
    else:
        click.echo(as_prom(results) if form == "prom" else as_text(results), nl=form != "prom")
    return _exit_status(results, strict=strict)


def _chosen(only: str | None, skip: str | None) -> tuple[Check, ...]:
    """Chooses checks by their names, or by what stands before the dot. Raises UsageError for a name of none."""
    checks = all_checks()
    known = {name for check in checks for name in (check.name, check.name.partition(".")[0])}
    for word in (*_words(only), *_words(skip)):
        if word not in known:
            nearest = hint(word, sorted(known)) or "; see: torchpar doctor --list"
            raise click.UsageError(f"no check is called {printable(word, 60)}{nearest}")
    wanted, unwanted = tuple(_words(only)), tuple(_words(skip))
    return tuple(
        check
        for check in checks
        if (not wanted or any(_is_meant(check, word) for word in wanted))
        and not any(_is_meant(check, word) for word in unwanted)
    )


def _words(text: str | None) -> Iterator[str]:
    yield from (word.strip() for word in (text or "").split(",") if word.strip())


def _is_meant(check: Check, word: str) -> bool:
    return word in (check.name, check.name.partition(".")[0])


def _check_fix(form: str, yes: bool, root: Path) -> None:
    if form != "text" or root != LIVE:
        raise click.UsageError("--fix is for this host, and answers in text")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("--fix asks on a terminal; in a script use --fix --yes")
    require_root("torchpar doctor --fix")


def _mend(results: Sequence[Result], *, yes: bool) -> bool:
    """Runs the commands that mend what was found, each that is wanted; says whether any was run."""
    done = False
    for finding in _mendable(results):
        click.echo(f"{finding.severity.value}: {printable(finding.found, 1000)}")
        for command in finding.commands:
            if not command.isprintable():
                continue
            click.echo(f"  {command}")
            if yes or click.confirm("  run it?"):
                done = True
                status = run_shown(command)
                if status:
                    click.echo(f"  it has failed with exit status {status}", err=True)
    return done


def _mendable(results: Sequence[Result]) -> Iterator[Finding]:
    bad = (Severity.WARN, Severity.FAIL)
    yield from (each for result in results for each in result.findings if each.severity in bad and each.commands)


def _exit_status(results: Sequence[Result], *, strict: bool) -> ExitStatus:
    found = {result.status for result in results}
    if Severity.FAIL in found or (strict and Severity.WARN in found):
        return ExitStatus.FAILED
    return ExitStatus.UNKNOWN if any(_is_unknown(result) for result in results) else ExitStatus.DONE


def _nagios_status(results: Sequence[Result]) -> int:
    """Returns the status of a monitoring plugin: 0 ok, 1 warning, 2 critical, 3 unknown."""
    found = {result.status for result in results}
    if Severity.FAIL in found:
        return 2
    if Severity.WARN in found:
        return 1
    return 3 if Severity.UNKNOWN in found else 0


def _is_unknown(result: Result) -> bool:
    return any(finding.severity is Severity.UNKNOWN for finding in result.findings)

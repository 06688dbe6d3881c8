"""Words the results of doctor's checks: for people, as JSON, for Nagios and for Prometheus."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import click

from torchpar.cli.output import count
from torchpar.contract.errors import printable
from torchpar.doctor.check import Check, Result
from torchpar.doctor.finding import Finding, Severity

_COLOURS = {Severity.FAIL: "red", Severity.WARN: "yellow", Severity.UNKNOWN: "yellow", Severity.NOTE: "cyan"}
_BAD = (Severity.FAIL, Severity.WARN, Severity.UNKNOWN, Severity.NOTE)
_LONGEST = 1000
# torchpar_doctor_check_status in torchpar-metrics(7).
_NUMBERS = {Severity.OK: 0, Severity.NOT_APPLICABLE: 0, Severity.NOTE: 0, Severity.WARN: 1, Severity.FAIL: 2}
_UNKNOWN = 3
_INDENT = " " * 9


def as_text(results: Sequence[Result]) -> str:
    """Words the results for a terminal: what is wrong first, then the names of what was looked at and is well."""
    width = min(shutil.get_terminal_size((80, 24)).columns, 120)
    found = [(finding, result) for result in results for finding in result.findings if finding.severity in _BAD]
    found.sort(key=lambda pair: -pair[0].severity.rank)
    blocks = ["\n".join(_block(finding, result, width)) for finding, result in found]
    passed = [result.check.name for result in results if result.status is Severity.OK]
    absent = [result.check for result in results if result.status is Severity.NOT_APPLICABLE]
    waiting = [check.name for check in absent if check.condition.of_services]
    lacking = [check.name for check in absent if not check.condition.of_services]
    if passed:
        blocks.append(_names(f"{count(len(passed), 'check')} passed", passed, width))
    if waiting:
        title = f"{count(len(waiting), 'check')} for services that are not declared here, or do not run"
        blocks.append(_names(title, _groups(waiting), width))
    if lacking:
        blocks.append(_names(f"{count(len(lacking), 'check')} for what this host does not have", lacking, width))
    counts = Counter(finding.severity for finding, _ in found)
    told = [f"{counts[each]} {word}" for each, word in _WORDS.items() if counts[each]]
    blocks.append(", ".join(told) if told else "nothing to mend")
    return "\n\n".join(blocks)


_WORDS = {Severity.FAIL: "failed", Severity.WARN: "to look at", Severity.UNKNOWN: "not known", Severity.NOTE: "noted"}


def _block(finding: Finding, result: Result, width: int) -> Iterator[str]:
    word = finding.severity.value.upper() if finding.severity is Severity.FAIL else finding.severity.value
    title = f"{word:<8} {result.check.name}: {printable(finding.found, _LONGEST)}"
    first, *rest = textwrap.wrap(title, width, subsequent_indent=_INDENT)
    yield click.style(word, fg=_COLOURS[finding.severity], bold=True) + first[len(word) :]
    yield from rest
    parts = [("seen", finding.evidence), ("source", result.check.source), ("cure", finding.cure)]
    for name, text in parts:
        if text:
            yield from textwrap.wrap(
                f"{name + ':':<7} {printable(text, _LONGEST)}",
                width,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT + " " * 8,
                break_on_hyphens=False,
                break_long_words=False,
            )
    for command in finding.commands:
        # Not wrapped: it is there to be copied.
        yield f"{_INDENT}{'run:':<7} {printable(command, _LONGEST)}"


def _names(title: str, names: Sequence[str], width: int) -> str:
    lines = textwrap.wrap(" ".join(names), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([f"{title}:", *lines])


def _groups(names: Sequence[str]) -> list[str]:
    """Counts names by what stands before the dot: "aff(6)"; a name that is alone stays as it is."""
    groups = Counter(name.partition(".")[0] for name in names)
    alone = {name.partition(".")[0]: name for name in names}
    return [alone[group] if many == 1 else f"{group}({many})" for group, many in groups.items()]


def list_checks(checks: Sequence[Check]) -> str:
    """Words what each check looks at, where it applies, and where its knowledge is from."""
    width = min(shutil.get_terminal_size((80, 24)).columns, 120)
    lines = []
    for each in checks:
        lines.append(click.style(each.name, bold=True))
        for text in (f"passes where {each.passed}", f"applies where {each.condition.words}", f"source: {each.source}"):
            lines += textwrap.wrap(
                text, width, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
            )
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """Makes the results as JSON data."""
    return {
        "version": 1,
        "status": max((result.status for result in results), key=lambda status: status.rank, default=Severity.OK).value,
        "checks": [
            {
                "check": result.check.name,
                "status": result.status.value,
                "applies_where": result.check.condition.words,
                "source": result.check.source,
                "findings": [
                    {
                        "severity": finding.severity.value,
                        "found": finding.found,
                        "evidence": finding.evidence,
                        "cure": finding.cure,
                        "commands": list(finding.commands),
                    }
                    for finding in result.findings
                ],
            }
            for result in results
        ],
    }


def as_nagios(results: Sequence[Result]) -> str:
    """Makes one line of a monitoring plugin, with counts as performance data, and a line for each finding."""
    counts = Counter(result.status for result in results)
    worst = max((result.status for result in results), key=lambda status: status.rank, default=Severity.OK)
    word = {Severity.FAIL: "CRITICAL", Severity.WARN: "WARNING", Severity.UNKNOWN: "UNKNOWN"}.get(worst, "OK")
    bad = [
        f"{result.check.name}: {_plain(finding.found)}"
        for severity in (Severity.FAIL, Severity.WARN, Severity.UNKNOWN)
        for result in results
        for finding in result.findings
        if finding.severity is severity
    ]
    first = bad[0] if bad else f"{len(results)} checks"
    numbers = f"fail={counts[Severity.FAIL]} warn={counts[Severity.WARN]} unknown={counts[Severity.UNKNOWN]}"
    return "\n".join([f"TORCHPAR {word} - {first} | {numbers}", *bad[1:]])


def _plain(text: str) -> str:
    """Takes out of a text what ends the words of a plugin's line."""
    return printable(text, _LONGEST).replace("|", "/")


def as_prom(results: Sequence[Result]) -> str:
    """Makes the status of each check in Prometheus' text format."""
    lines = [
        "# HELP torchpar_doctor_check_status Result of a check of the doctor: 0 ok, 1 warning, 2 failed, 3 unknown.",
        "# TYPE torchpar_doctor_check_status gauge",
    ]
    for result in results:
        number = _NUMBERS.get(result.status, _UNKNOWN)
        lines.append(f'torchpar_doctor_check_status{{check="{result.check.name}"}} {number}')
    lines += [
        "# HELP torchpar_doctor_last_run_timestamp_seconds When torchpar doctor has run.",
        "# TYPE torchpar_doctor_last_run_timestamp_seconds gauge",
        f"torchpar_doctor_last_run_timestamp_seconds {int(time.time())}",
    ]
    return "\n".join(lines) + "\n"

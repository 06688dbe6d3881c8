"""Declares a check, finds all of them, and runs them on a host."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from torchpar.doctor import checks
from torchpar.doctor.finding import Finding, Severity, not_applicable, ok
from torchpar.doctor.host import Host

Run = Callable[[Host], Iterator[Finding]]


@dataclass(frozen=True)
class Condition:
    """The condition under which a check means anything: in words that follow "where", and as a question.

    `of_services`: it waits for services, such as one that runs, and holds on any host that has them.
    """

    words: str
    holds: Callable[[Host], bool]
    of_services: bool = False


@dataclass(frozen=True)
class Check:
    """One check. `passed` says what is so when it finds nothing; `source` is where the knowledge is from."""

    name: str
    passed: str
    condition: Condition
    source: str
    run: Run


@dataclass(frozen=True)
class Result:
    """The findings of a check on a host: one at least."""

    check: Check
    findings: tuple[Finding, ...]

    @property
    def status(self) -> Severity:
        """The severity of the worst finding."""
        return max((finding.severity for finding in self.findings), key=lambda severity: severity.rank)


_CHECKS: dict[str, Check] = {}


def check(name: str, *, passed: str, where: Condition, source: str) -> Callable[[Run], Run]:
    """Declares a function as a check. It yields what is wrong, and nothing where all is well."""

    def declare(run: Run) -> Run:
        assert name not in _CHECKS, f"two checks are called {name}"
        _CHECKS[name] = Check(name, passed, where, source, run)
        return run

    return declare


def all_checks() -> tuple[Check, ...]:
    """Returns every check in the folder, by name."""
    for module in pkgutil.iter_modules(checks.__path__):
        importlib.import_module(f"{checks.__name__}.{module.name}")
    return tuple(_CHECKS[name] for name in sorted(_CHECKS))


def examine(host: Host, chosen: Collection[Check]) -> tuple[Result, ...]:
    """Runs checks on a host, in their order."""
    return tuple(Result(each, _findings(each, host)) for each in chosen)


def _findings(each: Check, host: Host) -> tuple[Finding, ...]:
    if not each.condition.holds(host):
        return (not_applicable(f"only where {each.condition.words}"),)
    return tuple(each.run(host)) or (ok(each.passed),)

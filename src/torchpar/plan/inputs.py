"""Everything that a plan starts from, as one value: host/inputs.py reads it, here or from what a host has exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torchpar.conf.services import Config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, Problem, printable
from torchpar.facts.topology import HostFacts
from torchpar.plan.access import make_warnings
from torchpar.plan.opened import find_refused
from torchpar.plan.ownership import find_refusals
from torchpar.plan.questions import Found, Identity


@dataclass(frozen=True)
class Inputs:
    """The conf, the facts, the texts the conf was read from, what the host answers about the paths in it, and what
    tells later whether the host is still the one that was planned for.

    What this systemd does not have is left out of units, so nothing is asked about it.
    """

    config: Config
    facts: HostFacts
    files: tuple[ConfFile, ...]
    found: Mapping[Identity, Found]
    manifest: Mapping[str, str]

    def unreachable(self) -> tuple[str, ...]:
        """Makes a warning for each reason to refuse a unit, and for each file, folder or user in the conf that the
        services cannot use on this host."""
        refused = (str(problem) for problems in self.refusals().values() for problem in problems)
        return (*refused, *make_warnings(self._known(), self.found), *self._unknown_interpreters())

    def refusals(self) -> dict[str, tuple[Problem, ...]]:
        """Finds reasons to refuse units: files that others could change, and directives in force that are refused now.

        The files are those that services run and that systemd opens for them.
        """
        refused, foreign = find_refused(self.config), find_refusals(self._known(), self.found)
        return {unit: (*refused.get(unit, ()), *foreign.get(unit, ())) for unit in {**refused, **foreign}}

    def _known(self) -> Config:
        return self.config.known_to(self.facts.systemd_version)

    def refuse_foreign(self) -> None:
        """Raises ConfigError for everything that others could change."""
        problems = [problem for problems in self.refusals().values() for problem in problems]
        if problems:
            raise ConfigError(problems)

    def _unknown_interpreters(self) -> Iterator[str]:
        """Yields a warning for each interpreter of which facts that were exported with another conf say nothing."""
        for path in self.config.interpreters():
            if path not in self.facts.interpreters:
                yield (
                    f"the facts say nothing of {printable(path)}, which is taken for a program of the host's own "
                    "architecture; with this conf on the host, export them again: torchpar facts"
                )

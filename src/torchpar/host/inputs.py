"""Reads what every command starts from: conf and facts of this host, of a captured one, or of an exported file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config, Service
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, FactsError, Problem, printable
from torchpar.contract.typed_json import ShapeError, parse_json
from torchpar.facts.topology import HostFacts, parse_facts
from torchpar.host.access import ask, ask_below
from torchpar.host.conf import ConfReader
from torchpar.host.facts import add_interpreters, read_facts, read_manifest
from torchpar.host.reading import NotReadableError, Reader
from torchpar.plan.access import make_questions, make_warnings, silent_paths
from torchpar.plan.opened import find_refused
from torchpar.plan.ownership import add_questions, find_opened_refusals, find_refusals, opened_questions
from torchpar.plan.questions import Found, Identity

LIVE = Path("/")

_FACTS_LIMIT = 2**24  # those of a host with thousands of CPUs and devices have some MiB


@dataclasses.dataclass(frozen=True)
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
        return (*refused, *make_warnings(self._known(), self.found))

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


def refuse_foreign_files(service: Service) -> None:
    """Raises ConfigError for everything that systemd would open as root for it and that others could change."""
    problems = find_opened_refusals(service, ask(opened_questions(service)))
    if problems:
        raise ConfigError(problems)


def load(
    root: Path = LIVE,
    facts_file: Path | None = None,
    conf_file: Path | None = None,
    *,
    files: tuple[ConfFile, ...] | None = None,
) -> Inputs:
    """Reads the conf and the facts. `files` replaces what would be read of the conf.

    Raises ConfigError and FactsError.
    """
    facts = load_facts(root, facts_file)
    if files is None:
        reader = ConfReader()
        files = (
            reader.read_files((conf_file,), trusted=False) if conf_file else reader.read(root, trusted=root == LIVE)
        )
    config = parse_config(files, facts)
    if facts_file is not None:
        return Inputs(config, facts, files, {}, {})
    known = config.known_to(facts.systemd_version)
    questions = add_questions(known, make_questions(known))
    found = ask(questions) if root == LIVE else ask_below(root, questions)
    facts = add_interpreters(facts, config, root, silent_paths(questions, found))
    return Inputs(config, facts, files, found, read_manifest())


def load_facts(root: Path = LIVE, facts_file: Path | None = None) -> HostFacts:
    """Reads the facts of the host below `root`, or those that `torchpar facts` exported to a file."""
    if facts_file is None:
        return read_facts(root)
    reader = Reader()
    name = printable(str(facts_file))
    try:
        data = reader.do(lambda: reader.bytes(facts_file, _FACTS_LIMIT))
    except NotReadableError as error:
        raise FactsError(str(error)) from None
    except OSError as error:
        raise FactsError(f"{name}: cannot be read: {error.strerror}") from None
    try:
        return parse_facts(parse_json(data))
    except (ShapeError, FactsError) as error:
        raise FactsError(f"{name}: {error}") from None

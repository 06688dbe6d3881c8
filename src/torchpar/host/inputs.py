"""Reads what every command starts from: conf and facts of this host, of a captured one, or of an exported file."""

from __future__ import annotations

from pathlib import Path

from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config, Service
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, FactsError, Problem, printable
from torchpar.facts.topology import HostFacts
from torchpar.host.access import ask, ask_below
from torchpar.host.conf import ConfReader
from torchpar.host.facts import add_interpreters, read_facts, read_manifest
from torchpar.host.reading import NotReadableError, Reader
from torchpar.plan.access import make_questions, silent_paths
from torchpar.plan.export import Export, parse_export
from torchpar.plan.inputs import Inputs
from torchpar.plan.ownership import (
    ROOT,
    add_questions,
    find_opened_refusals,
    find_refusals,
    opened_questions,
)

LIVE = Path("/")

_FACTS_LIMIT = 2**24  # those of a host with thousands of CPUs and devices have some MiB


def refuse_foreign_files(service: Service) -> None:
    """Raises ConfigError for everything that systemd would open as root for it and that others could change."""
    problems = find_opened_refusals(service, ask(opened_questions(service)))
    if problems:
        raise ConfigError(problems)


def find_refused_files(config: Config) -> tuple[Problem, ...]:
    """Finds the files that systemd opens for services, and for which `torchpar apply` would refuse the conf now."""
    asked = dict.fromkeys(question for service in config.services for question in opened_questions(service)[ROOT])
    refusals = find_refusals(config, ask({ROOT: tuple(asked)}))
    return tuple(problem for problems in refusals.values() for problem in problems)


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
    export = load_export(facts_file) if facts_file else None
    facts = export.facts if export else read_facts(root)
    if files is None:
        files = read_conf(conf_file, root)
    if export:
        return inputs_of(export, files)
    config = parse_config(files, facts)
    known = config.known_to(facts.systemd_version)
    questions = add_questions(known, make_questions(known))
    found = ask(questions) if root == LIVE else ask_below(root, questions)
    facts = add_interpreters(facts, config.interpreters(), root, silent_paths(questions, found))
    return Inputs(config, facts, files, found, read_manifest())


def read_conf(path: Path | None = None, root: Path = LIVE) -> tuple[ConfFile, ...]:
    """Reads the conf in force below a root, or a file as the only one, or a folder in the place of /etc.

    Raises ConfigError.
    """
    reader = ConfReader()
    if path is None:
        return reader.read(root, trusted=root == LIVE)
    return reader.read_given(path)


def inputs_of(export: Export, files: tuple[ConfFile, ...]) -> Inputs:
    """Makes what a plan for another host starts from. Raises ConfigError."""
    return Inputs(parse_config(files, export.facts), export.facts, files, export.found, {})


def load_facts(root: Path = LIVE, facts_file: Path | None = None) -> HostFacts:
    """Reads the facts of the host below `root`, or those that `torchpar facts` exported to a file."""
    return read_facts(root) if facts_file is None else load_export(facts_file).facts


def load_export(path: Path) -> Export:
    """Reads what `torchpar facts` exported to a file. Raises FactsError."""
    reader = Reader()
    name = printable(str(path))
    try:
        data = reader.do(lambda: reader.bytes(path, _FACTS_LIMIT))
    except NotReadableError as error:
        raise FactsError(str(error)) from None
    except OSError as error:
        raise FactsError(f"{name}: cannot be read: {error.strerror}") from None
    try:
        return parse_export(data)
    except FactsError as error:
        raise FactsError(f"{name}: {error}") from None

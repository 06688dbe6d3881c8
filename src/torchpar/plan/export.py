"""A host as `torchpar facts` exports it, both ways: everything from which its plan, its units and what they change are
computed elsewhere.

The facts are fields of the outermost object, as in every version; FORMAT tells whether the others mean the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchpar.contract.errors import FactsError
from torchpar.contract.typed_json import ShapeError, Text, parse_json, shape
from torchpar.facts.topology import HostFacts, facts_json, parse_facts
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict

# It changes when an older torchpar would misread what a newer one exports, or the other way round.
FORMAT = 1


@dataclass(frozen=True)
class UnitsInForce:
    """The units of the generation in force, `files` and `links` as in a UnitSet, and those of torchpar's units that
    run; None where systemd did not answer. Those that are `outdated` run with older settings."""

    number: int
    files: Mapping[str, Text]
    links: Mapping[str, Text]
    running: tuple[str, ...] | None
    outdated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Versions:
    """The versions on which a job rests: of Debian's packages by name, and of torch by interpreter (None: it has none).

    `blas` is the alternative of libblas.so.3 in force, such as "openblas-openmp", or None where there is none.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    torch: Mapping[str, str | None] = field(default_factory=dict)
    blas: str | None = None


@dataclass(frozen=True)
class Export:
    """The facts of a host, and what it answers about the files in its conf; `exported_at` is in seconds since the
    epoch. `addresses` are those of its interfaces, for other hosts; `in_force` is None where nothing is. `problems` are
    what was wrong with the host's own conf or store."""

    facts: HostFacts
    exported_at: int
    versions: Versions = field(default_factory=Versions)
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    in_force: UnitsInForce | None = None
    found: Mapping[Identity, Found] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Answered:
    """An answer to a question, as JSON has it."""

    path: str
    need: str
    verdict: str
    place: str
    mode: int | None
    owner: str | None
    group: str | None
    home: str | None
    way: tuple[str, ...]
    why: str
    shim: bool
    interpreter: str | None
    shared: bool


@dataclass(frozen=True)
class _Found:
    """The answers for one identity, as JSON has them."""

    user: str | None
    group: str | None
    groups: tuple[str, ...]
    unknown_user: bool
    unknown_groups: tuple[str, ...]
    answers: tuple[_Answered, ...]


@dataclass(frozen=True)
class _Rest:
    """The fields of an export beside the facts."""

    exported_at: int
    versions: Versions
    addresses: Mapping[str, tuple[str, ...]]
    generation: UnitsInForce | None
    found: tuple[_Found, ...]
    problems: tuple[str, ...]


def export_json(export: Export) -> dict[str, Any]:
    """Returns an export as JSON data."""
    found = tuple(
        _Found(
            **dataclasses.asdict(identity),
            unknown_user=each.unknown_user,
            unknown_groups=each.unknown_groups,
            answers=tuple(_answered(question, answer) for question, answer in each.answers.items()),
        )
        for identity, each in export.found.items()
    )
    rest = _Rest(export.exported_at, export.versions, export.addresses, export.in_force, found, export.problems)
    return {"format": FORMAT, **facts_json(export.facts), **facts_json(rest)}


def parse_export(text: str | bytes) -> Export:
    """Parses the JSON text of export_json(). Raises FactsError with what is wrong with it, and where."""
    try:
        data = _unwrap(parse_json(text))
        _refuse_other_format(data)
        facts = parse_facts(data)
        rest = shape(data, _Rest)
        found = dict(map(_parse_found, rest.found))
    except ShapeError as error:
        raise FactsError(f"{error}; export the facts again: torchpar facts") from None
    return Export(facts, rest.exported_at, rest.versions, rest.addresses, rest.generation, found, rest.problems)


def _unwrap(data: Any) -> Any:
    """Returns the facts where they are a fact of Ansible's (`ansible -m setup --tree`) or of Facter's."""
    for wrapping in (("ansible_facts", "ansible_local", "torchpar"), ("torchpar",)):
        inner = data
        for name in wrapping:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            return inner
    return data


def _refuse_other_format(data: Any) -> None:
    if not isinstance(data, dict):
        raise ShapeError("is not the facts of a host")
    number = data.get("format")
    if number is None and "hostname" in data:
        raise FactsError("was exported by an older torchpar; upgrade that host, and there again: torchpar facts")
    if type(number) is not int:
        raise ShapeError("is not the facts of a host")
    if number != FORMAT:
        newer = "newer" if number > FORMAT else "older"
        raise FactsError(
            f"has format {number}, of a{'n' if newer == 'older' else ''} {newer} torchpar; this one reads {FORMAT}: "
            "have the same version here and there, and export the facts again"
        )


def _answered(question: Question, answer: Answer) -> _Answered:
    fields = {each.name: getattr(answer, each.name) for each in dataclasses.fields(answer)}
    return _Answered(question.path, question.need.value, **{**fields, "verdict": answer.verdict.value})


def _parse_found(found: _Found) -> tuple[Identity, Found]:
    try:
        answers = dict(map(_parse_answered, found.answers))
    except ValueError as error:
        raise ShapeError(f"found: {error}") from None
    return Identity(found.user, found.group, found.groups), Found(found.unknown_user, found.unknown_groups, answers)


def _parse_answered(answered: _Answered) -> tuple[Question, Answer]:
    fields = dataclasses.asdict(answered)
    question = Question(fields.pop("path"), Need(fields.pop("need")))
    return question, Answer(**{**fields, "verdict": Verdict(answered.verdict)})

"""Conf files to Config: values parsed, layers merged, every problem with its file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

from torchpar.conf import values as v
from torchpar.conf.characters import INVISIBLE, name_of
from torchpar.conf.contradictions import find_contradictions, find_shared_endpoints
from torchpar.conf.directives import SINCE
from torchpar.conf.match import matches
from torchpar.conf.passed import PASSED, RENDERED, find_dropped, judge_directive
from torchpar.conf.services import AD_HOC, LONGEST_NAME, Config, Kind, Service
from torchpar.conf.settings import (
    SECTIONS,
    HostSettings,
    MatchSettings,
    ServiceSettings,
    Setting,
    settings_of,
)
from torchpar.conf.syntax import MOST_PROBLEMS, Assignment, ConfFile, Problems, Section, hint, split_sections
from torchpar.conf.words import MisreadError, notes_on, notes_on_odd, notes_on_text
from torchpar.contract.errors import ConfigError, Place, Problem, printable
from torchpar.facts.exec_limits import check_strings
from torchpar.facts.topology import HostFacts

T = TypeVar("T")


class _Value(NamedTuple):
    """One assignment, read: `setting` is None for a Service.KEY= directive; an empty `text` resets."""

    key: str
    text: str
    origin: Place
    setting: Setting | None
    value: Any


_UNIT_TYPES = (
    "service", "socket", "target", "timer", "slice", "scope", "mount", "automount", "path", "swap", "device",
)  # fmt: skip

_SETTINGS = {name: {row.key: row for row in settings_of(section)} for name, section in SECTIONS.items()}


# Values that are split into words, and whether they are those of a command line; values that may be any text.
_WORDS: Mapping[Callable[[str], Any], bool] = {
    v.parse_words: False,
    v.parse_globs: False,
    v.parse_architectures: False,
    v.parse_paths: False,
    v.parse_environment: False,
    v.parse_arguments: True,
}
_TEXT = (v.parse_path, v.parse_program, v.parse_text)

# A list of all the CPUs that Linux can have, one by one, is shorter; so is every other value that is not of words.
_LONGEST_VALUE = 2**16

# What is planned for all takes longer with each; a host that declares more is none.
_MOST_SERVICES = 1000


def parse_config(files: Sequence[ConfFile], facts: HostFacts) -> Config:
    """Merges the files, in the order in which later ones win, for the host that `facts` describe.

    What a generation has is read as far as it is understood: an upgrade that knows other names keeps no service from a
    placement for the host as it is now, and one that refuses a directive only the services that have it, see
    find_refused(). Raises ConfigError with every problem of every file, also of those whose [Match] skips them here.
    """
    problems = Problems()
    host: list[_Value] = []
    defaults: dict[Kind, list[_Value]] = {kind: [] for kind in Kind}
    services: dict[tuple[Kind, str], list[_Value]] = {}
    declared: dict[tuple[Kind, str], Place] = {}
    for file in files:
        applies = True
        problems.applied = file.applied
        for section in split_sections(file, problems):
            word, _, name = section.header.partition(" ")
            read = list(_read_values(section, facts.page_size, problems))
            if section.header == "Match":
                applies = matches(_merge(MatchSettings, read), facts)
            elif section.header == "Host":
                host += read if applies else []
            elif not name:
                _refuse_own_settings(word, read, problems)
                defaults[Kind(word.lower())] += read if applies else []
            elif _is_name(name, section, problems) and applies:
                service = (Kind(word.lower()), name)
                declared.setdefault(service, section.origin)
                services.setdefault(service, []).extend(read)
                if len(services) > _MOST_SERVICES:
                    raise ConfigError([Problem(section.origin, f"a host has {_MOST_SERVICES} services at the most")])
    if problems.are_too_many():
        raise _error(problems, files)
    merged = {kind: _Defaults.of(values) for kind, values in defaults.items()}
    config = Config(
        _merge(HostSettings, host),
        tuple(
            _make_service(kind, name, declared[kind, name], merged[kind], services[kind, name], problems)
            for kind, name in sorted(services, key=lambda service: (service[0].value, service[1]))
        ),
        tuple(problems.notes),
    )
    problems.errors.extend(find_shared_endpoints(config.services))
    if problems.errors:
        raise _error(problems, files)
    return config


def read_matches(files: Sequence[ConfFile]) -> tuple[MatchSettings | None, ...]:
    """Reads the [Match] of each file, None where it has none; errors in them are parse_config()'s to name."""
    found: list[MatchSettings | None] = []
    for file in files:
        problems = Problems()
        first = next(iter(split_sections(file, problems)), None)
        is_match = first is not None and first.header == "Match"
        found.append(_merge(MatchSettings, list(_read_values(first, None, problems))) if first and is_match else None)
    return tuple(found)


def _error(problems: Problems, files: Sequence[ConfFile]) -> ConfigError:
    """Makes an error of all problems in the order of the files, as far as anybody mends so many at once."""
    order = {file.path: index for index, file in enumerate(files)}
    errors = sorted(problems.errors, key=lambda problem: (order[problem.place.file], problem.place.line or 0))
    if problems.are_too_many():
        errors = errors[:MOST_PROBLEMS]
        errors.append(Problem(errors[-1].place, f"there may be more errors; mend these {MOST_PROBLEMS} first"))
    return ConfigError(errors)


def _read_values(section: Section, page_size: int | None, problems: Problems) -> Iterator[_Value]:  # noqa: C901 - a branch for each thing that a line can be
    word = section.header.split()[0]
    rows = _SETTINGS[word]
    for assignment in section.assignments:
        if problems.are_too_many():
            return
        key, text, origin = assignment.key, assignment.text, assignment.origin
        if key.startswith("Service.") and issubclass(SECTIONS[word], ServiceSettings):
            name = key.removeprefix("Service.")
            wrong, note = judge_directive(name, text)
            dropped = find_dropped(name, text)
            if problems.applied:
                # As systemd has read it so far, the service went on without these words.
                note = note or dropped
            else:
                wrong = wrong or dropped
            if note and not wrong:
                problems.note(origin, f"[{section.header}] {key}={printable(text, 60)}: {note}")
            for at, what in notes_on_odd(text):
                place, character = assignment.place(at)
                problems.note(place, f"[{section.header}] {key}=: character {character}: {what}")
            # One that was in force and is refused now keeps its own service from starting, see find_refused().
            if wrong and not (problems.applied and name in SINCE):
                problems.unknown(origin, f"[{section.header}] {key}=: {wrong}")
            else:
                yield _Value(key, text, origin, None, text)
            continue
        row = rows.get(key)
        if row is None:
            what = f"unknown key{_where_it_belongs(key, word)}"
            problems.unknown(origin, f"[{section.header}] {key}={printable(text, 60)}: {what}")
            continue
        if row.later and text not in ("", row.default):
            problems.note(origin, f"[{section.header}] {key}={printable(text, 60)}: has no effect in this version yet")
        try:
            value = _parse_value(row, text) if text else None
        except MisreadError as error:
            place, character = assignment.place(error.at)
            problems.add(place, f"[{section.header}] {key}={printable(text, 80)}: character {character}: {error}")
        except ValueError as error:
            what = str(error) if str(error).startswith("'") else f"'{printable(text, 40)}' {error}"
            said = f"[{section.header}] {key}={printable(text, 80)}: {what}; allowed: {row.allowed}"
            if problems.applied and isinstance(error, v.UselessError):
                problems.note(origin, f"{said}; it stays so, as this was in force before")
                yield _Value(key, text, origin, row, error.value)
            else:
                problems.add(origin, said)
        else:
            for what in check_strings(_strings(value), page_size):
                problems.add(origin, f"[{section.header}] {key}=: {what}")
            if text and len(problems.notes) <= MOST_PROBLEMS:
                _note(section, assignment, row, value, problems)
            yield _Value(key, text, origin, row, value)


def _parse_value(row: Setting, text: str) -> Any:
    """Parses the value of a setting. Raises ValueError with the reason why it is refused."""
    if row.parse not in _WORDS:
        if len(text) > _LONGEST_VALUE:
            raise ValueError(f"is longer than {_LONGEST_VALUE} characters")
        for found in INVISIBLE.finditer(text):
            # In a path or a text it may be meant, but for a blank that nobody sees at either end.
            if row.parse not in _TEXT or found.start() in (0, len(text) - 1):
                raise MisreadError(f"{name_of(found[0])} looks like a blank or like nothing", found.start())
    try:
        return row.parse(text)
    except MisreadError:
        raise
    except ValueError as error:
        odd = re.search(r"[^\t -~]", text)
        raise (MisreadError(f"{error}; this is {name_of(odd[0])}", odd.start()) if odd else error) from None


def _note(section: Section, assignment: Assignment, row: Setting, value: Any, problems: Problems) -> None:
    """Says what is plain text in a value and would not be in a unit, and what may be mistaken for something else."""
    text = assignment.text
    relaxed = _WORDS.get(row.parse)
    for at, what in notes_on_text(text) if relaxed is None else notes_on(text, value, relaxed=relaxed):
        place, character = assignment.place(at)
        problems.note(place, f"[{section.header}] {assignment.key}=: character {character}: {what}")


def _strings(value: Any) -> Iterator[str]:
    """Yields the strings of a setting's value, each of which may be one string of the command or its environment."""
    yield from (text for text in (value if isinstance(value, tuple) else (value,)) if isinstance(text, str))


def _where_it_belongs(key: str, section: str) -> str:
    """Returns the end of a message on a key that its section does not have."""
    sections = [word for word in SECTIONS if key in _SETTINGS[word]]
    if sections:
        headers = [f"[{word}]" if word in ("Match", "Host") else f"[{word} NAME]" for word in sections]
        return f" here; it belongs in {' or '.join(headers)}"
    if key in RENDERED:
        return f"; use {RENDERED[key]}="
    if key in PASSED and issubclass(SECTIONS[section], ServiceSettings):
        return f"; a setting of systemd is written Service.{key}="
    return hint(key, _SETTINGS[section])


@dataclass(frozen=True)
class _Defaults:
    """The values of [Train] or [Infer] for all their services, merged once."""

    fields: Mapping[str, Any]
    directives: tuple[tuple[str, str], ...]
    origins: Mapping[str, Place]

    @classmethod
    def of(cls, values: Sequence[_Value]) -> _Defaults:
        """Merges the values of these sections."""
        return cls(_merge_fields(values), _merge_directives((), values), _origins(values))


def _origins(values: Sequence[_Value]) -> dict[str, Place]:
    """Returns the place where each key was set. A directive may be there several times, each with its own line."""
    lines = {f"{value.key}={value.text}": value.origin for value in values if value.setting is None}
    return {value.key: value.origin for value in values} | lines


def _merge(kind: type[T], values: Sequence[_Value], defaults: Mapping[str, Any] | None = None) -> T:
    fields = _merge_fields(values, defaults)
    return cast(Any, kind)(**fields)  # type: ignore[no-any-return]  # the dataclass that `kind` is


def _merge_fields(values: Sequence[_Value], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = dict(defaults or {})
    lists: dict[str, list[Any]] = {}
    for value in values:
        if value.setting is None:
            continue
        name = value.setting.field
        if not value.text:
            fields.pop(name, None)
            lists.pop(name, None)
        elif value.setting.is_list:
            if name not in lists:
                lists[name] = list(fields.get(name, ()))
            lists[name].extend(value.value)
        else:
            fields[name] = value.value
    return {**fields, **{name: tuple(items) for name, items in lists.items()}}


def _merge_directives(defaults: tuple[tuple[str, str], ...], values: Sequence[_Value]) -> tuple[tuple[str, str], ...]:
    """Returns the Service.KEY= pairs in their order, without those before an empty one of the same key."""
    kept: list[tuple[str, str]] = []
    reset: set[str] = set()
    own = [(value.key.removeprefix("Service."), value.text) for value in values if value.setting is None]
    for directive, text in reversed([*defaults, *own]):
        if not text:
            reset.add(directive)
        elif directive not in reset:
            kept.append((directive, text))
    return tuple(reversed(kept))


def _make_service(
    kind: Kind, name: str, declared: Place, defaults: _Defaults, own: list[_Value], problems: Problems
) -> Service:
    settings: ServiceSettings = _merge(SECTIONS[kind.section], own, defaults.fields)
    directives = _merge_directives(defaults.directives, own)
    origins = {"": declared, **defaults.origins, **_origins(own)}
    service = Service(kind, name, settings, directives, origins)
    problems.errors.extend(find_contradictions(service))
    return service


def _refuse_own_settings(word: str, values: Sequence[_Value], problems: Problems) -> None:
    for value in values:
        if value.setting and value.setting.own:
            problems.errors.append(
                Problem(value.origin, f"[{word}] {value.key}= belongs to one service; write it in [{word} NAME]")
            )


def _is_name(name: str, section: Section, problems: Problems) -> bool:
    # What systemd allows in an instance name without escaping, so that the unit has the name that the admin wrote; but
    # no colon, which stands between the folders of RUNTIME_DIRECTORY and its like.
    what = ""
    if name == AD_HOC and not section.origin.file.startswith("/"):
        return True
    if ":" in name:
        problems.unknown(section.origin, f"[{section.header:.60}]: a service's name has no ':'; use '.' or '-'")
        return False
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or len(name) > LONGEST_NAME:
        what = f"a service's name is made of at most {LONGEST_NAME} letters, digits, '_', '-' and '.'"
    elif re.search(rf"\.(?:{'|'.join(_UNIT_TYPES)})$", name):
        what = "write the name alone, without the type of a unit"
    if what:
        problems.errors.append(Problem(section.origin, f"[{section.header:.60}]: {what}"))
    return not what

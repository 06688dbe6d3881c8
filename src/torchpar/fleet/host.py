"""One host of a fleet: its plan from its facts and the common conf, what that changes, and what is to be said of it."""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torchpar.conf.match import matches
from torchpar.conf.parse import parse_config, read_matches
from torchpar.conf.services import Config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, ExitStatus, PlacementError, printable
from torchpar.contract.unit_names import shorten
from torchpar.fleet.jobs import Part, make_parts
from torchpar.plan.export import Export
from torchpar.plan.inputs import Inputs
from torchpar.plan.picture import draw_plan
from torchpar.plan.plan import Plan, ServicePlan, make_plan
from torchpar.plan.quality import plan_quality
from torchpar.units.changes import compare, compare_links
from torchpar.units.drop_ins import make_units
from torchpar.units.sentences import say_change

# Below it the services of a host have less of it than they could, see plan/quality.py.
GOOD = 0.85

_PYTHON = "/usr/bin/python3"

# Hosts of one kind change alike.
_say = functools.lru_cache(maxsize=1024)(say_change)

# Of hosts of so many kinds the plan is kept; a fleet has fewer.
_KINDS = 32


@dataclass(frozen=True)
class ServiceRow:
    """One service of a host; `cpus` is a cpulist, `threads` are those of its first rank."""

    service: str
    enabled: bool
    cpus: str
    cores: int
    ranks: int
    threads: int
    memory: str
    allocator: str
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class ChangeRow:
    """A unit that `torchpar apply` would change; `restart` says whether it runs with what is in force now."""

    unit: str
    change: str
    meaning: str
    restart: bool


@dataclass(frozen=True)
class Summary:
    """All of a host that is looked at beside others. `file` has its facts; `name` is "" where they cannot be read.

    `errors` are the reasons why there is no plan, and `status` is what they end with. `matched` says of each file of
    the conf whether its [Match] holds, None where it has none. `generation` is the one in force, None where none is.
    """

    file: str
    name: str = ""
    status: ExitStatus = ExitStatus.DONE
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    cores: int = 0
    cpus: int = 0
    gpus: int = 0
    services: int = 0
    quality: float | None = None
    changed: int = 0
    restarts: int = 0
    generation: int | None = None
    exported_at: int = 0
    matched: tuple[bool | None, ...] = ()
    parts: tuple[Part, ...] = ()
    listening: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HostPlan:
    """A host with its services and changes; `picture` is its plan's, as a compressed SVG (RFC 1950), if asked for."""

    summary: Summary
    services: tuple[ServiceRow, ...] = ()
    changes: tuple[ChangeRow, ...] = ()
    picture: bytes = b""


@dataclass(frozen=True)
class _Planned:
    """Everything that hosts with the same facts have in common."""

    config: Config
    plan: Plan
    files: Mapping[str, str]
    links: Mapping[str, str]
    warnings: tuple[str, ...]
    quality: float
    picture: bytes


class Planner:
    """Plans hosts for one conf; hosts whose facts differ in nothing that a plan depends on are planned once."""

    def __init__(self, files: Sequence[ConfFile], *, pictures: bool = False) -> None:
        self._files = tuple(files)
        self._matches = read_matches(files)
        self._pictures = pictures
        self._known: dict[str, _Planned | ConfigError | PlacementError] = {}

    def plan(self, file: str, export: Export) -> HostPlan:
        """Plans the host whose facts were in a file. What is wrong with the conf on it is in the result."""
        facts = export.facts
        matched = tuple(matches(match, facts) if match else None for match in self._matches)
        summary = Summary(
            file,
            facts.hostname,
            cores=len(facts.cores),
            cpus=len(facts.online_cpus),
            gpus=len(facts.discrete_accelerators()),
            generation=export.in_force.number if export.in_force else None,
            exported_at=export.exported_at,
            matched=matched,
            addresses=export.addresses,
            packages=export.versions.packages,
        )
        planned = self._plan(export, matched)
        if not isinstance(planned, _Planned):
            errors = planned.problems if isinstance(planned, ConfigError) else (str(planned),)
            return HostPlan(replace(summary, status=ExitStatus.CONFIG, errors=errors, warnings=export.problems))
        return self._complete(summary, export, planned)

    def _plan(self, export: Export, matched: tuple[bool | None, ...]) -> _Planned | ConfigError | PlacementError:
        # The name decides which files of the conf hold, and nothing after that.
        nameless = replace(export, facts=replace(export.facts, hostname=""))
        text = repr((nameless.facts, nameless.found, matched))
        key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        found = self._known.pop(key, None)
        if found is None:
            try:
                found = self._plan_anew(export, nameless)
            except (ConfigError, PlacementError) as error:
                found = error
        # The one that was used last is the last.
        self._known[key] = found
        if len(self._known) > _KINDS:
            del self._known[next(iter(self._known))]
        return found

    def _plan_anew(self, export: Export, nameless: Export) -> _Planned:
        config = parse_config(self._files, export.facts)
        inputs = Inputs(config, nameless.facts, self._files, export.found, {})
        inputs.refuse_foreign()
        plan = make_plan(config, nameless.facts)
        units = make_units(plan)
        picture = zlib.compress(draw_plan(plan).encode("utf-8", "backslashreplace")) if self._pictures else b""
        warnings = (*inputs.unreachable(), *plan.warnings, *units.warnings)
        return _Planned(config, plan, units.files, units.links, warnings, plan_quality(plan, config), picture)

    def _complete(self, summary: Summary, export: Export, planned: _Planned) -> HostPlan:
        services, before = planned.plan.services, export.in_force
        changes = compare(before.files if before else {}, planned.files)
        changes += compare_links(before.links if before else (), planned.links)
        running = set((before and before.running) or ())
        outdated = running & set(before.outdated if before else ())
        rows = tuple(
            ChangeRow(
                change.unit,
                change.what,
                _say(change),
                change.what in ("changed", "removed") and change.unit in running,
            )
            for change in changes
        )
        warnings = (*export.problems, *_warn(export, planned, running_known=not before or before.running is not None))
        return HostPlan(
            replace(
                summary,
                warnings=tuple(dict.fromkeys((*warnings, *planned.warnings))),
                services=len(services),
                quality=round(planned.quality, 3),
                changed=len(rows),
                restarts=len({row.unit for row in rows if row.restart} | outdated),
                parts=make_parts(services, export),
                listening={one.service.title: one.listen for one in services if one.listen},
            ),
            tuple(map(_row, services)),
            rows,
            planned.picture,
        )


def _row(plan: ServicePlan) -> ServiceRow:
    return ServiceRow(
        plan.service.title,
        plan.service.settings.enabled,
        str(plan.cpus),
        plan.cores,
        len(plan.ranks),
        plan.ranks[0].threads,
        f"{plan.memory.policy.value} {plan.memory.nodes}".strip(),
        plan.allocator,
        tuple(gpu.name for gpu in plan.gpus),
    )


def _warn(export: Export, planned: _Planned, *, running_known: bool) -> Iterator[str]:
    """Yields warnings of what a plan does not know: which torch and BLAS it is computed with, and how good it is."""
    versions, services = export.versions, planned.config.services
    if not services:
        yield "no service is declared for it"
    if planned.quality < GOOD:
        yield (
            f"its services have only {planned.quality:.2f} of what they could have of it (good is {GOOD}); "
            "torchpar explain says why"
        )
    for service in services:
        python = service.settings.python
        if service.own_user and python in versions.torch and versions.torch[python] is None:
            yield f"{service.section}: {printable(python)} has no torch"
    from_debian = any(service.settings.python == _PYTHON for service in services)
    # The alternative of the reference BLAS is in a folder of this name.
    if from_debian and "python3-torch" in versions.packages and versions.blas in (None, "blas"):
        yield "the reference BLAS is in force, 14 to 50 times slower than an optimised one: torchpar doctor"
    if not running_known:
        yield "systemd did not say what runs, so nothing is known of restarts"
    for unit in (export.in_force.outdated if export.in_force else ()):
        yield f"{printable(shorten(unit))} is running with older settings than are in force, until it restarts"

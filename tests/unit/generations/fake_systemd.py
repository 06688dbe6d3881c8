"""The systemd of tests: what it has read of a store, what runs, and what it refuses. It is the door of every room."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from torchpar.contract.errors import ConfigError, StoreError, SystemdError
from torchpar.generations.compile import Compiled
from torchpar.generations.enforce import running_among
from torchpar.generations.generation import Content, Generation
from torchpar.generations.store import Store
from torchpar.host.systemd import RunningState


@dataclass
class FakeSystemd:
    """Holds what was active when it last read its units, by its mark; `runs` has the mark that each unit runs with.

    `refuses`: what it does not do, "reload", "restart", "list", "units" or to hold a mark. `passes_over`: what it says
    of new units. `restarting`: those that do not run, and that it starts again in a moment. `properties`: those of a
    unit that differ from those of one that runs or does not.
    """

    store: Store
    refuses: str = ""
    holds: str = "nothing"
    started: list[str] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    passes_over: tuple[str, ...] = ()
    idle: bool = True
    asked: list[str] = field(default_factory=list)
    restarting: set[str] = field(default_factory=set)
    properties: dict[str, dict[str, Any]] = field(default_factory=dict)

    # ---- a generation that is put in force ----

    def reload(self) -> None:
        if self.refuses == "reload":
            raise SystemdError("it refuses to reload")
        self.holds = active_mark(self.store)

    def check(self, generation: Generation) -> tuple[str, ...]:
        if self.holds != mark_of(generation) or self.holds == self.refuses:
            raise SystemdError("it holds something else")
        return ()

    def start_way_back(self) -> None:
        assert self.store.waiting(), "it would find nothing to wait for"
        self.started.append(active_mark(self.store))

    def find_passed_over(self, compiled: Compiled) -> tuple[str, ...]:
        self.asked.append("units")
        if self.refuses == "units":
            raise ConfigError(["a line that it refuses"])
        return self.passes_over

    def find_unloaded(self, content: Content) -> str | None:
        return None if self.holds == content.conf[0].text.split()[2] else next(iter(content.files))

    # ---- services that run ----

    def running_among(self, units: Iterable[str]) -> tuple[str, ...]:
        return running_among(self, units)

    def forget_refusals(self) -> None:
        self.properties = {unit: told for unit, told in self.properties.items() if "-guard@" not in unit}

    def is_idle(self, unit: str) -> bool:
        return self.idle

    def restart(self, units: tuple[str, ...]) -> None:
        """Where it refuses, of three the first runs with what is held, the second does not end, the third is gone."""
        self.runs |= dict.fromkeys(units[: len(units) // 3] if self.refuses == "restart" else units, self.holds)
        if self.refuses == "restart":
            for unit in units[2:]:
                del self.runs[unit]
            raise SystemdError("a job failed")

    def invocations(self, units: tuple[str, ...]) -> dict[str, str]:
        return {unit: self.runs[unit] for unit in units if unit in self.runs}

    # ---- what it says of units ----

    def running_services(self) -> tuple[str, ...]:
        return tuple(unit for unit in self._running(".service") if not unit.startswith("torchpar-run-"))

    def ad_hoc_jobs(self) -> tuple[str, ...]:
        return tuple(unit for unit in self._running(".service") if unit.startswith("torchpar-run-"))

    def running_units(self) -> tuple[RunningState, ...]:
        return tuple(
            RunningState(unit, self.runs[unit], self.unit_properties(unit)["MainPID"], f"/{unit}")
            for unit in self._running(".service")
        )

    def restarting_units(self) -> tuple[str, ...]:
        if self.refuses == "list":
            raise SystemdError("systemd does not answer")
        return tuple(sorted(self.restarting))

    def root_group(self) -> str:
        return ""

    def open_sockets(self) -> tuple[str, ...]:
        return self._running(".socket")

    def unit_properties(self, unit: str) -> dict[str, Any]:
        if self.refuses == "list":
            raise SystemdError("systemd does not answer")
        states = ("active", "running") if unit in self.runs else ("inactive", "dead")
        known = {"MainPID": 0, "ActiveState": states[0], "SubState": states[1], "ActiveEnterTimestamp": 0}
        return {**known, **self.properties.get(unit, {})}

    def service_states(self) -> str:
        return repr([(unit, self.runs[unit]) for unit in (*self.running_services(), *self.open_sockets())])

    def show_units(self, units: Collection[str], properties: Collection[str]) -> str:
        """Those that run. One that is told of by its own properties is asked for by itself, as it is not plain."""
        blocks = []
        for unit in self._running(""):
            told = dict.fromkeys(properties, "") | {"Id": unit, "SubState": "running"}
            told |= {"ActiveState": self.unit_properties(unit)["ActiveState"]}
            told |= {} if unit in self.properties else {"Result": "success"}
            blocks.append("".join(f"{name}={value}\n" for name, value in told.items()))
        return "\n".join(blocks)

    def reload_without_waiting(self, unit: str) -> None:
        self.asked.append(f"reload {unit}")
        if self.refuses == "reload":
            raise SystemdError("systemd is busy")

    def _running(self, kind: str) -> tuple[str, ...]:
        if self.refuses == "list":
            raise SystemdError("systemd does not answer")
        return tuple(sorted(unit for unit in self.runs if unit.endswith(kind)))


def mark_of(generation: Generation | None) -> str:
    """What tells the generations of these tests apart; reading it checks its checksums."""
    return generation.read().conf[0].text.split()[2] if generation else "nothing"


def active_mark(store: Store) -> str:
    try:
        return mark_of(store.active())
    except StoreError:
        return "damaged"

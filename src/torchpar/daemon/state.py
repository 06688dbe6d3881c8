"""The answer of torchpard as values: what commands print of the host and its services; figures.py makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.serving import Serving
from torchpar.contract.typed_json import Text, shape
from torchpar.contract.unit_names import shorten


@dataclass(frozen=True)
class Item:
    """One thing that is compared with the plan."""

    what: str
    verdict: str
    actual: Text


@dataclass(frozen=True)
class Policy:
    """A memory policy, with its nodes."""

    policy: str
    nodes: str


@dataclass(frozen=True)
class RankSpeed:
    """The speed of one rank; `pid` is what the job has told."""

    local_rank: int
    pid: int
    steps_per_second: float
    loader_wait_share: float
    silent_seconds: float


@dataclass(frozen=True)
class Speed:
    """The speed of a training job."""

    steps: int
    steps_per_second: float
    samples_per_second: float
    loader_wait_share: float
    bound: str
    silent_seconds: float
    by_rank: tuple[RankSpeed, ...] = ()


@dataclass(frozen=True)
class Failure:
    """The reason of the last failure, and the last words of its processes."""

    why: str
    said: Text | None


@dataclass(frozen=True)
class Wrong:
    """One thing that is wrong: its kind, of contract/messages.py, and what is said of it."""

    what: str
    text: Text


@dataclass(frozen=True)
class Moved:
    """A service that has, or had in this run, other CPUs than planned. `beside`: what runs too; "" if nothing does.

    `borrowed_cpus` are those of its `lenders`; `lent_cpus` are those of its own that are `lent_to` others. All are
    lists, as texts.
    """

    unit: str
    cpus: str
    planned_cpus: str
    beside: Text
    since_timestamp_seconds: float
    borrowed_cpus: str = ""
    lenders: Text = Text("")
    lent_cpus: str = ""
    lent_to: Text = Text("")


@dataclass(frozen=True)
class ServiceState:
    """A service. The texts of `wrong` are clauses that follow its name; `cpus_used` counts CPUs, of `given_cpus`.

    `cpus` are planned, `running_cpus` are those on which its threads were seen.
    """

    unit: str
    kind: str
    name: str
    state: str
    main_pid: int
    enabled: bool
    in_force: bool
    placed: str | None
    cpus: str
    given_cpus: int
    threads: tuple[int, ...]
    memory_policy: Policy
    allocator: str
    listen: tuple[str, ...]
    items: tuple[Item, ...]
    restarts_in_10_minutes: int | None
    failure: Failure | None
    state_age_seconds: float | None
    throughput: Speed | None
    loading: Text | None
    cpus_used: float | None
    memory_bytes: int | None
    memory_limit_bytes: int | None
    serving: Serving | None
    hang: Text | None
    wrong: tuple[Wrong, ...]
    problem: Text | None
    checkpoint_age_seconds: float | None = None
    running_cpus: str = ""
    moved: Moved | None = None

    @property
    def planned_cpus(self) -> str:
        """The CPUs that are planned for it; of an ad-hoc job only what has moved it knows them."""
        return self.moved.planned_cpus if self.moved else self.cpus

    @property
    def cpus_now(self) -> str:
        """The CPUs where it is: where it was found if it is not as planned, or those it was moved to."""
        if self.placed == "drift" and self.running_cpus:
            return self.running_cpus
        return self.moved.cpus if self.moved else self.cpus

    @property
    def given_cpus_now(self) -> int:
        """The number of CPUs that it may use now."""
        if self.moved is None or self.kind == "run":
            return self.given_cpus
        return self.given_cpus + len(CpuSet.parse(self.moved.cpus)) - len(CpuSet.parse(self.moved.planned_cpus))

    @property
    def title(self) -> str:
        """The title by which people call it: "train@demo"; "run-train-7" for an ad-hoc job."""
        return shorten(self.unit)

    def is_called(self, name: str) -> bool:
        """Says whether a person means it: "demo", "train@demo", or the name of its unit."""
        known = (self.name, self.title)
        return name in known or shorten(name) in known


@dataclass(frozen=True)
class State:
    """The host. `wrong` is of no service in the list, in whole sentences; `well`: nothing is wrong at all; None where
    this user may not see enough to tell.

    `moved` are the services that torchpard has moved, or that lend CPUs.
    """

    version: int
    generation: int | None
    conf: str
    services: tuple[ServiceState, ...]
    well: bool | None
    wrong: tuple[Wrong, ...]
    notices: tuple[Text, ...]
    moved: tuple[Moved, ...] = ()


def parse_state(answer: Mapping[str, object]) -> State:
    """Makes values of the answer's JSON data; each service has what has moved it. Raises ShapeError."""
    state = shape(answer, State)
    moved = {each.unit: each for each in state.moved}
    return replace(state, services=tuple(replace(row, moved=moved.get(row.unit)) for row in state.services))

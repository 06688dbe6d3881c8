"""Makes a Plan of Config and HostFacts: everything decided, with a reason for every value.

Pure: the same conf and the same facts give the same plan on any machine. A Plan that exists fits its host.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchpar.conf.services import OWN_USER, Config, Service
from torchpar.conf.settings import TrainSettings
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import CoresError
from torchpar.contract.fallback import CPU_AFFINITY
from torchpar.contract.job import VARIABLE
from torchpar.contract.paths import LAUNCH, RUN, SERVE
from torchpar.facts.exec_limits import INSTEAD, LINES, PATHS, WORDS, check_command, check_number, check_strings, size
from torchpar.facts.topology import HostFacts, PciDevice
from torchpar.placement.claims import Reason, Taken
from torchpar.placement.place import Placement, Share, place
from torchpar.plan.allocator import choose_allocator
from torchpar.plan.changes import find_change
from torchpar.plan.lending import explain_lending
from torchpar.plan.listening import addresses, find_collisions
from torchpar.plan.memory import PlannedMemory, choose_memory_policy, doubt_limits
from torchpar.plan.ranks import Rank, make_ranks
from torchpar.plan.sandbox import explain_writing, needed_files, write_paths
from torchpar.plan.variables import make_environment


@dataclass(frozen=True)
class ServicePlan:
    """The plan of one service. It computes on `cpus`; its loader workers may also use `loader_cpus`.

    Of `others_cpus` it may be lent some while it runs.
    """

    service: Service
    cpus: CpuSet
    loader_cpus: CpuSet
    cores: int
    own: bool
    memory: PlannedMemory
    gpus: tuple[PciDevice, ...]
    ranks: tuple[Rank, ...]
    allocator: str
    environment: Mapping[str, str]
    slot_mates: tuple[str, ...]
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]
    others_cpus: CpuSet = CpuSet()

    @property
    def unit(self) -> str:
        """The unit's name."""
        return self.service.unit

    @property
    def allowed_cpus(self) -> CpuSet:
        """All CPUs that any of its processes may use."""
        return self.cpus | self.loader_cpus | self.others_cpus

    @property
    def listen(self) -> tuple[str, ...]:
        """The addresses that systemd's socket of an inference service listens on; empty for a training service."""
        infer = self.service.infer()
        return tuple(itertools.chain(*addresses(infer))) if infer else ()

    @property
    def command(self) -> tuple[str, ...]:
        """The command line that systemd starts."""
        train = self.service.train()
        if train is None:
            return (self.service.settings.python, SERVE)
        what = ("-m", train.module) if train.module else ("--", train.script or "")
        launcher = LAUNCH if len(self.ranks) > 1 or train.nodes[1] > 1 else RUN
        return (train.python, launcher, *what, *train.arguments)

    @property
    def reload_command(self) -> tuple[str, ...]:
        """The command that has an inference service load its models again and waits; empty for a training service."""
        return (*self.command, "reload") if self.service.infer() else ()


@dataclass(frozen=True)
class Plan:
    """The plan of a whole host. `left_out` says of every online CPU that placement does not use why."""

    facts: HostFacts
    services: tuple[ServicePlan, ...]
    usable_cpus: CpuSet
    left_out: Mapping[int, str]
    unassigned_cpus: CpuSet
    warnings: tuple[str, ...]

    def find(self, unit: str) -> ServicePlan:
        """Finds the plan of a unit that the configuration declares."""
        return next(service for service in self.services if service.unit == unit)


def make_plan(config: Config, facts: HostFacts, *, taken: Taken = None) -> Plan:
    """Plans every service of the configuration on the host; `taken` is what jobs compute on at the moment, see place().

    Raises PlacementError when what is asked for does not fit the host; it names the smallest change that does.
    """

    def plan(changed: Config) -> Plan:
        return _make_plan(changed, facts, taken)

    try:
        return plan(config)
    except CoresError as error:
        change = find_change(config, error, plan)
        raise CoresError(f"{error}; {change} would fit" if change else str(error), error.unit) from None


def _make_plan(config: Config, facts: HostFacts, taken: Taken) -> Plan:
    placement = place(config, facts, taken=taken)
    services = tuple(_plan_service(service, config, placement, facts) for service in config.services)
    collisions = find_collisions(config.services)
    held = CpuSet.union(plan.cpus for plan in services if plan.service.settings.enabled)
    told = (*config.warnings, *placement.usable.warnings, *facts.doubts, *collisions)
    warnings = [*told, *(warning for plan in services for warning in plan.warnings)]
    return Plan(
        facts,
        services,
        placement.usable.cpus,
        placement.usable.left_out,
        placement.usable.cpus - held,
        tuple(dict.fromkeys(warnings)),
    )


def _plan_service(service: Service, config: Config, placement: Placement, facts: HostFacts) -> ServicePlan:
    share = placement.shares[service.unit]
    smt = config.host.smt if service.settings.smt is None else service.settings.smt
    quota = placement.usable.quota
    others_cpus, lending_reasons = explain_lending(service, config, placement, facts)
    ranks, rank_reasons, rank_warnings = make_ranks(service, share, facts, smt=smt, quota=quota)
    memory, memory_reason = choose_memory_policy(service, share, facts)
    allocator, allocator_environment, allocator_reason, allocator_warnings = choose_allocator(service, facts)
    environment, variable_reasons = make_environment(
        service, share, ranks, facts, memory=memory, allocator=allocator_environment, quota=quota
    )
    mates = tuple(
        other.unit
        for other in config.services
        if other is not service and other.settings.slot and other.settings.slot == service.settings.slot
    )
    plan = ServicePlan(
        service=service,
        cpus=share.cpus,
        loader_cpus=share.loader_cpus,
        cores=len(share.cores),
        own=share.own,
        memory=memory,
        gpus=share.gpus,
        ranks=ranks,
        allocator=allocator,
        environment=environment,
        slot_mates=mates,
        reasons=(
            *share.reasons,
            *_explain_unbound(service, facts),
            *rank_reasons,
            memory_reason,
            allocator_reason,
            *variable_reasons,
            *lending_reasons,
            explain_writing(service),
        ),
        warnings=(*share.warnings, *rank_warnings, *allocator_warnings, *_warn(service, share, ranks, facts)),
        others_cpus=others_cpus,
    )
    _refuse_what_no_kernel_starts(plan, facts)
    return plan


def is_bound(unit: str, facts: HostFacts) -> bool:
    """Says whether systemd is to bind the processes of a unit to its CPUs (CPUAffinity=)."""
    return facts.without.get(unit) != CPU_AFFINITY


def _explain_unbound(service: Service, facts: HostFacts) -> tuple[Reason, ...]:
    if is_bound(service.unit, facts):
        return ()
    why = f"systemd could not bind it to its CPUs at its last start (status {CPU_AFFINITY})"
    return (Reason("CPUAffinity", "none", why),)


def _refuse_what_no_kernel_starts(plan: ServicePlan, facts: HostFacts) -> None:
    """Raises PlacementError for more of something than execve(2) takes, or than systemd reads in a second."""
    service = plan.service
    for what in check_strings([f"{VARIABLE}={plan.environment.get(VARIABLE, '')}"], facts.page_size):
        raise service.refuse("Ranks", len(plan.ranks), f"what its processes are told of their places: {what}")
    directives = collections.Counter(key for key, _ in service.directives)
    by_hand = [value.split() for key, value in service.directives if key == "ReadWritePaths"]
    paths = [*write_paths(service), *itertools.chain(*by_hand)]
    for key, number, most, things, instead in (
        ("Arguments", len(plan.command), WORDS, "words", INSTEAD),
        ("Environment", len(plan.environment), LINES, "variables", INSTEAD),
        ("ReadWritePaths", len(paths), PATHS, "paths", "name a folder that they are in"),
        *((f"Service.{key}", number, LINES, "lines", "set fewer") for key, number in directives.items()),
    ):
        wrong = check_number(number, most, things, instead)
        if wrong:
            raise service.refuse(key, "", wrong)
    wrong = check_command(plan.command, plan.environment, dict(service.directives).get("LimitSTACK"))
    if wrong:
        words = sum(map(size, plan.command)) >= sum(map(size, plan.environment.values()))
        raise service.refuse("Arguments" if words else "Environment", "", wrong)


def _warn(service: Service, share: Share, ranks: tuple[Rank, ...], facts: HostFacts) -> list[str]:
    warnings = list(doubt_limits(service, facts))
    train = service.train()
    if train and train.ranks == 1 and len(facts.node_of(share.cpus)) > 1 and not share.gpus:
        warnings.append(
            f"{service.section}: one process on NUMA nodes {facts.node_of(share.cpus)}; if the script uses "
            "torch.distributed, Ranks=numa keeps each process near its memory"
        )
    own = train and train.ranks == 1 and train.threads is None and ranks[0].threads > 1 and _own_ranks(train)
    if train and own:
        warnings.append(
            f"{service.origin('Module')}: {service.section} Module={train.module} starts ranks of its own, each with"
            f" all {ranks[0].threads} threads: with Ranks= in place of it each has its own CPUs, or set Threads="
        )
    return warnings


def _own_ranks(train: TrainSettings) -> bool:
    """Says whether a job is itself a launcher of PyTorch's, and starts more than one rank."""
    if train.module not in ("torch.distributed.run", "torch.distributed.launch"):
        return False
    words = iter(train.arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == "--nproc-per-node":
            return (value if equals else next(words, "1")) != "1"
        if word.endswith(".py"):
            return False  # what follows is the script's own
    return False


def plan_json(plan: Plan) -> dict[str, Any]:
    """Returns the plan as JSON data: what `torchpar plan --json` prints and a generation keeps."""
    facts = plan.facts
    return {
        "version": 1,
        "host": {
            "hostname": facts.hostname,
            "arch": facts.arch,
            "online_cpus": str(facts.online_cpus),
            "usable_cpus": str(plan.usable_cpus),
            "left_out": {str(cpu): why for cpu, why in plan.left_out.items()},
            "cores": len(facts.cores),
            "packages": None if facts.packages is None else len(facts.packages),
            "numa_nodes": str(CpuSet(node.id for node in facts.numa_nodes)),
            "accelerators": [gpu.name for gpu in facts.accelerators()],
            "cpu_limit": facts.cpu_limit,
            "systemd_version": facts.systemd_version,
        },
        "services": [_service_json(service) for service in plan.services],
        "unassigned_cpus": str(plan.unassigned_cpus),
        "warnings": list(plan.warnings),
    }


def _service_json(plan: ServicePlan) -> dict[str, Any]:
    return {
        "unit": plan.unit,
        "kind": plan.service.kind.value,
        "name": plan.service.name,
        "enabled": plan.service.settings.enabled,
        "cpus": str(plan.cpus),
        "loader_cpus": str(plan.loader_cpus),
        "allowed_cpus": str(plan.allowed_cpus),
        "cores": plan.cores,
        "own": plan.own,
        "shared": plan.service.settings.cpus.kind is CpuRequestKind.SHARED,
        "memory_policy": {
            "policy": plan.memory.policy.value,
            "nodes": str(plan.memory.nodes),
            "allowed_nodes": str(plan.memory.allowed_nodes),
        },
        "allocator": plan.allocator,
        "gpus": [gpu.name for gpu in plan.gpus],
        "ranks": [
            {
                "local_rank": rank.local_rank,
                "cpus": str(rank.cpus),
                "numa_nodes": str(rank.numa_nodes),
                "threads": rank.threads,
                "loader_workers": rank.loader_workers,
                "loader_cpus": str(rank.loader_cpus),
                "budget": rank.budget,
                "gpus": [gpu.name for gpu in rank.gpus],
            }
            for rank in plan.ranks
        ],
        "listen": list(plan.listen),
        "environment": dict(plan.environment),
        "user": plan.service.settings.user or OWN_USER,
        "read_write_paths": list(write_paths(plan.service)),
        "needed_files": list(needed_files(plan.service)),
        "command": list(plan.command),
        "reasons": [{"key": r.key, "value": r.value, "why": r.why} for r in plan.reasons],
    }

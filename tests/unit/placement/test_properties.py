"""What must hold of a plan on every host and for every conf, whatever their shape."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.hosts import make_gpu, make_host
from tests.unit.placement.test_staying import in_force
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.facts.topology import CpuKind, Held, HostFacts
from torchpar.plan.plan import Plan, make_plan, plan_json


@st.composite
def hosts_in_use(draw: st.DrawFn) -> HostFacts:
    """Such hosts, with something in force that may or may not fit the conf and the host."""
    host = draw(hosts())
    held = st.builds(
        Held,
        st.sets(st.integers(0, max(host.online_cpus) + 2), max_size=8).map(CpuSet),
        st.lists(st.sampled_from([gpu.name for gpu in host.accelerators()] or ["0000:99:00.0"]), max_size=2).map(tuple),
    )
    units = st.sampled_from([f"torchpar-{kind}@s{i}.service" for i in range(6) for kind in ("train", "infer")])
    return dataclasses.replace(host, in_force=draw(st.dictionaries(units, held)))


@st.composite
def hosts(draw: st.DrawFn) -> HostFacts:
    """Regular hosts with holes: other cpusets, isolated CPUs, quotas, GPUs on known and unknown nodes."""
    host = make_host(
        packages=draw(st.integers(1, 4)),
        nodes_per_package=draw(st.integers(1, 3)),
        complexes_per_node=draw(st.integers(1, 3)),
        cores_per_complex=draw(st.integers(1, 5)),
        smt=draw(st.sampled_from([1, 2, 4])),
    )
    cpus = sorted(host.online_cpus)
    allowed = CpuSet(draw(st.sets(st.sampled_from(cpus), min_size=1))) if draw(st.booleans()) else host.online_cpus
    kinds: Any = ()
    if draw(st.booleans()):
        slow = CpuSet.union(draw(st.sets(st.sampled_from(host.cores))))
        kinds = (CpuKind(slow, 0, draw(st.sampled_from([0.2, 0.5, 0.8]))), CpuKind(host.online_cpus - slow, 1, 1.0))
    isolated = CpuSet(draw(st.sets(st.sampled_from(cpus), max_size=2)))
    nodes: Any = st.sampled_from([None, *(node.id for node in host.numa_nodes)])
    gpu_parts: Any = st.booleans(), st.sampled_from([(), (), ("1/0", "2/0", "2/1")])
    return dataclasses.replace(
        host,
        allowed_cpus=allowed,
        isolated_cpus=isolated,
        cpu_kinds=kinds,
        cpu_limit=draw(st.sampled_from([None, None, 0.5, 1.0, 2.9, 7.5])),
        gpus=tuple(
            dataclasses.replace(make_gpu(i, node), uuid=f"GPU-{i}" if known else None, mig_instances=mig)
            for i, (node, known, mig) in enumerate(draw(st.lists(st.tuples(nodes, *gpu_parts), max_size=4)))
        ),
    )


SERVICES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "Enabled": st.sampled_from(["yes", "no"]),
            "CPUs": st.sampled_from(["auto", "1", "2", "5", "shared", "0-1", "node:0", "package:0"]),
            "Weight": st.integers(1, 500).map(str),
            "Ranks": st.sampled_from(["1", "2", "3", "numa", "gpu"]),
            "Binding": st.sampled_from(["auto", "node", "socket", "exclusive", "core-complex", "none"]),
            "Threads": st.integers(1, 9).map(str),
            "LoaderWorkers": st.sampled_from(["auto", "off", "0", "3"]),
            "SMT": st.sampled_from(["yes", "no"]),
            "GPUs": st.sampled_from(["auto", "none", "1"]),
            "Slot": st.sampled_from(["s", "t"]),
            "MemoryMax": st.sampled_from(["1G", "64G"]),
            "Model": st.just("/m.pt"),
        },
    ),
    min_size=1,
    max_size=5,
)


# What an inference service has no use for.
OF_TRAINING = ("Ranks", "Binding", "LoaderWorkers")


def conf_of(services: list[dict[str, str]], order: list[int] | None = None) -> str:
    """The conf that declares them, as s0, s1, ..., in this order of sections; those with a Model= infer."""
    texts = []
    for i, keys in enumerate(services):
        infer = "Model" in keys
        head = f"[Infer s{i}]\nListen=127.0.0.1:{8000 + i}\n" if infer else f"[Train s{i}]\nScript=/s{i}.py\n"
        lines = [f"{key}={value}\n" for key, value in keys.items() if not (infer and key in OF_TRAINING)]
        texts.append(head + "".join(lines))
    return "".join(texts[i] for i in (range(len(texts)) if order is None else order))


def plan_or_refusal(text: str, host: HostFacts) -> Plan | str:
    """The plan, or the message why there is none."""
    try:
        return make_plan(parse_config([ConfFile("/c", text)], host), host)
    except PlacementError as error:
        return str(error)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hosts_in_use(), SERVICES)
def test_no_plan_breaks_a_promise(  # noqa: C901 - promise by promise
    host: HostFacts, services: list[dict[str, str]]
) -> None:
    """No core in two exclusive services, every rank inside its service, threads and loaders within the budget, nothing
    outside the allowed CPUs; and what cannot be is refused with its place."""
    plan = plan_or_refusal(conf_of(services), host)
    if isinstance(plan, str):
        assert plan.startswith(("/c:", "[Host]"))
        return
    held: dict[int, str] = {}
    slow = CpuSet.union(kind.cpus for kind in host.cpu_kinds if kind.capacity < 1)
    computing = CpuSet.union(service.cpus for service in plan.services if service.service.settings.enabled)
    loading = CpuSet()
    for service in plan.services:
        settings_ = service.service.settings
        assert service.cpus and service.cpus <= (host.online_cpus & host.allowed_cpus)
        if settings_.enabled and settings_.cpus.kind.value != "shared":
            claim = settings_.slot or service.unit
            for core in host.cores:
                for cpu in core & service.cpus:
                    assert held.setdefault(cpu, claim) == claim
        if settings_.cpus.kind.value in ("auto", "count"):
            # A core is whole: all of its CPUs that may be used.
            usable = host.online_cpus & host.allowed_cpus
            for core in host.cores:
                assert not core & service.cpus or core & usable == core & service.cpus
        assert service.loader_cpus <= host.online_cpus & host.allowed_cpus & slow - service.cpus
        if settings_.enabled:
            assert service.loader_cpus.isdisjoint(loading)
            loading |= CpuSet() if settings_.slot else service.loader_cpus
        assert service.loader_cpus.isdisjoint(computing)
        train = service.service.train()
        if train and train.binding.value in ("auto", "exclusive") and not settings_.cpus.is_explicit():
            sizes = [sum(1 for core in host.cores if core & rank.cpus) for rank in service.ranks]
            assert max(sizes) - min(sizes) <= 1
        smt = bool(settings_.smt)
        for rank in service.ranks:
            assert rank.cpus and rank.cpus <= service.cpus and rank.threads >= 1
            cores = sum(1 for core in host.cores if core & rank.cpus)
            budget = len(rank.cpus) if smt or rank.gpus else cores
            slots = sum(1 for core in host.cores if core & rank.loader_cpus)
            assert rank.loader_cpus <= service.loader_cpus
            assert rank.threads + rank.loader_workers <= max(1, budget) + slots
            if host.cpu_limit is not None and len(service.ranks) == 1:
                assert rank.threads + rank.loader_workers <= max(1, int(host.cpu_limit))
            if host.cpu_limit is not None:
                assert rank.threads <= max(1, int(host.cpu_limit))
        assert service.memory.nodes <= CpuSet(node.id for node in host.numa_nodes)
        assert service.memory.nodes <= service.memory.allowed_nodes or not service.memory.nodes
    gpus = [
        (gpu.pci, gpu.mig)
        for s in plan.services
        if s.service.settings.enabled and not s.service.settings.slot
        for gpu in s.gpus
    ]
    assert len(gpus) == len(set(gpus))
    assert plan.usable_cpus | CpuSet(plan.left_out) == host.online_cpus


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hosts_in_use(), SERVICES, st.randoms())
def test_a_plan_is_deterministic_and_the_order_of_sections_means_nothing(
    host: HostFacts, services: list[dict[str, str]], random: Any
) -> None:
    """The same conf and the same facts give the same plan."""
    order = list(range(len(services)))
    random.shuffle(order)
    first, again = (plan_or_refusal(conf_of(services), host) for _ in range(2))
    shuffled = plan_or_refusal(conf_of(services, order), host)
    if isinstance(first, str):
        assert first == again and isinstance(shuffled, str)
        return
    assert not isinstance(again, str) and not isinstance(shuffled, str)

    def without_places(plan: Plan) -> Any:
        data = plan_json(plan)
        return [{key: service[key] for key in service if key != "reasons"} for service in data["services"]]

    assert plan_json(first) == plan_json(again)
    assert without_places(first) == without_places(shuffled)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hosts_in_use(), SERVICES)
def test_a_plan_that_is_in_force_is_made_again_byte_by_byte(host: HostFacts, services: list[dict[str, str]]) -> None:
    """Whatever was in force before, the second apply of a conf changes nothing; nor does a refusal depend on it."""
    plan = plan_or_refusal(conf_of(services), host)
    if isinstance(plan, str):
        refusal = plan_or_refusal(conf_of(services), host.afresh())
        # Too many ranks: the message names the CPUs, or the service that has fewer accelerators, which may be others.
        kinds = {re.sub(r"\([^)]*\)|^\S+ \[.*?\]|\d+", "", str(each)) for each in (plan, refusal)}
        assert isinstance(refusal, str) and len(kinds) == 1
        return
    again = plan_or_refusal(conf_of(services), dataclasses.replace(host, in_force=in_force(plan)))
    assert not isinstance(again, str) and plan_json(again) == plan_json(plan)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hosts(), SERVICES, st.integers(0, 4))
def test_who_gets_as_many_cores_as_before_stays_where_they_are_still_free(
    host: HostFacts, services: list[dict[str, str]], added: int
) -> None:
    """A service is added, and so others may shrink; lists stay in any case."""
    added %= len(services)
    before = plan_or_refusal(conf_of(services, [i for i in range(len(services)) if i != added]), host)
    if isinstance(before, str):
        return
    host = dataclasses.replace(host, in_force=in_force(before))
    after = plan_or_refusal(conf_of(services), host)
    if isinstance(after, str):
        return
    new = next(service for service in after.services if service.service.name == f"s{added}")
    gpus = {service.unit: {gpu.name for gpu in service.gpus} for service in after.services}
    for old in before.services:
        now, settings_ = after.find(old.unit), old.service.settings
        if settings_.cpus.is_explicit():
            assert now.cpus == old.cpus
        elif (
            settings_.enabled
            and settings_.cpus.kind.value != "shared"
            and not settings_.slot
            and now.cores == old.cores
            and gpus[old.unit] == {gpu.name for gpu in old.gpus}
            and not (new.service.settings.cpus.is_explicit() and new.service.settings.enabled)
            and not new.service.settings.slot
        ):
            assert now.cpus == old.cpus


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hosts(), st.integers(1, 500), st.sampled_from(["CPUs=auto", "CPUs=1", "CPUs=2", "CPUs=5"]))
def test_the_number_of_ranks_does_not_depend_on_what_is_in_force(host: HostFacts, weight: int, request_: str) -> None:
    """A service comes beside another with a rank for each node, and goes again."""
    host = dataclasses.replace(host, gpus=())
    alone = "[Train r]\nScript=/r.py\nRanks=numa\nEnabled=yes\n"
    both = f"{alone}[Train s]\nScript=/s.py\nEnabled=yes\nWeight={weight}\n{request_}\n"
    for first, second in ((alone, both), (both, alone)):
        plan = plan_or_refusal(first, host)
        after = plan_or_refusal(
            second, host if isinstance(plan, str) else dataclasses.replace(host, in_force=in_force(plan))
        )
        afresh = plan_or_refusal(second, host)
        if isinstance(after, str) or isinstance(afresh, str):
            continue
        assert len(after.services[0].ranks) == len(afresh.services[0].ranks)

"""What must hold of the quality of plans on any host, for any conf that does not name CPUs.

EXAMPLES in the environment says how many are tried.
"""

from __future__ import annotations

import dataclasses
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.benchmarks.bench_plan_quality import is_needless, is_unequal
from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.facts.topology import CpuKind, HostFacts
from torchpar.plan.plan import make_plan
from torchpar.plan.quality import plan_quality

EXAMPLES = int(os.environ.get("EXAMPLES", "100"))
LEAST = 0.85


@st.composite
def hosts(draw: st.DrawFn) -> HostFacts:
    """One node or many, of one size or not, with one kind of cores or several, with a quota or without."""
    host = make_host(
        packages=draw(st.sampled_from([1, 1, 2, 2, 3, 4, 8, 16])),
        nodes_per_package=draw(st.sampled_from([1, 1, 2, 4])),
        complexes_per_node=draw(st.sampled_from([1, 1, 2])),
        cores_per_complex=draw(st.integers(1, 12)),
        smt=draw(st.sampled_from([1, 2])),
    )
    if draw(st.booleans()):
        gone = CpuSet.union(draw(st.sets(st.sampled_from(host.cores), max_size=len(host.cores) - 1)))
        host = dataclasses.replace(host, allowed_cpus=host.online_cpus - gone)
    if draw(st.integers(0, 2)) == 0:
        speeds = st.sampled_from([0.25, 0.35, 0.5, 0.7, 0.85, 1.0])
        capacities = draw(st.lists(speeds, min_size=2, max_size=3, unique=True))
        bounds = sorted(draw(st.integers(0, len(host.cores))) for _ in capacities[1:])
        parts = zip([0, *bounds], [*bounds, len(host.cores)], sorted(capacities), strict=True)
        kinds = [(CpuSet.union(host.cores[start:end]), capacity) for start, end, capacity in parts if end > start]
        fastest = max(capacity for _, capacity in kinds)
        host = dataclasses.replace(
            host, cpu_kinds=tuple(CpuKind(cpus, i, capacity / fastest) for i, (cpus, capacity) in enumerate(kinds))
        )
    return dataclasses.replace(host, cpu_limit=draw(st.sampled_from([None] * 6 + [1.0, 2.5, 4.0, 7.5])))


SERVICES = st.lists(
    st.fixed_dictionaries(
        {"Enabled": st.sampled_from(["yes", "yes", "yes", "yes", "no"])},
        optional={
            "CPUs": st.sampled_from(["auto", "auto", "1", "2", "3", "4", "6", "8", "shared"]),
            "Weight": st.sampled_from(["50", "100", "200", "300"]),
            "Ranks": st.sampled_from(["1", "2", "3", "4", "numa", "numa"]),
            "Model": st.just("/m.pt"),
        },
    ),
    min_size=1,
    max_size=5,
)


def conf_of(services: list[dict[str, str]]) -> str:
    """Training services, and inference services where there is a Model=."""
    lines = []
    for i, keys in enumerate(services):
        infer = "Model" in keys
        lines += [f"[Infer s{i}]", f"Listen=127.0.0.1:{8000 + i}"] if infer else [f"[Train s{i}]", "Script=/s.py"]
        lines += [f"{key}={value}" for key, value in keys.items() if not (infer and key == "Ranks")]
    return "\n".join(lines)


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(hosts(), SERVICES)
def test_a_plan_is_good_and_nothing_is_refused_that_can_be(host: HostFacts, services: list[dict[str, str]]) -> None:
    """Ranks that differ by no more than a core, and of the fair shares nearly all."""
    config = parse_config([ConfFile("/c", conf_of(services))], host)
    try:
        plan = make_plan(config, host)
    except PlacementError as error:
        assert not is_needless(config, host), error
        return
    assert not any(is_unequal(plan, service) for service in plan.services)
    assert plan_quality(plan, config) >= LEAST

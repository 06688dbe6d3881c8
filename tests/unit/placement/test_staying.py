"""Services stay where they are: what a changed conf may move, on machines where something is in force already."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.unit.hosts import make_gpu, make_host
from tests.unit.placement.test_place import kinds_of
from tests.unit.placement.test_quality_properties import EXAMPLES, SERVICES, conf_of, hosts
from torchpar.cli.main import run
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.facts.topology import Held, HostFacts, facts_json, parse_facts
from torchpar.host.facts import read_facts
from torchpar.plan.plan import Plan, make_plan, plan_json
from torchpar.plan.quality import plan_quality

FOUR = make_host()
EIGHT = make_host(packages=2, cores_per_complex=4)


def in_force(plan: Plan) -> dict[str, Held]:
    """What a host has in force when this plan is applied."""
    return {
        service.unit: Held(service.cpus, tuple(gpu.name for gpu in service.gpus), service.loader_cpus)
        for service in plan.services
    }


def apply(text: str, host: HostFacts) -> tuple[Plan, HostFacts]:
    """The plan of a conf ("a CPUs=2" is short for an enabled service), and the host with that plan in force."""
    lines = ["[Host]", "ReserveCores=0"]
    for line in text.splitlines():
        name, *keys = line.split()
        lines += [f"[Train {name}]", f"Script=/{name}.py", "Enabled=yes", *keys]
    plan = make_plan(parse_config([ConfFile("/c", "\n".join(lines))], host), host)
    return plan, dataclasses.replace(host, in_force=in_force(plan))


def cpus(plan: Plan) -> dict[str, str]:
    """The CPUs of each service, by name."""
    return {service.service.name: str(service.cpus) for service in plan.services}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("b CPUs=2", "a CPUs=2\nb CPUs=2", {"b": "0-1", "a": "2-3"}),
        ("a CPUs=1\nb CPUs=2\nc CPUs=1", "b CPUs=2\nc CPUs=1", {"b": "0-1", "c": "3"}),
        ("a\nb", "a\nb\nc Weight=1", {"a": "0-1", "b": "2", "c": "3"}),
        ("a CPUs=2", "a CPUs=3", {"a": "0-2"}),
        ("a CPUs=1\nb CPUs=1", "a CPUs=2\nb CPUs=1", {"a": "0,2", "b": "1"}),
        ("a CPUs=1\nb CPUs=1", "a CPUs=1\nb CPUs=1\nc CPUs=0-0", {"a": "2", "b": "1", "c": "0"}),
        ("a CPUs=2-3", "a CPUs=2", {"a": "2-3"}),
    ],
    ids=["added", "removed", "a smaller share", "more", "around another", "ousted by a list", "a count for a list"],
)
def test_only_those_move_that_must(before: str, after: str, expected: dict[str, str]) -> None:
    """By name, on four cores."""
    _, host = apply(before, FOUR)
    plan, _ = apply(after, host)
    assert cpus(plan) == expected


def test_a_service_that_grows_moves_rather_than_lie_across_nodes() -> None:
    """It starts anew anyway to have its new CPUs, so it may as well have them together."""
    _, host = apply("a CPUs=2\nb CPUs=2", EIGHT)
    plan, _ = apply("a CPUs=4\nb CPUs=2", host)
    assert cpus(plan) == {"a": "4-7", "b": "2-3"}


@pytest.mark.parametrize(
    ("ranks", "expected"), [("numa", ["0-4", "8-12"]), ("2", ["0-4", "8-12"]), ("3", ["0-2", "3-5", "8-10"])]
)
def test_ranks_stay_equal_and_as_many_when_their_service_shrinks(ranks: str, expected: list[str]) -> None:
    """The number of ranks is what a job was tuned for: another one beside it takes cores of each rank."""
    two = make_host(packages=2, cores_per_complex=8)
    _, host = apply(f"r Ranks={ranks}", two)
    plan, _ = apply(f"r Ranks={ranks}\ns Weight=60", host)
    assert [str(rank.cpus) for rank in plan.find("torchpar-train@r.service").ranks] == expected


@pytest.mark.parametrize("ranks", ["numa", "2"])
def test_ranks_keep_what_they_have_when_their_service_grows(ranks: str) -> None:
    """A core of each node comes to those that it has, wherever these are on it."""
    held = {"torchpar-train@r.service": Held(CpuSet([2, 3, 5, 6]))}
    plan, _ = apply(f"r Ranks={ranks} CPUs=6", dataclasses.replace(EIGHT, in_force=held))
    assert CpuSet([2, 3, 5, 6]) <= plan.services[0].cpus
    assert [len(rank.cpus) for rank in plan.services[0].ranks] == [3, 3]


def test_accelerators_are_kept_like_cores_and_draw_their_service_with_them() -> None:
    """Who has a GPU keeps it; who gets another one goes where that is."""
    host = dataclasses.replace(EIGHT, gpus=(make_gpu(0, 0), make_gpu(1, 1)))
    _, host = apply("b CPUs=2 GPUs=1", host)
    plan, host = apply("a CPUs=2 GPUs=1\nb CPUs=2 GPUs=1", host)
    assert {s.service.name: [gpu.pci[5:7] for gpu in s.gpus] for s in plan.services} == {"a": ["11"], "b": ["10"]}
    assert cpus(plan) == {"b": "0-1", "a": "4-5"}
    plan, _ = apply("a CPUs=2 GPUs=0000:10:00.0\nb CPUs=2 GPUs=1", host)
    assert cpus(plan) == {"a": "0-1", "b": "4-5"}


def test_the_plan_says_where_a_service_would_be_otherwise() -> None:
    """And the same bytes come out again once that plan is in force."""
    _, host = apply("b CPUs=2", FOUR)
    plan, host = apply("a CPUs=2\nb CPUs=2", host)
    why = "so that services stay where they are; placed afresh it would have CPUs 0-1 (apply --afresh)"
    assert [reason.why for reason in plan.services[0].reasons if reason.key == "CPUs"][1:] == [why]
    again, _ = apply("a CPUs=2\nb CPUs=2", host)
    assert plan_json(plan) == plan_json(again)
    assert parse_facts(json.loads(json.dumps(facts_json(host)))) == host


def write_machine(root: Path, plan: str) -> None:
    """Four cores, a conf with two services, and a plan in force."""
    files = {
        "sys/devices/system/cpu/online": "0-3",
        **{f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i}" for i in range(4)},
        "etc/torchpar.conf": "[Host]\nReserveCores=0\n"
        + "".join(f"[Train {name}]\nScript=/s\nEnabled=yes\nCPUs=2\n" for name in "ab"),
        "var/lib/torchpar/generations/3/plan.json": plan,
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "var/lib/torchpar/active").symlink_to("generations/3")


def test_what_is_in_force_is_read_below_the_root_and_who_moves_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--afresh leaves it aside, and says who would move."""
    unit = "torchpar-train@b.service"
    write_machine(tmp_path, json.dumps({"services": [{"unit": unit, "cpus": "0-1", "gpus": []}]}))
    assert run(["plan", "--root", str(tmp_path)]) == 0
    assert "moves" not in capsys.readouterr().out
    assert run(["plan", "--root", str(tmp_path), "--afresh"]) == 0
    assert "train@b moves from CPUs 0-1 to 2-3\n" in capsys.readouterr().out


@pytest.mark.parametrize("plan", ["", "{", "[]", '{"services": 1}', '{"services": [{"unit": "a"}]}',
                                  '{"services": [{"unit": "a", "cpus": "9-1", "gpus": []}]}'])  # fmt: skip
def test_a_damaged_plan_keeps_nothing(tmp_path: Path, plan: str) -> None:
    """Nothing can stay where nobody knows that it is."""
    write_machine(tmp_path, plan)
    assert read_facts(tmp_path).in_force == {}


def test_who_stays_computes_on_none_that_it_would_only_wait_for() -> None:
    """Beside its three fast cores a slower one is free; four of those would be as many as it asked for."""
    host = kinds_of((430, 4), (686, 4), (1024, 3))
    held = {"torchpar-train@b.service": Held(CpuSet([8, 9, 10])), "torchpar-train@a.service": Held(CpuSet([5, 6, 7]))}
    text = "a\nb CPUs=4\nc Weight=50"
    plan, host = apply(text, dataclasses.replace(host, in_force=held))
    service = plan.find("torchpar-train@b.service")
    assert [(str(rank.cpus), rank.threads) for rank in service.ranks] == [("8-10", 3)]
    again, _ = apply(text, host)
    assert plan_json(plan) == plan_json(again)


def test_a_service_near_an_accelerator_keeps_the_others_from_nothing() -> None:
    """What the others had is broken up for equal ranks; they move as they would without it."""
    host = dataclasses.replace(make_host(packages=3, cores_per_complex=4), gpus=(make_gpu(0, 0),))
    held = {"torchpar-train@s.service": Held(CpuSet([4, 5])), "torchpar-train@t.service": Held(CpuSet([8, 9]))}
    text = "g CPUs=4 GPUs=1\ns CPUs=2 GPUs=none\nt CPUs=2 GPUs=none\nr Ranks=numa GPUs=none"
    plan, host = apply(text, dataclasses.replace(host, in_force=held))
    assert cpus(plan)["g"] == "0-3" and cpus(plan)["s"] == "4-5"
    assert [rank.threads for rank in plan.find("torchpar-train@r.service").ranks] == [4]
    again, _ = apply(text, host)
    assert plan_json(plan) == plan_json(again)


def test_what_stays_is_measured_with_the_processes_that_it_will_have() -> None:
    """Where it could stay two of its cores would be too few in their core complex for a process."""
    host = make_host(packages=8, complexes_per_node=2, cores_per_complex=8)
    services = [{"Enabled": "yes", "Ranks": "numa"}, {"Enabled": "yes", "Weight": "50", "Model": "/m.pt"}]
    before, after = (parse_config([ConfFile("/c", conf_of(part))], host) for part in (services[:1], services))
    plan = make_plan(after, dataclasses.replace(host, in_force=in_force(make_plan(before, host))))
    assert [len(rank.cpus) for rank in plan.find("torchpar-infer@s1.service").ranks] == [8] * 5
    assert plan_quality(plan, after) == 1.0


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(hosts(), SERVICES)
def test_staying_costs_no_more_than_a_twentieth(host: HostFacts, services: list[dict[str, str]]) -> None:
    """As the plans are, with what their ranks are bound to; the last service comes beside the others.

    A quota is left aside: a core of the nearest node uses it up, whatever else a service is bound to.
    """
    host = dataclasses.replace(host, cpu_limit=None)
    before, after = (parse_config([ConfFile("/c", conf_of(part))], host) for part in (services[:-1], services))
    try:
        used = dataclasses.replace(host, in_force=in_force(make_plan(before, host)))
        plans = [make_plan(after, each) for each in (host, used)]
    except PlacementError:
        return
    afresh, staying = (plan_quality(plan, after) for plan in plans)
    if any(service.settings.enabled for service in after.services):
        assert staying >= afresh - 0.05 - 1e-9


def test_a_service_that_is_not_enabled_has_no_core_of_the_system_and_says_why_it_is_elsewhere() -> None:
    """Eight of nine cores on two nodes: four of each are faster than five and three, and there it stays."""
    host = make_host(packages=2, cores_per_complex=5)
    text = "[Infer a]\nModel=/m.pt\nCPUs=8\n"
    first = make_plan(parse_config([ConfFile("/c", text)], host), host)
    assert str(first.services[0].cpus) == "1-8"
    again = make_plan(parse_config([ConfFile("/c", text)], host), dataclasses.replace(host, in_force=in_force(first)))
    assert plan_json(again) == plan_json(first)


def test_the_system_keeps_another_core_than_one_that_a_service_has() -> None:
    """The core for the system is chosen anew where the search is; it is not that of a service that stays."""
    host = make_host(packages=4, cores_per_complex=6)
    first = [{"CPUs": "1"}, {"Model": "/m.pt"}, {"CPUs": "1"}]
    plans = []
    for services in (first, [*first, {"Ranks": "3"}]):
        config = parse_config([ConfFile("/c", conf_of([{"Enabled": "yes", **keys} for keys in services]))], host)
        plans.append(make_plan(config, host))
        host = dataclasses.replace(host, in_force=in_force(plans[-1]))
    before, after = map(cpus, plans)
    assert (after["s0"], after["s2"]) == (before["s0"], before["s2"])


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(hosts(), SERVICES)
def test_nobody_moves_off_cores_that_nobody_gets(host: HostFacts, services: list[dict[str, str]]) -> None:
    """On cores that are alike, where the last service comes beside the others and staying costs nothing."""
    host = dataclasses.replace(host, cpu_kinds=())
    services = [{**keys, "Enabled": "yes"} for keys in services]
    before, after = (parse_config([ConfFile("/c", conf_of(part))], host) for part in (services[:-1], services))
    try:
        old = make_plan(before, host)
        new = make_plan(after, dataclasses.replace(host, in_force=in_force(old)))
    except PlacementError:
        return
    unheld = new.unassigned_cpus | CpuSet(cpu for cpu, why in new.left_out.items() if "given to" not in why)
    for service in old.services:
        now = new.find(service.unit)
        if len(service.ranks) == 1 and service.cores == now.cores == service.service.settings.cpus.count == 1:
            assert now.cpus == service.cpus or not service.cpus <= unheld


@pytest.mark.parametrize(
    ("text", "held", "expected"),
    [
        ("a CPUs=6", {"a": "8-13"}, {"a": "8-13"}),
        ("a CPUs=6\nb CPUs=7", {"a": "10-15", "b": "1-7"}, {"a": "10-15", "b": "1-7"}),
        ("a CPUs=6\nb CPUs=9", {"a": "7-12"}, {"a": "7-12", "b": "0-6,13-14"}),
    ],
    ids=["others are beyond", "all of the quota", "more than the quota"],
)
def test_a_service_stays_on_cores_that_would_be_beyond_a_quota(
    text: str, held: dict[str, str], expected: dict[str, str]
) -> None:
    """As many as the quota are used all the same."""
    used = {f"torchpar-train@{name}.service": Held(CpuSet.parse(cpus)) for name, cpus in held.items()}
    host = dataclasses.replace(make_host(cores_per_complex=16), cpu_limit=12.8, in_force=used)
    plan, after = apply(text, host)
    assert cpus(plan) == expected
    assert cpus(apply(text, after)[0]) == expected


@pytest.mark.parametrize("held", [{}, {"b": "7-11"}, {"a": "1-6", "b": "9-13"}, {"a": "0-5", "b": "10-14"}])
def test_no_core_beyond_a_quota_is_given_away_while_another_is_free(held: dict[str, str]) -> None:
    """Eleven cores of a quota of seven."""
    used = {f"torchpar-train@{name}.service": Held(CpuSet.parse(cpus)) for name, cpus in held.items()}
    host = dataclasses.replace(make_host(packages=2, cores_per_complex=8), cpu_limit=7.5, in_force=used)
    plan, _ = apply("a CPUs=6\nb CPUs=5", host)
    assert not plan.unassigned_cpus
    assert sum("given to" in why for why in plan.left_out.values()) == 4

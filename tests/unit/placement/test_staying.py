"""Services stay where they are: what a changed conf may move, on machines where something is in force already."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.unit.hosts import make_gpu, make_host
from torchpar.cli.main import run
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import Held, HostFacts, facts_json, parse_facts
from torchpar.host.facts import read_facts
from torchpar.plan.plan import Plan, make_plan, plan_json

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
        name, *settings = line.split()
        lines += [f"[Train {name}]", f"Script=/{name}.py", "Enabled=yes", *settings]
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

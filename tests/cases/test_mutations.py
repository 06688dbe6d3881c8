"""Facts and plans that a person, a disk or a bug has changed: an answer or an error in words, soon, in little memory.

EXAMPLES in the environment says how many of each are tried.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cases.conftest import CAPTURES
from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import FactsError, TorchparError
from torchpar.contract.reports import RankReport
from torchpar.contract.typed_json import ShapeError, parse_json
from torchpar.facts.running import Process, RunningUnit
from torchpar.facts.topology import facts_json, parse_facts, topology_json
from torchpar.generations.readback import compare_unit
from torchpar.host.facts import read_facts
from torchpar.plan.plan import make_plan, plan_json
from torchpar.plan.record import parse_places, parse_plan
from torchpar.units.drop_ins import make_units
from torchpar.verify.compare import verify

EXAMPLES = int(os.environ.get("EXAMPLES", "300"))

# Of CPU time for one example, on whatever machine; the usual is a hundredth of it.
SECONDS = 2.0
MEBIBYTES = 200

TRAIN = "[Train a]\nScript=/a.py\n"
INFER = "[Infer c]\nModel=/c.pt\n"
CONFS = (
    f"{TRAIN}Enabled=yes\nRanks=numa\nEnvironment=A=1\n[Train b]\nScript=/b.py\n{INFER}",
    f"{TRAIN}Ranks=gpu\n[Train b]\nScript=/b.py\nCPUs=1\nEnabled=yes\n{INFER}CPUs=shared\n",
    f"[Match]\nHost=*\nCPUs=>=2\n{TRAIN}Binding=node\nNUMAPolicy=bind\nMemoryMax=50%\nCPUs=node:0\n",
)

# What a program, a disk or a joker writes in place of a value.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 8191, 8192, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e300, float("nan"),
    float("inf"), "", "x", "0-4294967295", "0-8191", "9" * 400, "\ud800", "\0", "a\nb", "\x1b[2J", "x" * 10_000,
    [], [[]], {}, {"a": 1}, [-1], [0], [0] * 10_000, list(range(8192)), ["0"], [None], [{"id": 0}],
)  # fmt: skip


def changed(data: Any, chance: random.Random) -> Any:
    """A copy with up to three values replaced, removed, doubled or exchanged with others of the same data."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 2))):
        parent, key = _pick(data, chance)
        if parent is None:
            return chance.choice(ODD)
        action = chance.random()
        if action < 0.55:
            parent[key] = copy.deepcopy(chance.choice(ODD))
        elif action < 0.7:
            del parent[key]
        elif action < 0.85:
            other, place = _pick(data, chance)
            parent[key] = copy.deepcopy(other[place]) if other is not None else copy.deepcopy(chance.choice(ODD))
        elif isinstance(parent, list):
            parent[key:key] = [copy.deepcopy(parent[key])] * chance.choice((1, 2, 50))
        elif isinstance(parent[key], int) and not isinstance(parent[key], bool):
            parent[key] += chance.choice((-1, 1, 10**6))
    return data


def _pick(data: Any, chance: random.Random) -> tuple[Any, Any]:
    """A place in the data, the deeper the rarer."""
    parent: Any = None
    key: Any = None
    while isinstance(data, (dict, list)) and data and (parent is None or chance.random() < 0.8):
        parent, key = data, chance.choice(sorted(data) if isinstance(data, dict) else range(len(data)))
        data = parent[key]
    return parent, key


def garbled(text: str, chance: random.Random) -> bytes:
    """The text with a few bytes changed, cut or repeated."""
    data = bytearray(text.encode())
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        action = chance.random()
        if action < 0.4:
            data[place : place + 1] = chance.choice((b"\xff", b"[" * 5000, b"9" * 500, b"{", b'"', b"\0", b"1e999"))
        elif action < 0.7:
            del data[place : place + chance.randint(1, 200)]
        else:
            data[place:place] = data[max(0, place - chance.randint(1, 500)) : place]
    return bytes(data)


def try_all(texts: list[str], use: Callable[[bytes], object]) -> None:
    """Give every changed text to `use`, which may raise nothing but a TorchparError."""
    slowest, refused, begun = 0.0, 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parsed = [json.loads(text) for text in texts]
    for number in range(EXAMPLES):
        chance = random.Random(number)
        choice = chance.randrange(len(texts))
        data = json.dumps(changed(parsed[choice], chance)).encode() if number % 4 else garbled(texts[choice], chance)
        start = time.process_time()
        try:
            use(data)
        except TorchparError as error:
            refused += 1
            assert len(str(error)) < 1000 and str(error).isprintable(), str(error)[:1000]
        except BaseException as error:
            error.add_note(f"example {number} of seed {choice}")
            raise
        slowest = max(slowest, time.process_time() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun) / 1024
    print(f"\n{EXAMPLES} examples, {refused} refused, the slowest {slowest:.3f} s of CPU time, {grown:.0f} MiB more")
    assert slowest < SECONDS and grown < MEBIBYTES


def test_no_facts_end_in_a_traceback(unpack: Callable[[str], Path]) -> None:
    """They come from other hosts, and through the hands of configuration management."""
    planned = 0

    def use(data: bytes) -> None:
        nonlocal planned
        try:
            facts = parse_facts(parse_json(data))
        except ShapeError as error:
            raise TorchparError(str(error)) from None
        conf = CONFS[len(data) % len(CONFS)]
        plan = make_plan(parse_config([ConfFile("/etc/torchpar.conf", conf)], facts), facts)
        json.dumps(plan_json(plan), allow_nan=False).encode()
        make_units(plan)
        json.dumps(topology_json(facts), allow_nan=False)
        planned += 1

    hosts = [read_facts(unpack(path.name.removesuffix(".tar.xz"))) for path in sorted(CAPTURES.glob("*.tar.xz"))]
    try_all([json.dumps(facts_json(host)) for host in hosts], use)
    assert planned > EXAMPLES / 20


def test_no_plan_of_the_store_ends_in_a_traceback(unpack: Callable[[str], Path]) -> None:
    """A generation's plan is compared with what systemd holds and with a unit that runs, and says who stays where."""
    texts = []
    for path in sorted(CAPTURES.glob("*.tar.xz")):
        facts = read_facts(unpack(path.name.removesuffix(".tar.xz")))
        with contextlib.suppress(TorchparError):
            plan = make_plan(parse_config([ConfFile("/etc/torchpar.conf", CONFS[0])], facts), facts)
            texts.append(json.dumps(plan_json(plan)))
    processes = (Process(7, {7: CpuSet([0])}, {"bind:0": 3}, {0: 9}, "glibc", {"OMP_NUM_THREADS": "1"}),)
    ranks = (RankReport(7, 0, "2.6.0", 1, 1, "0", "glibc"),)
    compared = 0

    def use(data: bytes) -> None:
        nonlocal compared
        with contextlib.suppress(ShapeError):
            assert all(held.cpus is not None for held in parse_places(data).values())
        try:
            services = parse_plan(data)
        except ShapeError as error:
            raise TorchparError(str(error)) from None
        for service in services:
            running = RunningUnit(service.unit, 7, processes, True, CpuSet([0]), 1, 2, ranks)
            json.dumps([item.actual for item in verify(service, running)]).encode()
            compare_unit(service, {"DropInPaths": []})
        compared += 1

    try_all(texts, use)
    assert compared > EXAMPLES / 20


def test_a_plan_is_read_as_it_was_written(unpack: Callable[[str], Path]) -> None:
    """What it says of its services, and what one of an older torchpar leaves out."""
    facts = read_facts(unpack("nri-xeon-pmem-6n"))
    plan = plan_json(make_plan(parse_config([ConfFile("/etc/torchpar.conf", CONFS[0])], facts), facts))
    for read, written in zip(parse_plan(json.dumps(plan)), plan["services"], strict=True):
        assert texts(read) == {name: written[name] for name in texts(read)}
        assert read.cpuset == CpuSet.parse(written["allowed_cpus"])
    for service in plan["services"]:
        del service["allowed_cpus"], service["loader_cpus"], service["listen"], service["ranks"][0]["budget"]
    for read, written in zip(parse_plan(json.dumps(plan)), plan["services"], strict=True):
        assert (str(read.cpuset), read.listen, read.ranks[0].budget) == (written["cpus"], (), 0)


def texts(value: Any) -> Any:
    """A record as JSON data."""
    if dataclasses.is_dataclass(value):
        return {field.name: texts(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [texts(item) for item in value]
    return str(value) if isinstance(value, CpuSet) else value


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"numa_nodes": [{"id": 0, "cpus": "0"}, {"id": 1, "cpus": {}}]}, "numa_nodes[1].cpus: an object is no set"),
        ({"numa_nodes": [{"id": 0, "cpus": "0-4294967295"}]}, "numa_nodes[0].cpus: '0-4294967295' is "),
        ({"online_cpus": [-1]}, "online_cpus: -1 is no number from 0 to 8191"),
        ({"cpu_limit": float("nan")}, "cpu_limit: NaN is not what is expected there"),
        ({"cpu_limit": 10**400}, "cpu_limit: 1000"),
        ({"memory_bytes": True}, "memory_bytes: true is not what is expected there"),
        ({"hostname": "h" * 256}, "hostname: is longer than 255 letters"),
        ({"hostname": "a\nb"}, "hostname: has a letter that no text has: \\n"),
        ({"distances": {"nodes": [0], "matrix": [[10, 20]]}}, "distances.matrix: is not square"),
        ({"cores": [[0], [0]]}, "cores[1]: has CPUs that another one has too"),
    ],
)
def test_what_is_wrong_with_facts_is_said_with_its_place(facts: dict[str, Any], message: str) -> None:
    """By the names that the file has."""
    with pytest.raises(FactsError) as error:
        parse_facts({**facts_json(make_host()), **facts})
    assert str(error.value).startswith(message), error.value


def test_what_is_nested_too_deep_is_not_json() -> None:
    """Nor what has numbers of a million digits."""
    for text in ("[" * 1_000_000, "9" * 1_000_000, '{"a":' * 100_000, "", "\ufeff{}", "nul"):
        with pytest.raises(ShapeError, match="is not JSON"):
            parse_json(text)

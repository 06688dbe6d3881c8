"""What a change of a unit means, in a sentence."""

from __future__ import annotations

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.plan.plan import make_plan
from torchpar.units.changes import Change, compare
from torchpar.units.drop_ins import make_units
from torchpar.units.sentences import say_change

MLP = "[Train mlp]\nScript=/s.py\nCPUs=2\n"


def said(old: str, new: str) -> list[str]:
    """The sentences for an edit of the conf."""
    host = make_host()
    files = [
        make_units(make_plan(parse_config([ConfFile("/c", text)], host), host)).files for text in (old, new)
    ]
    return [say_change(change) for change in compare(*files)]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("InteropThreads=2\n", "train@mlp: InteropThreads 1 → 2"),
        ("CheckpointGrace=60s\n", "CheckpointGrace 120 → 60"),
        ("Service.Nice=5\n", "train@mlp: Nice none → 5"),
        ("Environment=A='b c%'\n", "train@mlp: A none → b c%"),
        ("Threads=2\n", "train@mlp: fixed Threads no → yes"),
        ("CudnnBenchmark=yes\n", "train@mlp: CudnnBenchmark none → yes"),
        ("MemoryMax=1G\n", "NUMAPolicy preferred → bind; MemoryMax none → 1G"),
    ],
)
def test_an_edit_is_said_by_the_names_of_the_conf(more: str, sentence: str) -> None:
    """Also what stands in the job's own variable."""
    (found,) = said(MLP, MLP + more)
    assert sentence in found, found


def test_of_a_long_command_the_end_that_differs_is_said() -> None:
    """Its beginning is the same for all."""
    one, other = (f"{MLP}Arguments={'--data /srv/data ' * 9}--lr 0.{number} --x\n" for number in (1, 2))
    assert said(one, other) == ["train@mlp: command ... 0.1 --x → ... 0.2 --x"]


def test_cpus_are_said_once() -> None:
    """Though several settings and variables of a unit follow from them."""
    (found,) = said(MLP, MLP.replace("CPUs=2", "CPUs=1"))
    assert found == "train@mlp: CPUs 1-2 → 1; Threads 2 → 1"


def test_what_comes_and_goes_is_said() -> None:
    """And of many settings the first."""
    assert said("", MLP) == ["train@mlp: is new"] and said(MLP, "") == ["train@mlp: is no longer in the conf"]
    assert say_change(Change("torchpar-train@a.service", "enabled", "", "")) == "train@a: starts at boot from now on"
    many = "".join(f"Environment=V{number}=x\n" for number in range(20))
    (found,) = said(MLP, MLP + many)
    assert found.endswith("; 12 more settings") and len(found) < 300


def test_whatever_stands_in_a_unit_is_a_line() -> None:
    """Values are escaped and cut; what is no JSON, or quoted otherwise, is shown as it is."""
    old, new = "[Service]\nEnvironment=TORCHPAR_JOB={\nA=1\n", f"[Service]\nEnvironment='x\nA=\x1b{'y' * 999}\n"
    found = say_change(Change("torchpar-train@a.service", "changed", old, new))
    assert found.isprintable() and len(found) < 300
    assert say_change(Change("torchpar-train@a.service", "changed", "# a\n", "# b\n")).endswith("comments alone differ")


@pytest.mark.parametrize("value", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, f'{{"a": {"[" * 900}{"]" * 900}}}'])
def test_what_is_nested_without_end_is_said_as_it_stands(value: str) -> None:
    """The units in force may be those that another host has exported."""
    old = f"[Service]\nEnvironment='TORCHPAR_JOB={value}'\n"
    said = say_change(Change("torchpar-train@a.service", "changed", old, "[Service]\nEnvironment=TORCHPAR_JOB=1\n"))
    assert said.startswith("train@a: ") and "TORCHPAR_JOB" in said and len(said) < 500

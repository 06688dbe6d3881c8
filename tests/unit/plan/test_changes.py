"""What a refusal proposes is tried: with that in the conf it fits, on any host."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hosts import make_host
from tests.unit.placement.test_properties import OF_TRAINING, SERVICES, conf_of, hosts, plan_or_refusal
from torchpar.facts.topology import HostFacts

_LARGE = st.fixed_dictionaries(
    {},
    optional={
        "Enabled": st.sampled_from(["yes", "yes", "no"]),
        "CPUs": st.sampled_from(["auto", "3", "5", "9", "40", "shared"]),
        "Ranks": st.sampled_from(["2", "5", "9", "70", "numa"]),
        "Slot": st.sampled_from(["s", "t"]),
        "Model": st.just("/m.pt"),
    },
)


Keys = dict[str, str]


@given(hosts(), SERVICES | st.lists(_LARGE, min_size=1, max_size=6))
def test_a_change_that_a_refusal_names_fits(host: HostFacts, services: list[Keys]) -> None:
    """Each of the ways that it offers, put into the conf, and no part of it is needless. It offers one wherever
    services ask for numbers of cores and ranks alone."""
    message = plan_or_refusal(conf_of(services), host)
    if not isinstance(message, str):
        return
    if not message.endswith(" would fit"):
        free = not host.gpus and not any(is_fixed(keys) for keys in services)
        assert not free or ("usable cores" not in message and "each of" not in message)
        return
    first, last = changes_in(message, 0), changes_in(message, -1)
    for changes in (first, last):
        assert not isinstance(plan_or_refusal(conf_of(changed(services, changes)), host), str), (message, changes)
    for change in first if first == last else ():
        without = changed(services, [one for one in first if one is not change])
        assert isinstance(plan_or_refusal(conf_of(without), host), str), (message, change)


def changes_in(message: str, way: int) -> list[tuple[int, str, str]]:
    """The services, keys and values of a message, by one of the ways that it offers."""
    text = message.rpartition("; ")[2].removesuffix(" would fit")
    return [
        (int(name), *change.split("=", 1))
        for ways, names in re.findall(r"((?:\w+=\w+(?: or | )?)+?) for ((?:\[\w+ s\d+\](?: and )?)+)", text)
        for name in re.findall(r"s(\d+)\]", names)
        for change in ways.split(" or ")[way].split()
    ]


def changed(services: list[Keys], changes: list[tuple[int, str, str]]) -> list[Keys]:
    """The services with such changes, of keys that their sections can have and that are others there."""
    after = [dict(keys) for keys in services]
    for number, key, value in changes:
        assert not (key in OF_TRAINING and "Model" in services[number]), key
        assert services[number].get(key, "") != value
        after[number][key] = value
    return after


@pytest.mark.parametrize(
    ("services", "change"),
    [
        (
            [{"CPUs": "9", "Model": "/m"}] * 2 + [{"CPUs": "9", "Ranks": "9"}] * 2 + [{"Ranks": "3"}],
            "CPUs=shared for [Infer s0] and [Infer s1] and CPUs=shared Ranks=1 for [Train s2] and [Train s3]",
        ),
        (
            [{"CPUs": "9", "Slot": "s"}, {"Ranks": "9", "Slot": "s"}, {"Slot": "s"}],
            "CPUs=1 for [Train s0] and Ranks=1 for [Train s1]",
        ),
        (
            [{"Ranks": "3"}] + [{}] * 13,
            "CPUs=shared for [Train s0] and [Train s1] and [Train s10] and [Train s11] and [Train s12] and [Train s13] "
            "and [Train s2] and [Train s3] and [Train s4] and [Train s5]",
        ),
        ([{}] * 14, "CPUs=shared for 10 of the enabled services with CPUs=auto"),
        ([{}] * 14 + [{"CPUs": "1"}] * 20, "and 10 more"),
    ],
    ids=["an inference service has no ranks", "of a slot", "one is not like the others", "any of them", "very many"],
)
def test_a_refusal_names_what_was_tried(services: list[Keys], change: str) -> None:
    """Which sections have which keys; only a number where it may be any."""
    enabled = [{"Enabled": "yes", **keys} for keys in services]
    message = plan_or_refusal(f"[Host]\nReserveCores=0\n{conf_of(enabled)}", make_host())
    assert isinstance(message, str) and message.endswith(f"{change} would fit"), message


def is_fixed(keys: dict[str, str]) -> bool:
    """Whether a service names its CPUs or accelerators, for which there may be no other number."""
    return "-" in keys.get("CPUs", "") or ":" in keys.get("CPUs", "") or "gpu" in keys.get("Ranks", "")

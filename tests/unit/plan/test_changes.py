"""What a refusal proposes is tried: with that in the conf it fits, on any host."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.placement.test_properties import SERVICES, conf_of, hosts, plan_or_refusal
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


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hosts(), SERVICES | st.lists(_LARGE, min_size=1, max_size=6))
def test_a_change_that_a_refusal_names_fits(host: HostFacts, services: list[dict[str, str]]) -> None:
    """Each of the ways that it offers, put into the conf. It offers one wherever services ask for
    numbers of cores and ranks alone."""
    message = plan_or_refusal(conf_of(services), host)
    if not isinstance(message, str):
        return
    if not message.endswith(" would fit"):
        free = not host.gpus and not any(is_fixed(keys) for keys in services)
        assert not free or ("usable cores" not in message and "each of" not in message)
        return
    changes = message.rpartition("; ")[2].removesuffix(" would fit")
    for first in (True, False):
        changed = [dict(keys) for keys in services]
        for ways, names in re.findall(r"((?:\w+=\w+(?: or | )?)+?) for ((?:\[\w+ s\d+\](?: and )?)+)", changes):
            for change in ways.split(" or ")[0 if first else -1].split():
                key, value = change.split("=")
                for name in re.findall(r"s(\d+)\]", names):
                    keys = changed[int(name)]
                    # Of a slot those that ask for more.
                    asked = keys.get(key, "0")
                    if value.isdigit() and not int(asked if asked.isdigit() else 0) > int(value):
                        continue
                    keys[key] = value
        assert not isinstance(plan_or_refusal(conf_of(changed), host), str), (message, changed)


def is_fixed(keys: dict[str, str]) -> bool:
    """Whether a service names its CPUs or accelerators, for which there may be no other number."""
    return "-" in keys.get("CPUs", "") or ":" in keys.get("CPUs", "") or "gpu" in keys.get("Ranks", "")

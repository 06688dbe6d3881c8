"""Where inference services listen: no two on one address."""

from __future__ import annotations

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import PlacementError
from torchpar.plan.plan import Plan, make_plan


def plan_of(text: str) -> Plan:
    host = make_host()
    return make_plan(parse_config([ConfFile("/c", text)], host), host)


def infer(name: str, *lines: str) -> str:
    return "\n".join((f"[Infer {name}]", f"Model=/{name}.pt", *lines, ""))


def test_two_enabled_services_on_one_address_are_refused_with_both_names() -> None:
    """Both without Listen=: the second would fail at boot, and nobody would know why."""
    with pytest.raises(PlacementError) as caught:
        plan_of(infer("a", "Enabled=yes") + infer("b", "Enabled=yes"))
    assert str(caught.value) == (
        "/c:4: [Infer b] listens on 127.0.0.1:8000 and [Infer a] on 127.0.0.1:8000, so only one of them can run; give "
        "each an address of its own by Listen="
    )


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("127.0.0.1:8000", "127.0.0.1:8001", False),
        ("127.0.0.1:8000", "127.0.0.2:8000", False),
        ("127.0.0.1:8000", "0.0.0.0:8000", True),
        ("*:8000", "[::1]:8000", True),
        ("localhost:8000", "127.0.0.1:8000", True),
        ("127.0.0.1:8001", "127.0.0.1:8002 grpc:127.0.0.1:8001", True),
    ],
)
def test_addresses_collide_as_the_kernel_says(one: str, other: str, collide: bool) -> None:
    """All addresses is every address, and gRPC is as good as HTTP."""
    warnings = plan_of(infer("a", f"Listen={one}") + infer("b", f"Listen={other}")).warnings
    assert any("only one of them can run" in line for line in warnings) is collide


def test_one_service_does_not_name_an_address_twice() -> None:
    """Its own socket would be in its way."""
    with pytest.raises(PlacementError, match=r"/c:3: \[Infer a\] Listen=127.0.0.1:80 \[::\]:80: that is one address"):
        plan_of(infer("a", "Listen=127.0.0.1:80 *:80"))


def test_who_gives_way_collides_with_nobody() -> None:
    """The demo, which the package declares on every host, and services that take turns."""
    demo = infer("demo", "CPUs=shared")
    assert not plan_of(infer("a", "Enabled=yes") + demo).warnings
    assert not plan_of(infer("a", "Slot=s") + infer("b", "Slot=s", "Enabled=yes")).warnings

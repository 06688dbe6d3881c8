"""What the hosts of a job tell torchrun and gloo, and what makes them wait or give up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.unit.runtime.jobs import PYTHON, Place
from tests.unit.runtime.test_launch import environment
from torchpar.contract.addresses import Address, addresses
from torchpar.contract.errors import ExitStatus, RendezvousError
from torchpar.contract.job import JobSettings
from torchpar.runtime.ranks import network, rendezvous
from torchpar.runtime.ranks.rendezvous import (
    Endpoint,
    NotYet,
    arguments,
    choose_place,
    environment_for,
    find_place,
    flags_for,
    join,
    parse_endpoint,
)

LO = Address("lo", True, True, "127.0.0.1")
ETH = Address("eth0", True, False, "192.0.2.1")
ETH6 = Address("eth0", True, False, "2001:db8::1")
DOCKER = Address("docker0", True, False, "172.17.0.1")
FABRIC = Address("ib0", True, False, "10.0.0.1")
NAMES = {"gpu1"}


def settings(**fields: object) -> JobSettings:
    """Those of a job of two hosts."""
    given = {"nodes": "2", "endpoint": "gpu1:20500", **fields}
    return JobSettings("torchpar-train@demo.service", 1, None, (), **given)  # type: ignore[arg-type]


def chosen(
    host: str,
    resolved: str,
    *addresses: Address,
    interface: str | None = None,
    source: Callable[[str], str | None] = lambda address: "192.0.2.1",
) -> tuple[str, bool, str, str]:
    """The literal endpoint, whether it is here, the interface and the address."""
    place = choose_place(
        Endpoint(host, 20500),
        tuple(resolved.split()),
        (LO, *addresses),
        interface=interface,
        own_names=lambda: NAMES,
        source=source,
    )
    return str(place.endpoint), place.is_host, place.interface, place.address


@pytest.mark.parametrize(
    ("host", "resolved"),
    [("192.0.2.1", "192.0.2.1"), ("gpu1", "192.0.2.1"), ("gpu1", "127.0.1.1"), ("alias", "192.0.2.1 127.0.1.1")],
)
def test_a_host_knows_that_it_has_the_endpoint_by_its_addresses(host: str, resolved: str) -> None:
    """Also with Debian's "127.0.1.1 gpu1" in /etc/hosts; what it tells the others is the address that they reach."""
    assert chosen(host, resolved, ETH) == ("192.0.2.1:20500", True, "eth0", "192.0.2.1")


def test_another_host_uses_the_interface_with_the_route() -> None:
    """Not the first one that there is, which is docker0's often enough."""
    assert chosen("gpu2", "192.0.2.2", DOCKER, ETH) == ("192.0.2.2:20500", False, "eth0", "192.0.2.1")
    assert chosen("gpu2", "10.0.0.2", DOCKER, ETH, FABRIC, interface="ib0")[2:] == ("ib0", "10.0.0.1")


def test_the_kind_of_address_is_that_of_the_endpoint() -> None:
    """Brackets where torchrun's endpoint needs them; a host with both kinds is IPv4 to the others."""
    there = chosen("gpu2", "2001:db8::2", ETH, ETH6, source=lambda address: "2001:db8::1")
    assert there == ("[2001:db8::2]:20500", False, "eth0", "2001:db8::1")
    assert chosen("gpu1", "127.0.1.1", ETH6, ETH)[0] == "192.0.2.1:20500"


def test_a_host_with_several_addresses_is_asked_which() -> None:
    """It knows itself by its name only, so any of them could be meant."""
    several = r"several addresses: eth0 \(192.0.2.1\), docker0 \(172.17.0.1\)"
    with pytest.raises(RendezvousError, match=several) as error:
        chosen("gpu1", "127.0.1.1", ETH, DOCKER)
    assert error.value.exit_status == ExitStatus.CONFIG and "set Interface= in" in str(error.value)
    assert chosen("gpu1", "127.0.1.1", ETH, DOCKER, interface="eth0")[3] == "192.0.2.1"


@pytest.mark.parametrize(("host", "resolved"), [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("x", "::1")])
def test_an_endpoint_that_every_host_would_take_for_itself_is_refused(host: str, resolved: str) -> None:
    """Each would train alone, and nobody would notice."""
    with pytest.raises(RendezvousError, match="where no other host can be; name an address that all hosts reach"):
        chosen(host, resolved, ETH)


def test_what_may_come_is_waited_for() -> None:
    """Addresses and routes are late at boot."""
    with pytest.raises(NotYet, match=r"Interface=ib0: it has no address of the kind of 192.0.2.2"):
        chosen("gpu2", "192.0.2.2", ETH, interface="ib0")
    with pytest.raises(NotYet, match=r"Endpoint=gpu2:20500: no route to 192.0.2.2"):
        chosen("gpu2", "192.0.2.2", source=lambda address: None)
    with pytest.raises(NotYet, match=r"ip link set eth0 up"):
        chosen("gpu1", "127.0.1.1", Address("eth0", False, False, "192.0.2.1"))


def test_torchrun_is_told_everything_it_would_guess() -> None:
    """Whether this is the host, by literal addresses."""
    place = rendezvous.Place(Endpoint("192.0.2.2", 20500), False, "eth0", "192.0.2.1")
    assert flags_for(settings(), place) == [
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=192.0.2.2:20500",
        "--rdzv-conf=is_host=0,join_timeout=600,read_timeout=60",
        "--rdzv-id=torchpar-train@demo.service",
        "--local-addr=192.0.2.1",
    ]
    assert environment_for(place) == {
        "GLOO_SOCKET_IFNAME": "eth0",
        "TP_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_IFNAME": "=eth0",
    }
    elastic = settings(nodes="1:2", elastic=True)
    assert "last_call_timeout=30" in flags_for(elastic, place)[3]


@pytest.mark.parametrize(
    ("changes", "own_store"), [({}, None), ({"max_restarts": 1}, "1"), ({"elastic": True}, "1")], ids=str
)
def test_ranks_that_begin_again_do_not_find_what_was_said_before(
    changes: dict[str, object], own_store: str | None
) -> None:
    """Where torchrun may start them again they have a store of their own."""
    _, variables = arguments(settings(nodes="1", **changes))
    assert variables.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == own_store


def test_ranks_that_no_torchrun_has_started_are_told_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As init_process_group() reads it; what the user has set stays."""
    environ = {"MASTER_PORT": "29500"}
    join(settings(nodes="1", endpoint="n0:20500"), environ)
    assert environ == {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo"}
    place = rendezvous.Place(Endpoint("192.0.2.1", 20500), False, "eth0", "192.0.2.2")
    monkeypatch.setattr(rendezvous, "find_place", lambda settings, asked: place)
    environ = {}
    join(settings(nodes="2", endpoint="n0:20500"), environ)
    assert environ == {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "20500", **environment_for(place)}


def test_an_endpoint_of_a_unit_is_taken_apart() -> None:
    """Literal IPv6 addresses are in brackets."""
    assert parse_endpoint("[2001:db8::1]:20500") == Endpoint("2001:db8::1", 20500)
    with pytest.raises(RendezvousError, match=r"Endpoint=: is not HOST:PORT"):
        parse_endpoint(None)


def test_an_endpoint_without_an_address_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name server may not be there yet at boot."""

    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    settings = JobSettings(service="x", interop_threads=1, cudnn_benchmark=None, ranks=(), nodes="2")
    with pytest.raises(NotYet, match=r"^Endpoint=a.example:20500: a.example does not resolve: Name or service"):
        find_place(settings, Endpoint("a.example", 20500))


def test_each_reason_to_wait_is_said_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """And the last one is what the end names; that end is one that systemd tries again."""
    now = iter(range(1000))
    monkeypatch.setattr(rendezvous.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(rendezvous.time, "sleep", lambda seconds: None)
    reasons = iter(["a", "a", "b"] + ["c"] * 1000)

    def attempt() -> None:
        raise NotYet(next(reasons))

    with pytest.raises(RendezvousError, match=r"^c: not within 5 s; the service is tried again$") as error:
        rendezvous._await(attempt, 5)
    assert error.value.exit_status == 75
    assert capfd.readouterr().err == "torchpar: a\ntorchpar: b\ntorchpar: c\n"


def test_this_hosts_own_network_is_read() -> None:
    """Loopback is there on every host, and a port that somebody listens on is not free."""
    assert LO in addresses() and "lo" in network.interfaces()
    assert network.resolve("127.0.0.1") == ("127.0.0.1",) and network.source("127.0.0.1") == "127.0.0.1"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert network.listening_fails("127.0.0.1", port) == "Address already in use"
        assert network.connecting_fails("127.0.0.1", port, 60) == ""
    assert network.listening_fails("127.0.0.1", port) == ""
    assert network.connecting_fails("127.0.0.1", port, 60) == "Connection refused"


@pytest.mark.subprocess
def test_a_launcher_that_cannot_place_its_host_starts_nothing(place: Place) -> None:
    """One line that names the key and the section; the status is that of a bad conf, so it is not tried again."""
    place.write("x.py", "print('ran')\n")
    variables = environment(place, nodes="2", endpoint="localhost:20500")
    outcome = place.python(place.launcher.with_name("launch.py"), "--", "x.py", **variables)
    assert outcome.status == 78 and outcome.out == ""
    assert outcome.err.startswith("torchpar: Endpoint=localhost:20500: localhost is 127.0.0.1")
    assert "set Endpoint= in [Train demo] of torchpar.conf" in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.subprocess
def test_a_stop_ends_the_wait_for_another_host(place: Place) -> None:
    """Whatever it waits for, a route or an answer: SIGTERM does not wait with it."""
    place.write("x.py", "print('ran')\n")
    process = subprocess.Popen(
        [PYTHON, str(place.launcher.with_name("launch.py")), "--", "x.py"],
        cwd=place.path,
        env={"PATH": os.defpath, **environment(place, nodes="2", endpoint="192.0.2.77:20500")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr and "Endpoint=192.0.2.77:20500" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()

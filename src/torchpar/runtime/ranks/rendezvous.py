"""Makes the processes of a job find each other: torchrun's flags and the environment of the network.

A job of several hosts starts only when what it needs of the network is there. Until then it waits, and each reason to
wait is one line in the journal. Nothing ever falls back to this host alone: that would be another training run.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from torchpar.contract.addresses import Address, addresses, family
from torchpar.contract.errors import ExitStatus, RendezvousError
from torchpar.contract.job import JobSettings
from torchpar.contract.journal import say
from torchpar.runtime.ranks import network
from torchpar.runtime.start.refusal import refusal

# How long interfaces, names and a port that is taken may need. network-online.target may be reached long before a
# fabric has its addresses, and an agent that lost its peers holds its port for up to five minutes.
PATIENCE = 180.0
PAUSE = 1.0
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Endpoint:
    """The meeting point of the hosts: a name or literal address, and the port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Place:
    """This host's part in the rendezvous: the literal endpoint, whether it is here, and the own interface's address."""

    endpoint: Endpoint
    is_host: bool
    interface: str
    address: str


class NotYet(Exception):
    """Something is missing that may come: the network is starting, or an older process is ending."""


# Else the agent takes the host's own name, which leads anywhere or nowhere. Ranks are told again, see `rank`: torch
# 1.13 has no such flag.
LOOPBACK = "--local-addr=127.0.0.1"


def arguments(settings: JobSettings) -> tuple[list[str], dict[str, str]]:
    """Returns torchrun's flags for the rendezvous, as current versions spell them, and variables to set if unset.

    For a job of several hosts this waits until the endpoint can be reached, or on its host, listened on. Raises
    RendezvousError when that will not be.
    """
    flags, variables = _alone(settings) if settings.nodes == "1" else _among_hosts(settings)
    if settings.elastic or settings.max_restarts:
        # The ranks of a later round would find in the agent's store, which torch 2.13 keeps, where those of the one
        # before listened, and an agent that comes back would wait for an address of an earlier one.
        variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return flags, variables


def _among_hosts(settings: JobSettings) -> tuple[list[str], dict[str, str]]:
    asked = parse_endpoint(settings.endpoint)
    place = _await(lambda: find_place(settings, asked), PATIENCE)
    here = place.endpoint
    if place.is_host:
        _await(lambda: _refuse_taken_port(here), PATIENCE)
        say(f"this host has the endpoint {asked} ({here}), and is {place.address} on {place.interface} to the others")
    else:
        _await(lambda: _refuse_silence(asked, here), None)
        say(f"the endpoint {asked} ({here}) is there; this host is {place.address} on {place.interface} to the others")
    # torch 1.13 has no --local-addr, and tells the others whatever name this gives; later ones need no name at all.
    socket.getfqdn = lambda name="": place.address
    return flags_for(settings, place), environment_for(place)


def join(settings: JobSettings, environ: MutableMapping[str, str]) -> None:
    """Sets what torch.distributed's env:// needs for ranks that no torchrun has started; what is set already stays.

    Waits for this host's own network. Raises RendezvousError.
    """
    asked = parse_endpoint(settings.endpoint)
    address, variables = "127.0.0.1", {"GLOO_SOCKET_IFNAME": "lo"}
    if settings.nodes != "1":
        place = _await(lambda: find_place(settings, asked), PATIENCE)
        address, variables = place.endpoint.host, environment_for(place)
    for name, value in {"MASTER_ADDR": address, "MASTER_PORT": str(asked.port), **variables}.items():
        environ.setdefault(name, value)


def _alone(settings: JobSettings) -> tuple[list[str], dict[str, str]]:
    """On one host the agent listens on a free port of the loopback interface, so that jobs do not meet: --standalone
    would do that too, but takes port 29400 in torch 1.13.
    """
    flags = [
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        "--rdzv-conf=is_host=1",
        f"--rdzv-id={settings.service}",
        LOOPBACK,
    ]
    # gloo would else look up the host's own name, which leads anywhere or nowhere.
    return flags, {"GLOO_SOCKET_IFNAME": "lo"}


def flags_for(settings: JobSettings, place: Place) -> list[str]:
    """Returns torchrun's flags for a job of several hosts.

    Literal addresses, as torch would look up names, and names of addresses, and get 127.0.1.1 from Debian's own
    /etc/hosts. With is_host said, a host whose port is taken fails rather than join a stranger.
    """
    conf = f"is_host={int(place.is_host)},join_timeout=600,read_timeout=60"
    if settings.elastic:
        conf += ",last_call_timeout=30"
    return [
        f"--nnodes={settings.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place.endpoint}",
        f"--rdzv-conf={conf}",
        f"--rdzv-id={settings.service}",
        f"--local-addr={place.address}",
    ]


def environment_for(place: Place) -> dict[str, str]:
    """Returns the variables by which gloo, NCCL and tensorpipe take the interface, by its one whole name.

    NCCL takes a bare name for the start of one.
    """
    return {
        "GLOO_SOCKET_IFNAME": place.interface,
        "TP_SOCKET_IFNAME": place.interface,
        "NCCL_SOCKET_IFNAME": f"={place.interface}",
    }


def parse_endpoint(text: str | None) -> Endpoint:
    """Parses the endpoint that a unit names, "host:port" or "[address]:port". Raises RendezvousError."""
    host, _, port = (text or "").rpartition(":")
    if not host or not port.isdecimal():
        raise _refuse(f"Endpoint={text or ''}", "is not HOST:PORT", "Endpoint=")
    return Endpoint(host.strip("[]"), int(port))


def find_place(settings: JobSettings, asked: Endpoint) -> Place:
    """Finds this host's part, by its addresses and names as they are now. Raises NotYet and RendezvousError."""
    try:
        resolved = network.resolve(asked.host)
    except OSError as error:
        raise NotYet(f"Endpoint={asked}: {asked.host} does not resolve: {error.strerror}") from None
    known = network.interfaces()
    if settings.interface and settings.interface not in known:
        raise NotYet(f"Interface={settings.interface}: no such interface; this host has {' '.join(known)}")
    return choose_place(
        asked,
        resolved,
        addresses(),
        interface=settings.interface,
        own_names=network.own_names,
        source=network.source,
    )


def choose_place(
    asked: Endpoint,
    resolved: tuple[str, ...],
    addresses: tuple[Address, ...],
    *,
    interface: str | None,
    own_names: Callable[[], set[str]],
    source: Callable[[str], str | None],
) -> Place:
    """Chooses the part of a host with these addresses and names, at an endpoint with the addresses `resolved`.

    The endpoint is here if one of its addresses is; the host's name alone would be fooled by "127.0.1.1 name" in
    /etc/hosts, which is there that name's only address. `source` says by which own address another one is reached.
    Raises NotYet and RendezvousError.
    """
    own = [address for address in addresses if address.interface == interface or not interface]
    abroad = tuple(address for address in resolved if not network.is_loopback(address))
    if not abroad and (asked.host not in own_names() or asked.host.startswith("localhost")):
        why = f"{asked.host} is {' '.join(resolved)} on this host, where no other host can be"
        raise _refuse(f"Endpoint={asked}", f"{why}; name an address that all hosts reach", "Endpoint=")
    here = {address.text for address in addresses}
    local = [address for address in abroad if address in here]
    if local or not abroad:
        # By its name only this host knows itself, and which of its addresses the others see it cannot know.
        mine = [address for address in own if not address.loopback]
        mine = [address for address in mine if not abroad or address.text in local] or (mine if interface else [])
        chosen = _one(mine, interface, asked)
        return Place(Endpoint(local[0] if local else chosen.text, asked.port), True, chosen.interface, chosen.text)
    for endpoint in abroad:
        reached_by = source(endpoint)
        candidates = [address for address in own if address.family == family(endpoint)]
        if not interface:
            candidates = [address for address in candidates if address.text == reached_by]
        if candidates:
            chosen = _one(candidates, interface, asked)
            return Place(Endpoint(endpoint, asked.port), False, chosen.interface, chosen.text)
    if interface:
        raise NotYet(f"Interface={interface}: it has no address of the kind of {' '.join(abroad)} (Endpoint={asked})")
    raise NotYet(f"Endpoint={asked}: no route to {' '.join(abroad)}")


def _one(candidates: list[Address], interface: str | None, asked: Endpoint) -> Address:
    """Returns the address to tell the others. Raises NotYet and RendezvousError."""
    names = list(dict.fromkeys(address.interface for address in candidates))
    if not names:
        what = f"Interface={interface}: it" if interface else "this host"
        raise NotYet(f"{what} has no address that other hosts reach")
    if len(names) > 1:
        having = ", ".join(f"{address.interface} ({address.text})" for address in candidates)
        raise _refuse(f"Endpoint={asked}", f"this host has several addresses: {having}; name one", "Interface=")
    if not candidates[0].up:
        raise NotYet(f"Interface={names[0]}: it is down; ip link set {names[0]} up")
    return min(candidates, key=lambda address: address.family != socket.AF_INET)


def _refuse_taken_port(endpoint: Endpoint) -> None:
    if why := network.listening_fails(endpoint.host, endpoint.port):
        raise NotYet(
            f"Endpoint={endpoint}: port {endpoint.port} of this host: {why}; each job needs a port of its own; "
            f"who has it: ss -ltnp sport = :{endpoint.port}"
        )


def _refuse_silence(asked: Endpoint, endpoint: Endpoint) -> None:
    if why := network.connecting_fails(endpoint.host, endpoint.port, CONNECT_SECONDS):
        raise NotYet(f"Endpoint={asked} ({endpoint}): {why}; waiting for that host's part of the job")


def _await(attempt: Callable[[], object], patience: float | None):  # type: ignore[no-untyped-def]
    """Tries until there is nothing to wait for, and says each new reason once.

    Raises RendezvousError after `patience` seconds; None: it waits for ever.
    """
    started = time.monotonic()
    reason = ""
    while True:
        try:
            return attempt()
        except NotYet as error:
            if str(error) != reason:
                reason = str(error)
                say(reason)
        if patience is not None and time.monotonic() - started > patience:
            raise RendezvousError(f"{reason}: not within {patience:g} s; the service is tried again") from None
        time.sleep(PAUSE)


def _refuse(what: str, why: str, keys: str) -> RendezvousError:
    error = RendezvousError(refusal(what, why, keys))
    error.exit_status = ExitStatus.CONFIG
    return error

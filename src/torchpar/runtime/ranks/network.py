"""This host's network as the kernel and the resolver have it: interfaces, names, routes, ports. It decides nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from torchpar.contract.addresses import family


def interfaces() -> tuple[str, ...]:
    """Lists the names of all interfaces, those without an address too."""
    return tuple(name for _, name in socket.if_nameindex())


def resolve(host: str) -> tuple[str, ...]:
    """Returns the addresses of a name, IPv4 first, or of a literal address that address. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return tuple(sorted(texts, key=lambda text: family(text) != socket.AF_INET))


def is_loopback(address: str) -> bool:
    """Says whether an address is on every host that host's own."""
    return ipaddress.ip_address(address).is_loopback


def own_names() -> set[str]:
    """Returns this host's names: its own, that without a domain, and what /etc/hosts or DNS make of it.

    Not by socket.getfqdn, which asks for names of addresses: that may take a minute where DNS has none.
    """
    name = socket.gethostname()
    names = {name, name.partition(".")[0]}
    with contextlib.suppress(OSError):
        names.update(entry[3] for entry in socket.getaddrinfo(name, None, flags=socket.AI_CANONNAME) if entry[3])
    return names


def source(destination: str) -> str | None:
    """Returns the own address that packets to another host carry; None without a route. Sends nothing."""
    with socket.socket(family(destination), socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((destination, 9))
        return str(probe.getsockname()[0])
    return None


def listening_fails(address: str, port: int) -> str:
    """Tries to listen on a port; returns the reason why no server can, "" if one can."""
    kind = family(address)
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        # As torch does it: a port whose last connections are only fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("::" if kind == socket.AF_INET6 else "0.0.0.0", port))
            probe.listen()
        except OSError as error:
            return error.strerror or str(error)
    return ""


def connecting_fails(address: str, port: int, seconds: float) -> str:
    """Connects to a port within so many seconds; returns the reason why that fails, "" if it does not."""
    try:
        with socket.create_connection((address, port), seconds):
            return ""
    except OSError as error:
        return error.strerror or str(error)

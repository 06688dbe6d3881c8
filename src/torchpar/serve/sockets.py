"""The sockets that systemd holds for the service: sd_listen_fds(3), and which of them may be served on.

systemd keeps them over a restart of the service: who connects meanwhile waits, and nobody is refused.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import MutableMapping, Sequence

from torchpar.serve.errors import StartError

FIRST = 3  # SD_LISTEN_FDS_START


def adopt_sockets(environ: MutableMapping[str, str], service: str) -> list[socket.socket]:
    """Returns the listening sockets that were passed to this process; the variables that say so are gone afterwards.

    service is the unit's name. Raises StartError when there is none.
    """
    for_process, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if for_process != str(os.getpid()) or not count.isdecimal() or not int(count):
        unit = service.removesuffix(".service")
        raise StartError(f"no socket was passed, so there is no address to serve on: systemctl status {unit}.socket")
    sockets = [socket.socket(fileno=number) for number in range(FIRST, FIRST + int(count))]
    for each in sockets:
        each.set_inheritable(False)
    return sockets


def split_by_protocol(
    sockets: Sequence[socket.socket], grpc: Sequence[str]
) -> tuple[list[socket.socket], list[socket.socket], list[str]]:
    """Returns the sockets of HTTP and those of gRPC, and of gRPC's addresses those that none of them has.

    grpc are addresses such as "0.0.0.0:8001" or "[::]:8001". One may be missing where the socket unit was started
    before Listen= named it.
    """
    by_address = {_address(each): each for each in sockets if each.family != socket.AF_UNIX}
    found = [by_address[address] for address in grpc if address in by_address]
    http = [each for each in sockets if each not in found]
    return http, found, [address for address in grpc if address not in by_address]


def listen_on(address: str, protocol: str) -> socket.socket:
    """Listens on "HOST:PORT", HOST being an address, for what is called `protocol`. Raises OSError when it cannot."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, int(port)), family=family, backlog=socket.SOMAXCONN, dualstack_ipv6=host == "::"
        )
    except OSError as error:
        raise OSError(f"cannot listen on {address} for {protocol}: {error.strerror or error}") from None
    # The connections have it from here; asyncio does not see of a socket that Python made that it is TCP.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def refuse_unnamed(sockets: Sequence[socket.socket], named: Sequence[str]) -> None:
    """Raises StartError for a socket that other hosts could reach and that Listen= does not name.

    named are addresses such as "0.0.0.0:8000" or "[::]:8000". Whoever gave the socket unit another address by a drop-in
    of their own must say it where the service is declared too.
    """
    for each in sockets:
        if each.family == socket.AF_UNIX:
            continue
        address = _address(each)
        if not is_loopback(each.getsockname()[0]) and address not in named:
            raise StartError(
                f"{address} can be reached from other hosts, and Listen= in torchpar.conf does not name it; "
                "add it there, then: torchpar apply"
            )


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if bound.family == socket.AF_INET6 else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Says whether only this host reaches an address; host is an IPv4 or IPv6 address as a number."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)

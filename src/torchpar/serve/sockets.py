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
        host, port = each.getsockname()[:2]
        address = f"[{host}]:{port}" if each.family == socket.AF_INET6 else f"{host}:{port}"
        if not is_loopback(host) and address not in named:
            raise StartError(
                f"{address} can be reached from other hosts, and Listen= in torchpar.conf does not name it; "
                "add it there, then: torchpar apply"
            )


def is_loopback(host: str) -> bool:
    """Says whether only this host reaches an address; host is an IPv4 or IPv6 address as a number."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)

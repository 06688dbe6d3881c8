"""This host's network as the kernel and the resolver have it: interfaces, names, routes, ports. It decides nothing."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

# linux/if.h
IFF_UP, IFF_LOOPBACK = 0x1, 0x8


@dataclass(frozen=True)
class Address:
    """One address of an interface. Link-local ones are left out: other hosts cannot be told of them."""

    interface: str
    up: bool
    loopback: bool
    text: str

    @property
    def family(self) -> int:
        """Returns AF_INET or AF_INET6."""
        return family(self.text)


def family(address: str) -> int:
    """Returns AF_INET or AF_INET6 for a literal address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _IfAddrs(ctypes.Structure):
    """struct ifaddrs of getifaddrs(3)."""


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
    ("other", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]


def addresses() -> tuple[Address, ...]:
    """Lists all IPv4 and IPv6 addresses of this host, in the kernel's order. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(head)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        return tuple(_walk(head))
    finally:
        libc.freeifaddrs(head)


def _walk(entry: ctypes._Pointer[_IfAddrs]) -> Iterator[Address]:
    while entry:
        item = entry.contents
        kind = item.address and ctypes.cast(item.address, ctypes.POINTER(ctypes.c_ushort)).contents.value
        # The address follows the port (sockaddr_in), and the flow label (sockaddr_in6).
        if kind in (socket.AF_INET, socket.AF_INET6):
            start, size = (4, 4) if kind == socket.AF_INET else (8, 16)
            address = ipaddress.ip_address(ctypes.string_at(item.address + start, size))
            if not address.is_link_local:
                loopback = bool(item.flags & IFF_LOOPBACK)
                yield Address(os.fsdecode(item.name), bool(item.flags & IFF_UP), loopback, str(address))
        entry = item.next


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

"""The network addresses of this host, as jobs tell them to each other and `torchpar facts` to other hosts."""

from __future__ import annotations

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

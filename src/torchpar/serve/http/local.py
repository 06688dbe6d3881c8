"""Tells whether a request comes from this host: models and settings are changed from here alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a proxy or a web page adds: then it is somebody else who asks.
FOREIGN = frozenset((b"x-forwarded-for", b"forwarded", b"via", b"origin"))


def is_local(peer: Any, fields: Mapping[bytes, bytes]) -> bool:
    """Says whether a request came by loopback or a Unix socket, and not through a proxy or a web page.

    peer is the other end's address as accept(2) gave it, fields those of the request, in lower case.
    """
    if not FOREIGN.isdisjoint(fields):
        return False
    if isinstance(peer, tuple):
        address = peer[0].rpartition("::ffff:")[2]
        return bool(address.startswith("127.") or address == "::1")
    # A Unix socket's: mostly an empty text, for clients rarely bind theirs to a name.
    return isinstance(peer, (str, bytes))

"""Gives each job of several hosts its port to meet at: the same on every host, without asking anybody."""

from __future__ import annotations

import zlib

# Below the ports that Linux gives to connections (net.ipv4.ip_local_port_range) and below torchrun's 29400, so that
# neither a passing connection nor a torchrun that was started by hand has it.
FIRST_PORT = 20480
PORTS = 8192


def whole_endpoint(endpoint: str, name: str) -> str:
    """Endpoint= with a port: its own, or the one that follows from the service's name.

    >>> whole_endpoint("gpu1:29500", "resnet"), whole_endpoint("gpu1", "resnet")
    ('gpu1:29500', 'gpu1:26315')
    """
    # A literal IPv6 address is in brackets.
    if ":" in endpoint.rpartition("]")[2]:
        return endpoint
    return f"{endpoint}:{FIRST_PORT + zlib.crc32(name.encode()) % PORTS}"

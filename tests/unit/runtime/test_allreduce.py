"""What nettest tells of a network: figures, and the addresses that are really connected."""

from __future__ import annotations

import socket
import sys

from torchpar.runtime.nettest import connections, parse_address, report, ways


def test_a_connection_of_this_process_is_found() -> None:
    """By its own and the peer's address, whatever else the host is connected to."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        assert ("127.0.0.1", "127.0.0.1") in connections()


def test_addresses_are_read_as_the_kernel_writes_them() -> None:
    """Words of four bytes in the machine's order; IPv4 within IPv6 is IPv4."""
    words = (
        ["C0000201"],
        ["20010DB8", "00000000", "00000000", "00000001"],
        ["00000000", "00000000", "0000FFFF", "C0000201"],
    )
    texts = []
    for address in words:
        in_order = [bytes.fromhex(word)[:: -1 if sys.byteorder == "little" else 1].hex() for word in address]
        texts.append(parse_address(f"{''.join(in_order)}:5014"))
    assert texts == ["192.0.2.1", "2001:db8::1", "192.0.2.1"]


def test_the_report_names_interface_address_and_peers() -> None:
    """Only of connections to other hosts; without any it says so."""
    assert list(ways([("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "192.0.2.9"), ("127.0.0.1", "192.0.2.8")])) == [
        "connected by lo, 127.0.0.1, to 192.0.2.8, 192.0.2.9"
    ]
    assert "no connection to another host" in next(ways([]))
    assert report("gloo", 2, 0.0001, 0.1) == (
        "gloo, 2 ranks: all-reduce of 8 B takes 100 µs, of 16 MiB 100.0 ms (1.34 Gbit/s each way)"
    )

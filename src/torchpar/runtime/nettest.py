"""Measures as every rank of a job how fast the hosts are together, and over which addresses.

A script for run.py, as any job's. gloo, or NCCL where there are GPUs, is set up by what the job itself would have.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator

from torchpar.contract.addresses import addresses
from torchpar.runtime import accelerator

SMALL, LARGE = 2, 4 * 2**20  # numbers of 4 bytes
REPEATS = {SMALL: 100, LARGE: 10}
SECONDS = 120  # for a peer that does not answer
ESTABLISHED = "01"  # net/tcp_states.h


def main() -> None:
    """Reduces small and large tensors over all ranks, and tells what this host saw of it."""
    import torch
    import torch.distributed as dist

    on_gpu = accelerator.visible(torch) > 0 and dist.is_nccl_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    accelerator.take(torch, device)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=SECONDS))
    world = dist.get_world_size()
    medians = {}
    for size, repeats in REPEATS.items():
        numbers = torch.ones(size, device=device)
        seconds = []
        # The first ones open connections, and fill caches.
        for _ in range(3 + repeats):
            started = time.perf_counter()
            dist.all_reduce(numbers)
            numbers.fill_(1)
            accelerator.finish(torch, device)
            seconds.append(time.perf_counter() - started)
        medians[size] = statistics.median(seconds[3:])
    total = torch.ones(1, device=device)
    dist.all_reduce(total)
    if int(total) != world:
        sys.exit(f"the sum over {world} ranks is {int(total)}: the ranks do not all talk to each other")
    if local_rank == 0:
        print(report(backend, world, medians[SMALL], medians[LARGE]))
        for line in ways(connections()):
            print(line)
        sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


def report(backend: str, world: int, small: float, large: float) -> str:
    """Puts the figures in one line; bandwidth is what each rank sends, and receives, in a ring: 2(n-1)/n of the data.

    >>> report("gloo", 2, 0.0001, 0.1)
    'gloo, 2 ranks: all-reduce of 8 B takes 100 µs, of 16 MiB 100.0 ms (1.34 Gbit/s each way)'
    """
    sent = 2 * (world - 1) / world * 4 * LARGE
    return (
        f"{backend}, {world} ranks: all-reduce of {4 * SMALL} B takes {small * 1e6:.0f} µs, of {4 * LARGE >> 20} MiB "
        f"{large * 1e3:.1f} ms ({sent * 8 / large / 1e9:.2f} Gbit/s each way)"
    )


def ways(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yields a line for each own address that is connected to other hosts, with its interface and theirs."""
    own = {address.text: address.interface for address in addresses()}
    peers: dict[str, set[str]] = {}
    for here, there in pairs:
        if there not in own:
            peers.setdefault(here, set()).add(there)
    for here, others in sorted(peers.items()):
        yield f"connected by {own.get(here, 'an unknown interface')}, {here}, to {', '.join(sorted(others))}"
    if not peers:
        yield "no connection to another host is open: all ranks are on this one, or talk by other means than TCP"


def connections() -> set[tuple[str, str]]:
    """Reads the own and the peer's address of every TCP connection of this process (proc(5), /proc/net/tcp)."""
    sockets = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue  # the directory's own
        if target.startswith("socket:["):
            sockets.add(target[len("socket:[") : -1])
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue  # a kernel without IPv6
        for row in rows:
            if row[3] == ESTABLISHED and row[9] in sockets:
                found.add((parse_address(row[1]), parse_address(row[2])))
    return found


def parse_address(text: str) -> str:
    """Parses an address of /proc/net/tcp: words of 4 bytes in the order of the machine, then the port.

    >>> parse_address("010200C0:5014" if sys.byteorder == "little" else "C0000201:5014")
    '192.0.2.1'
    """
    data = bytes.fromhex(text.partition(":")[0])
    if sys.byteorder == "little":
        data = b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4))
    address = ipaddress.ip_address(data)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


if __name__ == "__main__":
    main()

"""Binds this process to CPUs and memory nodes, before it has threads: what it starts and allocates inherits both.

It only narrows what systemd has set: where that is something else than planned, by `systemctl edit` for example, the
other has the last word. The memory policy stays in its kind (bind, preferred, interleave); its nodes become the rank's.
"""

from __future__ import annotations

import os

from torchpar.runtime.observed import cpulist, say

# linux/mempolicy.h
PREFERRED, BIND, INTERLEAVE = 1, 2, 3
MODE_FLAGS = 0xE000

# set_mempolicy and get_mempolicy have no wrapper in glibc; libnuma's need not be there. Numbers: asm/unistd.h of each
# architecture, all others have those of asm-generic/unistd.h.
_SYSCALLS = {
    "x86_64": (238, 239),
    "i686": (276, 275),
    "armv7l": (321, 320),
    "ppc64le": (261, 260),
    "s390x": (270, 269),
}
_GENERIC_SYSCALLS = (237, 236)
_NODES = 1024  # the kernel's largest CONFIG_NODES_SHIFT is 10


def bind_cpus(planned: str) -> None:
    """Narrow the CPUs of this process to a list such as "0-3,8"."""
    allowed = os.sched_getaffinity(0)
    cpus = parse_cpulist(planned) & allowed
    if not cpus:
        say(f"CPUs {planned} are planned, but the process may only use {cpulist(allowed)}: it is not bound")
    elif cpus != allowed:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            say(f"CPUs {planned}: cannot bind to them: {error.strerror}")


def bind_memory(planned: str, of_all: set[str]) -> None:
    """Narrow the nodes of the memory policy in force to a list such as "0"; `of_all` are the lists of all ranks.

    Where all ranks have the same nodes, and with the policies default and local, there is nothing to do.
    """
    if len(of_all) == 1 or not planned:
        return
    try:
        mode, nodes = read_memory_policy()
        wanted = parse_cpulist(planned)
        if mode & ~MODE_FLAGS == PREFERRED:
            wanted = {min(wanted)}
        elif mode & ~MODE_FLAGS in (BIND, INTERLEAVE):
            # NUMAMask= may name other nodes than those of the CPUs; then that is what was asked for.
            wanted &= nodes
        else:
            return
        if wanted and wanted != nodes:
            set_memory_policy(mode, wanted)
    except OSError as error:
        say(f"memory nodes {planned}: the memory policy stays as it is: {error.strerror}")


def read_memory_policy() -> tuple[int, set[int]]:
    """The memory policy of this thread: get_mempolicy(2)."""
    import ctypes

    mode, mask = ctypes.c_int(), _mask(set())
    _call(_numbers()[1], ctypes.byref(mode), mask, ctypes.c_ulong(_NODES), None, ctypes.c_ulong(0))
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    return mode.value, {node for node in range(_NODES) if mask[node // bits] >> node % bits & 1}


def set_memory_policy(mode: int, nodes: set[int]) -> None:
    """The memory policy of this thread and all that it starts: set_mempolicy(2)."""
    import ctypes

    # The kernel takes one bit less than it is told.
    _call(_numbers()[0], ctypes.c_int(mode), _mask(nodes), ctypes.c_ulong(_NODES + 1))


def parse_cpulist(text: str) -> set[int]:
    """The numbers of a list in the kernel's syntax.

    >>> sorted(parse_cpulist("0-2,8"))
    [0, 1, 2, 8]
    """
    numbers: set[int] = set()
    for span in filter(None, text.split(",")):
        first, _, last = span.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _numbers() -> tuple[int, int]:
    return _SYSCALLS.get(os.uname().machine, _GENERIC_SYSCALLS)


def _mask(nodes: set[int]):  # type: ignore[no-untyped-def]
    import ctypes

    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (_NODES // bits + 1))()
    for node in nodes:
        mask[node // bits] |= 1 << node % bits
    return mask


def _call(number: int, *arguments: object) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))

"""Reads and sets the memory policy of this thread, and of all that it starts: get_mempolicy(2) and set_mempolicy(2).

Neither has a wrapper in glibc, and libnuma need not be there. Runs under any Python from 3.9 on, inside jobs too; what
policy is right is for others to know.
"""

from __future__ import annotations

import os
from typing import Any

# linux/mempolicy.h, by systemd's words.
DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL = range(5)
MODES = {"default": DEFAULT, "preferred": PREFERRED, "bind": BIND, "interleave": INTERLEAVE, "local": LOCAL}
MODE_FLAGS = 0xE000

# The numbers of set_mempolicy and get_mempolicy, from asm/unistd.h of each architecture; all others have those of
# asm-generic/unistd.h.
_SYSCALLS = {
    "x86_64": (238, 239),
    "i686": (276, 275),
    "armv7l": (321, 320),
    "ppc64le": (261, 260),
    "s390x": (270, 269),
}
_GENERIC_SYSCALLS = (237, 236)
_NODES = 1024  # the kernel's largest CONFIG_NODES_SHIFT is 10


def read_memory_policy() -> tuple[int, set[int]]:
    """Reads the mode, with its flags, and the nodes. Raises OSError."""
    import ctypes

    mode, mask = ctypes.c_int(), _mask(set())
    _call(_numbers()[1], ctypes.byref(mode), mask, ctypes.c_ulong(_NODES), None, ctypes.c_ulong(0))
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    return mode.value, {node for node in range(_NODES) if mask[node // bits] >> node % bits & 1}


def set_memory_policy(mode: int, nodes: set[int]) -> None:
    """Sets the mode and the nodes, which are empty for the modes that take none. Raises OSError."""
    import ctypes

    # The kernel takes one bit less than it is told.
    mask, bits = (_mask(nodes), _NODES + 1) if nodes else (None, 0)
    _call(_numbers()[0], ctypes.c_int(mode), mask, ctypes.c_ulong(bits))


def _numbers() -> tuple[int, int]:
    return _SYSCALLS.get(os.uname().machine, _GENERIC_SYSCALLS)


def _mask(nodes: set[int]) -> Any:
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

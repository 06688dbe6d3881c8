"""Places this very process as planned and becomes the job, where no unit can be had: in containers, or without root.

Affinity, memory policy and environment outlive execve(2), so nothing of torchpar stays resident.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from typing import NoReturn

from torchpar.contract import mempolicy
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import NotPermittedError, TorchparError


def set_cpus(cpus: CpuSet) -> str:
    """Keeps this process, and what it becomes, on these CPUs; returns "" or why that cannot be."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        return f"CPUs {cpus} cannot be set: {error.strerror}"
    return ""


def set_memory_policy(policy: str, nodes: CpuSet) -> str:
    """Sets the memory policy of this process, and of what it becomes; returns "" or why that cannot be."""
    try:
        mempolicy.set_memory_policy(mempolicy.MODES[policy], set(nodes))
    except OSError as error:
        return f"memory policy {policy} {nodes}: {error.strerror}; under a filter of system calls it needs CAP_SYS_NICE"
    return ""


def become(
    argv: Sequence[str], environment: Mapping[str, str], *, user: str, group: str | None, directory: str
) -> NoReturn:
    """Becomes the job. Raises NotPermittedError and TorchparError."""
    account = pwd.getpwnam(user)
    number = _group_number(group) if group else None
    try:
        if account.pw_uid != os.geteuid():
            own = {"HOME": account.pw_dir, "USER": user, "LOGNAME": user, "SHELL": account.pw_shell}
            environment = {**own, **environment}
            os.initgroups(user, account.pw_gid)
            os.setgid(account.pw_gid)
        if number is not None:
            os.setgid(number)
        if account.pw_uid != os.geteuid():
            os.setuid(account.pw_uid)
    except PermissionError:
        raise NotPermittedError(f"to run as {user} this needs root; try the same with sudo") from None
    try:
        os.chdir(directory)
        os.execve(argv[0], list(argv), environment)
    except OSError as error:
        raise TorchparError(f"{error.filename or argv[0]}: {error.strerror}") from None


def _group_number(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise TorchparError(f"Group={name}: there is no such group on this host") from None

"""Keeps what services were given in a file for each: reads those of one run, and writes them as a whole.

Beside them are those of services that are never moved, with what they were started with; see contract/given.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from torchpar.arbitration.divide import Tenant
from torchpar.contract.given import Given, GivenRank, kept_folder, make_given_json, read_given
from torchpar.host.systemd import RunningState


def read_run(state: RunningState, folder: str) -> Given | None:
    """Reads what a service was given in this run of it; None where it waits for that."""
    given = read_given(state.unit, folder)
    return given if given and given.invocation == state.invocation else None


def read_loans(folder: str) -> tuple[list[str], list[str]]:
    """Reads whose CPUs are lent, and which services that run lend theirs. Raises OSError."""
    files = [read_given(unit, folder) for unit in os.listdir(folder)]
    here = [given for given in files if given and given.invocation]
    owners = {loan.unit for given in here for loan in given.loans}
    return sorted(owners), sorted(given.unit for given in here if given.lent_to)


def write_given(given: Given, folder: str) -> None:
    """Writes the file of a service, which is replaced as a whole. Raises OSError."""
    # With a dot first it is no unit's.
    temporary = os.path.join(folder, f".{os.getpid()}")
    with open(temporary, "w", encoding="ascii") as file:
        file.write(make_given_json(given))
    os.replace(temporary, os.path.join(folder, given.unit))


def prepare(tenant: Tenant, folder: str) -> None:
    """Leaves a file for a service that does not run: when it starts, it waits for its part. Raises OSError."""
    before = read_given(tenant.unit, folder)
    planned = _planned(tenant)
    if before is None or before.invocation or before.planned != planned:
        write_given(Given(tenant.unit, "", planned, planned, time.time()), folder)


def note_kept(tenants: Mapping[str, Tenant], running: Mapping[str, RunningState], folder: str) -> None:
    """Notes with which CPUs each service runs that is never moved: a newer plan may say others before it ends.

    Raises OSError.
    """
    kept = kept_folder(folder)
    os.makedirs(kept, exist_ok=True)
    for unit in set(os.listdir(kept)) - set(running):
        os.unlink(os.path.join(kept, unit))
    for unit, state in running.items():
        tenant = tenants.get(unit)
        if tenant and not tenant.waits and not read_run(state, kept) and not read_run(state, folder):
            ranks = _planned(tenant)
            given = Given(unit, state.invocation, ranks, ranks, time.time(), control_group=state.control_group)
            write_given(given, kept)


def _planned(tenant: Tenant) -> tuple[GivenRank, ...]:
    return tuple(GivenRank(rank.cpus, rank.threads) for rank in tenant.ranks)

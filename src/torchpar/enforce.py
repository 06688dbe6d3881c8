"""Puts a generation in force: flip the link, reload systemd, read back what it holds; or fall back to what was.

The only module that changes what systemd has. Callers hold the store's lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from torchpar.errors import StoreError, SystemdError, TorchparError
from torchpar.generations import Content, Generation
from torchpar.host import systemd
from torchpar.host.facts import read_manifest
from torchpar.readback import ReadBack, compare_socket, compare_unit
from torchpar.store import Store
from torchpar.units import socket_of


def read_active(store: Store) -> tuple[Generation, Content] | None:
    """The active generation and what is in it; None when there is none or it is damaged, which apply mends."""
    with contextlib.suppress(StoreError):
        generation = store.active()
        if generation:
            return generation, generation.read()
    return None


def put_in_force(store: Store, generation: Generation) -> tuple[str, ...]:
    """Make systemd hold a generation; returns notes on values that an administrator's own drop-in overrides.

    Raises SystemdError, with the generation that was active before in force again, when systemd refuses the reload or
    then holds something else than planned.
    """
    before = read_active(store)
    store.activate(generation)
    try:
        systemd.daemon_reload()
        return check_in_force(generation)
    except TorchparError:
        if before:
            store.activate(before[0])
        else:
            store.deactivate()
        systemd.daemon_reload()
        raise


def check_in_force(generation: Generation) -> tuple[str, ...]:
    """Compare what systemd holds with a generation; returns notes on overrides. Raises SystemdError on differences."""
    services = generation.read().services()
    compared = [compare_unit(service, systemd.unit_properties(service["unit"])) for service in services]
    for service in services:
        if service["listen"]:
            compared.append(compare_socket(service, systemd.unit_properties(socket_of(service["unit"]))))
    wrong = _all(compared, "wrong")
    if wrong:
        raise SystemdError("\n".join(("systemd does not hold what was planned:", *wrong)))
    return _all(compared, "notes")


def running_among(units: Iterable[str]) -> tuple[str, ...]:
    """Those of the units that run now: they have what was in force when they started."""
    return tuple(sorted(set(units) & set(systemd.running_services() + systemd.open_sockets())))


def refuse_other_host(content: Content, number: int) -> None:
    """Raise StoreError when a generation was made for other CPUs or nodes than this host has now."""
    now = read_manifest()
    if dict(content.manifest) != now:
        raise StoreError(
            f"generation {number} was made for CPUs {content.manifest.get('cpus_online')}, this host has CPUs "
            f"{now['cpus_online']}; make a new one: torchpar apply"
        )


def _all(compared: Iterable[ReadBack], what: str) -> tuple[str, ...]:
    return tuple(line for each in compared for line in getattr(each, what))

"""Finds services that run with older settings than a generation has for them: by their processes, not by what changed.

A service may have started before several generations, some of which had what it runs with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torchpar.contract.errors import TorchparError
from torchpar.host.systemd import Units
from torchpar.plan.record import ServiceRecord
from torchpar.verify.compare import Verdict
from torchpar.verify.service import RUNNING, ReadRunningUnit, verify_unit


def find_outdated(
    systemd: Units,
    read_running_unit: ReadRunningUnit,
    services: Iterable[ServiceRecord],
    in_force_since: float,
    *,
    anew: Collection[str] = (),
) -> tuple[str, ...]:
    """Finds the units that run with other settings than planned, as they started before.

    `in_force_since` is when the last change came, in seconds since the epoch: what started later, and is among `anew`,
    has what is no longer in force. A drift that a restart would not mend does not count. Raises SystemdError.
    """
    running = set(systemd.running_services())
    found = []
    for service in services:
        if service.unit not in running:
            continue
        properties = systemd.unit_properties(service.unit)
        if not properties["MainPID"] or properties["ActiveState"] not in RUNNING:
            continue
        since = properties["ActiveEnterTimestamp"] / 1e6
        if since >= in_force_since:
            found += [service.unit] if service.unit in anew else []
            continue
        try:
            items = verify_unit(service, properties, read_running_unit)
        except TorchparError:
            continue
        if any(item.verdict is Verdict.DRIFT and not item.notice for item in items):
            found.append(service.unit)
    return tuple(found)

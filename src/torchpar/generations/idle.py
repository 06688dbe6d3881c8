"""Tells whether a running service is idle, for `torchpar apply --restart=when-idle`."""

from __future__ import annotations

import time

from torchpar.host import systemd

SECONDS = 2.0
BUSY = 0.05  # of one CPU


def is_idle(unit: str) -> bool:
    """Says whether the unit's processes use less than 5 % of one CPU over two seconds, by systemd's CPU accounting.

    A socket, which has none, is as idle as the service that would restart with it.
    """
    unit = unit.replace(".socket", ".service")
    before = systemd.unit_properties(unit)["CPUUsageNSec"]
    time.sleep(SECONDS)
    after = systemd.unit_properties(unit)["CPUUsageNSec"]
    return bool(after - before < BUSY * SECONDS * 1e9)

"""Starts an enabled service again whose start at boot found a file or a mount missing that comes later.

The drop-in of an enabled service names this as its OnFailure= (torchpar-retry@.service). RequiresMountsFor= waits for a
mount that systemd knows; but a mount may fail at first, because the host that has the files boots too, be made by hand
or by a script, or be reached by a symbolic link. Once the boot is over a missing file is a mistake, which is told once
and not tried again.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torchpar.contract.errors import SystemdError, TorchparError, printable
from torchpar.host import systemd

# How long a boot may take to bring all files.
BOOT_SECONDS = 15 * 60.0
POLL_SECONDS = 1.0
# A mount that has failed is tried again after this time, then after twice that, and so on.
FIRST_PAUSE = 10.0

# What a start ends with that lacks a file: the runtime's and the server's own word, and systemd's for the working
# directory, the program, the sandbox (ReadWritePaths=) and credentials (a TLS key); see systemd.exec(5).
LACKING = (78, 200, 203, 226, 243)


def main() -> None:
    """Retries the unit that the command line names; what keeps it from that is a line in the journal, and a failure."""
    try:
        retry_named(sys.argv[1])
    except (TorchparError, OSError) as error:
        sys.exit(f"torchpar: {printable(' '.join(str(error).splitlines()))}")


def retry_named(unit: str) -> None:
    """Retries a unit if what systemd says of its end is that it may have lacked something.

    systemd 257 comes here at every failure, also where Restart= has the service start again. Raises TorchparError and
    OSError.
    """
    told = os.environ.get("MONITOR_SERVICE_RESULT"), os.environ.get("MONITOR_EXIT_STATUS")
    if told[0] != "success" and told not in [("exit-code", str(status)) for status in LACKING]:
        return
    from torchpar.generations.enforce import read_active
    from torchpar.generations.store import Store

    left = BOOT_SECONDS - systemd.seconds_since_boot()
    active = read_active(Store()) if left > 0 else None
    services = active[1].services() if active else ()
    for service in services:
        if service.unit == unit and service.enabled:
            retry(unit, service.needed_files, left)


def retry(unit: str, files: Iterable[str], left: float) -> None:
    """Starts the unit when what it lacks is there, unless somebody else changes its state before, for `left` seconds.

    Raises SystemdError.
    """
    files = tuple(files)
    failed = systemd.unit_properties(unit)
    missing = find_missing(files, failed)
    # A mount may have come between the start and this look.
    if not is_lacking(failed) or not (missing or is_dependency(failed) or _mounted_since(files, failed)):
        return
    if missing:
        until = f"up to {BOOT_SECONDS / 60:g} minutes after the boot"
        systemd.say_of(unit, f"{missing[0]} is not there yet: the service starts when it is, {until}")
    now = time.monotonic()
    end, pause = now + left, FIRST_PAUSE
    again = now + pause
    while now < end:
        if _state(systemd.unit_properties(unit)) != _state(failed):
            return
        missing = find_missing(files, failed)
        # To start the unit is to try its mounts, too.
        if not missing or (is_dependency(failed) and now >= again):
            with contextlib.suppress(SystemdError):
                systemd.start(unit)
            pause *= 2
            failed = systemd.unit_properties(unit)
            missing = find_missing(files, failed)
            if not missing or not is_lacking(failed):
                return
            again = time.monotonic() + pause
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
    systemd.say_of(unit, f"{missing[0]} has not come, and the service is not tried any more: systemctl start {unit}")


def is_dependency(properties: Mapping[str, Any]) -> bool:
    """Says whether the unit was not even started, as a unit that it requires has failed."""
    return bool(properties["ActiveState"] == "inactive" and properties["Result"] == "success")


def is_lacking(properties: Mapping[str, Any]) -> bool:
    """Says whether the last start may have failed because something was not there."""
    by_status = properties["Result"] == "exit-code" and properties["ExecMainStatus"] in LACKING
    return is_dependency(properties) or (properties["ActiveState"] == "failed" and by_status)


def find_missing(files: Iterable[str], properties: Mapping[str, Any]) -> tuple[str, ...]:
    """Finds the files that are not there, and the mounts that the unit requires and that are not there."""
    missing = [path for path in files if _is_missing(path)]
    if is_dependency(properties):
        mounts = [unit for unit in properties["Requires"] if unit.endswith(".mount")]
        missing += [unit for unit in mounts if not systemd.is_active(unit)]
    return tuple(missing)


def mount_points(text: str) -> Iterator[str]:
    """Yields the mount points in a mountinfo file, see proc(5)."""
    for line in text.splitlines():
        yield re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])


def _mounted_since(files: Iterable[str], properties: Mapping[str, Any]) -> bool:
    """Says whether one of the files is on a mount that came after the start had begun."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = set(mount_points(file.read()))
    real = [f"{os.path.realpath(path)}/" for path in files]
    on = [point for point in points if point != "/" and any(path.startswith(f"{point}/") for path in real)]
    return any(systemd.active_since(point) > properties["InactiveExitTimestampMonotonic"] for point in on)


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except PermissionError:
        return False  # it is there, or nobody can tell
    except OSError:
        return True  # an automount whose host does not answer, too
    return False


def _state(properties: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(properties[name] for name in ("ActiveState", "InvocationID", "StateChangeTimestampMonotonic"))

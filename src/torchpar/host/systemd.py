"""The door to systemd: asks it over D-Bus (busctl's JSON) and systemctl, and starts what must outlive this process."""

from __future__ import annotations

import glob
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torchpar.contract.errors import SystemdAbsentError, SystemdError
from torchpar.contract.unit_names import guard_of
from torchpar.host.journal import write_entry
from torchpar.host.program import run
from torchpar.host.reading import NotReadableError, read_start

_BUS_NAME = "org.freedesktop.systemd1"
# Where the units of Debian's packages are.
PACKAGED = Path("/usr/lib/systemd/system")
# Where it keeps what generators made.
GENERATED = Path("/run/systemd/generator")

# Patterns of the names of torchpar's units.
SERVICES = ("torchpar-train@*.service", "torchpar-infer@*.service")
SOCKETS = "torchpar-infer@*.socket"
AD_HOC = "torchpar-run-*.service"

# Links and folders come there by `systemctl mask`, `enable`, `edit` and `set-property`.
EDITED = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
)
# Where systemd has the InvocationID of each unit that runs, as a link.
_INVOCATIONS = "/run/systemd/units/invocation:"
_MOST_OF_A_UNIT = 2**16
_RESTARTS = ("auto-restart", "auto-restart-queued")
_STATE = ("Id", "ActiveState", "SubState", "InvocationID", "MainPID", "ControlGroup")


@dataclass(frozen=True)
class RunningState:
    """A unit that runs: its invocation (systemd's InvocationID), its main process (0: none yet), its control group."""

    unit: str
    invocation: str
    main_pid: int
    control_group: str


class Units(Protocol):
    """The door to what systemd says of units, which this module is. Everything raises SystemdError."""

    def unit_properties(self, unit: str) -> dict[str, Any]:
        """Reads all D-Bus properties of a unit."""

    def running_services(self) -> tuple[str, ...]:
        """Lists the units of services that run or are about to."""

    def open_sockets(self) -> tuple[str, ...]:
        """Lists the sockets of inference services that listen."""

    def ad_hoc_jobs(self) -> tuple[str, ...]:
        """Lists the units of ad-hoc jobs that run or are about to."""


def is_running() -> bool:
    """Says whether systemd is this host's init (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def require_systemd() -> None:
    """Raises SystemdAbsentError unless systemd is this host's init."""
    if not is_running():
        raise SystemdAbsentError("systemd is not running here, so nothing can be put in force; see: torchpar render")


def loaded_units() -> Path | None:
    """Finds the folder of the units that systemd has from generators; None where it is not this host's init."""
    return GENERATED if is_running() else None


def daemon_reload() -> None:
    """Lets systemd run the generators and read all units again. Raises SystemdError when it refuses."""
    _systemctl("daemon-reload")


def unit_properties(unit: str) -> dict[str, Any]:
    """Reads all D-Bus properties of a unit, which systemd loads if it has not; plain JSON data. Raises SystemdError."""
    argv = ["busctl", "--system", "--json=short", "call", _BUS_NAME, object_path(unit)]
    done = run([*argv, "org.freedesktop.DBus.Properties", "GetAll", "s", ""])
    if done.returncode != 0:
        raise SystemdError(f"{unit}: systemd does not tell its properties: {done.stderr.strip() or done.returncode}")
    return parse_properties(done.stdout)


def object_path(unit: str) -> str:
    """Returns a unit's D-Bus object path, its name encoded as by sd_bus_path_encode(3)."""
    encoded = re.sub(rb"^[0-9]|[^A-Za-z0-9]", lambda match: b"_%02x" % match[0][0], unit.encode())
    return f"/org/freedesktop/systemd1/unit/{encoded.decode()}"


def parse_properties(text: str) -> dict[str, Any]:
    """Property → value of busctl's JSON: the answer to GetAll, a{sv}."""
    return {name: variant["data"] for name, variant in json.loads(text)["data"][0].items()}


def running_services() -> tuple[str, ...]:
    """Lists the units of training and inference services that run or are about to. Raises SystemdError."""
    done = _systemctl("list-units", "--output=json", "--state=active,activating,reloading,deactivating", *SERVICES)
    return tuple(sorted(str(unit["unit"]) for unit in json.loads(done or "[]")))


def failed_services() -> tuple[str, ...]:
    """Lists the units of training and inference services that have failed. Raises SystemdError."""
    done = _systemctl("list-units", "--output=json", "--state=failed", *SERVICES)
    return tuple(sorted(str(unit["unit"]) for unit in json.loads(done or "[]")))


def restarting_units() -> tuple[str, ...]:
    """Lists the units that have ended and that systemd starts again by itself (Restart=). Raises SystemdError."""
    return tuple(unit for unit, _, _, sub in _list_units() if sub in _RESTARTS)


def ad_hoc_jobs() -> tuple[str, ...]:
    """Lists the units of ad-hoc jobs that run or are about to. Raises SystemdError."""
    done = _systemctl("list-units", "--output=json", "--state=active,activating,deactivating", AD_HOC)
    return tuple(sorted(str(unit["unit"]) for unit in json.loads(done or "[]")))


def service_states() -> str:
    """Returns a text that changes whenever a training or inference service or socket, or an ad-hoc job, starts, is
    ready, ends or fails, and whenever an administrator masks, enables or edits units, or has systemd read them again.

    A run that fails as the one before is not in it, where nobody has seen it run; changes.py hears of it. Raises
    SystemdError.
    """
    states = _list_units()
    runs = [_link(f"{_INVOCATIONS}{unit}") for unit, *_ in states]
    troubled = [unit for unit, _, active, _ in states if active != "active"]
    more = "Id,Result,InvocationID,StateChangeTimestampMonotonic"
    shown = _systemctl("show", f"--property={more}", "--", *troubled) if troubled else ""
    return repr((states, runs, shown, [_changed_at(path) for path in (str(GENERATED), *_edited())]))


def _list_units() -> list[tuple[str, str, str, str]]:
    """Lists torchpar's units with their states, but those that are stopped: systemd forgets and loads them again as it
    likes. Raises SystemdError."""
    listed = json.loads(_systemctl("list-units", "--output=json", *SERVICES, SOCKETS, AD_HOC, guard_of("*")) or "[]")
    return sorted((unit["unit"], unit["load"], unit["active"], unit["sub"]) for unit in listed)


def _edited() -> Iterator[str]:
    """Finds where what an administrator has set for units shows: folders, and files in those of torchpar's units."""
    for folder in EDITED:
        yield from (folder, f"{folder}/multi-user.target.wants")
        yield from sorted(glob.iglob(f"{folder}/torchpar[-.]*.d/*.conf"))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _changed_at(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def read_unit_file(path: str) -> str | None:
    """Reads the text of a drop-in that systemd has read; None where it is gone or no such text."""
    try:
        return read_start(Path(path), _MOST_OF_A_UNIT).decode(errors="replace")
    except (OSError, NotReadableError):
        return None


def running_units() -> tuple[RunningState, ...]:
    """Reads the services and ad-hoc jobs that run, or whose start or end is under way. Raises SystemdError."""
    shown = _systemctl("show", f"--property={','.join(_STATE)}", *SERVICES, AD_HOC)
    states = []
    for block in filter(None, shown.split("\n\n")):
        told = dict(line.partition("=")[::2] for line in block.splitlines())
        runs = told.get("ActiveState") in ("activating", "active", "reloading", "deactivating")
        # Until it is started again, or is looked for in vain, nothing of it runs.
        if runs and told.get("SubState") not in _RESTARTS and told.get("InvocationID"):
            states.append(
                RunningState(
                    told["Id"], told["InvocationID"], int(told.get("MainPID") or 0), told.get("ControlGroup", "")
                )
            )
    return tuple(sorted(states, key=lambda state: state.unit))


def show_units(units: Collection[str], properties: Collection[str]) -> str:
    """Reads properties of these units, and of all of torchpar's that run or have failed: as `systemctl show` prints
    them.

    Times have microseconds, and are UTC. Raises SystemdError.
    """
    names = sorted({*units, *(unit for unit, *_ in _list_units())})
    argv = ["show", "--timestamp=us+utc", f"--property={','.join(('Id', *properties))}", "--", *names]
    return _systemctl(*argv) if names else ""


def root_group() -> str:
    """Reads the path of the control group that all units are in, "" for that of the host. Raises SystemdError."""
    return _systemctl("show", "--property=ControlGroup", "--value").strip()


def open_sockets() -> tuple[str, ...]:
    """Lists the sockets of inference services that listen. Raises SystemdError."""
    done = _systemctl("list-units", "--output=json", "--state=active", SOCKETS)
    return tuple(sorted(str(unit["unit"]) for unit in json.loads(done or "[]")))


def invocations(units: Iterable[str]) -> dict[str, str]:
    """Reads the InvocationID of those of the units that run. Raises SystemdError."""
    shown = _systemctl("show", "--property=Id,ActiveState,InvocationID", "--", *units)
    told = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")]
    return {one["Id"]: one["InvocationID"] for one in told if one["ActiveState"] not in ("inactive", "failed")}


def restart(units: Iterable[str], *, wait: bool = True) -> None:
    """Restarts units, or starts those that do not run, and waits for it if so asked. Raises SystemdError."""
    _systemctl("restart", *([] if wait else ["--no-block"]), *units)


def restart_unless_stopped(units: Iterable[str]) -> tuple[str, ...]:
    """Restarts those of the units that run or have failed, waits for it, and returns them. Raises SystemdError."""
    shown = _systemctl("show", "--property=Id,ActiveState", "--", *units)
    told = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")]
    chosen = tuple(one["Id"] for one in told if one["ActiveState"] != "inactive")
    if failed := [one["Id"] for one in told if one["ActiveState"] == "failed"]:
        # One that has failed too often is not started before that.
        _systemctl("reset-failed", "--", *failed)
    if chosen:
        restart(chosen)
    return chosen


def forget_failures(pattern: str) -> None:
    """Has units that failed be as those that were stopped. Nothing depends on it, so where it cannot be it is not."""
    run(["systemctl", "reset-failed", "--", pattern])


def start(unit: str) -> None:
    """Starts a unit and waits for it. Raises SystemdError."""
    _systemctl("start", unit)


def stop(unit: str) -> None:
    """Stops a unit and waits for it. Raises SystemdError."""
    _systemctl("stop", unit)


def is_active(unit: str) -> bool:
    """Says whether a unit runs or, of a mount, is there."""
    return run(["systemctl", "is-active", "--quiet", unit]).returncode == 0


def say_of(unit: str, text: str) -> None:
    """Writes a warning into the journal of another unit (OBJECT_SYSTEMD_UNIT= in systemd.journal-fields(7)), if there
    is a journal."""
    write_entry({"MESSAGE": text, "PRIORITY": "4", "OBJECT_SYSTEMD_UNIT": unit})


def active_since(mount_point: str) -> int:
    """Returns when a mount came, in microseconds of the monotonic clock; 0 where systemd does not know."""
    done = run(["systemctl", "show", "--property=ActiveEnterTimestampMonotonic", "--value", "--", mount_point])
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def seconds_since_boot() -> float:
    """Returns the seconds that this systemd runs; in a container the kernel runs for longer. Raises SystemdError."""
    since = int(_systemctl("show", "--property=UserspaceTimestampMonotonic", "--value").strip() or 0)
    return time.monotonic() - since / 1e6


def start_without_waiting(units: Iterable[str]) -> None:
    """Asks systemd to start units, each after those that it comes After=, and waits for none. Raises SystemdError."""
    _systemctl("start", "--no-block", "--", *units)


def reload_without_waiting(unit: str) -> None:
    """Asks systemd to reload a unit, and does not wait for it. Raises SystemdError."""
    _systemctl("reload", "--no-block", unit)


def _systemctl(*arguments: str) -> str:
    return _check(run(["systemctl", *arguments]))


def _check(done: Any) -> str:
    if done.returncode != 0:
        raise SystemdError(f"{' '.join(done.args[:2])}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return str(done.stdout)

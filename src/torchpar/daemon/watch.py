"""What torchpard keeps an eye on, and when it looks again: the conf and the host often, running services less often."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from torchpar.advice import Loading, say_loading
from torchpar.daemon.ledger import Ledger
from torchpar.generations import Store
from torchpar.host.conf import ConfReader
from torchpar.host.facts import read_manifest
from torchpar.host.systemd import service_states
from torchpar.observe import observe

POLL_SECONDS = 5.0
VERIFY_SECONDS = 60.0
# After something has changed: a job that has just started has by then imported torch and begun to compute.
SETTLING_SECONDS = 20.0


class Watch:
    """The last observation, and the stamps that say whether it is still true.

    `tell` gets a line for the journal when something begins to be wrong, and when it is right again.
    """

    def __init__(self, store: Store, ledger: Ledger, tell: Callable[[int, str], None]) -> None:
        self.observation: dict[str, Any] = {}
        self._store = store
        self._ledger = ledger
        self._tell = tell
        self._conf = ConfReader()
        self.conf_stamp: object = None
        self._stamp: object = None
        self._next_verify = 0.0

    def poll(self) -> bool:
        """Look again if anything changed, or if the last look is old; returns whether it looked."""
        stamp = self._take_stamp()
        changed = stamp != self._stamp
        if not changed and time.monotonic() < self._next_verify:
            return False
        self._stamp = stamp
        self._next_verify = time.monotonic() + (SETTLING_SECONDS if changed else VERIFY_SECONDS)
        before = set(self.observation.get("notices", ()))
        self.observation = observe(self._store, self._conf)
        self._ledger.keep(service["unit"] for service in self.observation["services"])
        now = self.observation["notices"]
        for notice in now:
            if notice not in before:
                self._tell(4, notice)
        for notice in sorted(before - set(now)):
            self._tell(6, f"no longer: {notice}")
        return True

    def status(self) -> str:
        """One line for `systemctl status torchpard`."""
        services = self.observation["services"]
        running = sum(1 for service in services if service["state"] == "running")
        drifted = sum(1 for service in services if service["placed"] == "drift")
        strays = sum(1 for service in services if not service["in_force"])
        generation, conf = self.observation["generation"] or "none", self.observation["conf"]
        parts = [f"generation {generation}, conf {conf}"]
        if conf == "broken":
            parts = [f"generation {generation}, conf is broken {self.observation['conf_problem']:.300}"]
        parts.append(f"{running} of {len(services)} services running")
        if drifted:
            parts.append(f"{drifted} not as planned")
        if strays:
            parts.append(f"{strays} out of force and still running")
        return "; ".join(parts)

    def wants_apply(self) -> bool:
        """Whether the conf is newer, valid, and says AutoApply=yes."""
        return bool(self.observation["conf"] == "newer" and self.observation["auto_apply"])

    def answer(self) -> bytes:
        """The observation and how far the jobs are, as the line that clients get."""
        now = time.monotonic()
        services, notices = [], list(self.observation["notices"])
        for service in self.observation["services"]:
            throughput = self._ledger.throughput(service["unit"], now)
            loading = describe_loading(service, throughput) if throughput else None
            running = bool(service["main_pid"])
            services.append({**service, "throughput": throughput if running else None, "loading": loading})
            if running and throughput and (throughput["bound"] == "loader" or throughput["loading"]["pageable"]):
                notices.append(f"{service['kind']}@{service['name']} {loading}")
        return json.dumps({**self.observation, "services": services, "notices": notices}).encode() + b"\n"

    def _take_stamp(self) -> object:
        """Changes whenever the conf, the active generation, the host's CPUs or the state of a service does."""
        self.conf_stamp = self._conf.stamp()
        active = _stat(str(self._store.directory / "active"))
        return self.conf_stamp, active, tuple(read_manifest().values()), service_states()


def describe_loading(service: Mapping[str, Any], throughput: Mapping[str, Any]) -> str | None:
    """What a job's rank that waits most waits for, and what would help; None where the plan has no such rank."""
    loading = dict(throughput["loading"])
    local_rank = loading.pop("local_rank")
    if local_rank >= len(service["threads"]):
        return None
    asked = service["loader_workers"][local_rank]
    threads, budget = service["threads"][local_rank], service["budgets"][local_rank]
    return say_loading(Loading(**loading), threads, budget, asked=asked > 0)


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

"""Decides when torchpard looks again: at what has changed, and at all of it now and then."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torchpar.contract.errors import StoreError, TorchparError
from torchpar.contract.journal import Priority, Tell
from torchpar.contract.messages import MESSAGE_IDS
from torchpar.daemon.figures import Figures
from torchpar.daemon.look import Write
from torchpar.generations.store import Store
from torchpar.host.known_units import PROPERTIES, KnownUnits
from torchpar.host.systemd import Units
from torchpar.verify.observe import Readers, observe

DAEMON = "torchpard.service"
# Of what nobody has told of; see changes.py.
POLL_SECONDS = 60.0
# At the host's CPUs, and at how far jobs are, which asks no other process.
SMALL_LOOK_SECONDS = 5.0
FIGURES_POLL_SECONDS = 10.0
VERIFY_SECONDS = 60.0
# After something has changed: a job that has just started has by then imported torch and begun to compute.
SETTLING_SECONDS = 20.0
# However many ask, the counters are read no more often.
FIGURES_SECONDS = 1.0


class Systemd(Units, Protocol):
    """The door to systemd, as much of it as a watch needs. Everything raises SystemdError."""

    def service_states(self) -> str:
        """Reads a text that changes whenever a service or a socket starts, is ready, ends or fails."""

    def show_units(self, units: Collection[str], properties: Collection[str]) -> str:
        """Reads properties of all of torchpar's units, and of these, as text for KnownUnits."""

    def reload_without_waiting(self, unit: str) -> None:
        """Asks for the reload of a unit, and does not wait for it."""


class Watch:
    """The last observation, and the stamp that says whether it is still true.

    What takes a look runs in a child process and writes what it finds; see look.py. `tell` gets a line for the journal
    when something begins to be wrong, and when it is right again.
    """

    def __init__(self, store: Store, systemd: Systemd, readers: Readers, figures: Figures, tell: Tell) -> None:
        self.observation: dict[str, Any] = {}
        self.stamp: str | None = None
        # When the services are looked at even if nothing has changed.
        self.next_look = 0.0
        # Services that have, or had, fewer CPUs than planned in this run; the arbiter's.
        self.moved: list[dict[str, Any]] = []
        self._store, self._systemd, self._readers = store, systemd, readers
        self._figures = figures
        self._next_figures = 0.0
        self._tell = tell
        self._applied_for: str | None = None
        self._problem = ""
        # Starts and ends that were heard of, of which the states need not tell.
        self._heard = 0
        # What systemd said of all units when it was asked last, with the stamp of then.
        self._shown = ""
        self._shown_at: str | None = None

    # ---- in the child ----

    def glance(self, write: Write) -> None:
        """Writes the stamp alone."""
        write(_line(self._take_stamp()))

    def look(self, write: Write) -> None:
        """Writes the stamp, then the observation, then what systemd said, then which edit is applied by itself."""
        stamp = self._take_stamp()
        write(_line(stamp))
        if "problem" in stamp:
            return
        shown = self._shown
        if stamp["stamp"] != self._shown_at:
            try:
                shown = self._systemd.show_units(self._planned_units(), PROPERTIES)
            except TorchparError:
                # Each is asked for by itself, and says why it cannot be.
                shown = ""
        systemd = KnownUnits(shown, self._systemd) if shown else self._systemd
        observation = observe(self._store, systemd, self._readers)
        write(_line(observation))
        write(_line({"shown": shown}))
        if observation["conf"] == "newer" and observation["auto_apply"] and stamp["conf"] != self._applied_for:
            # Once for each edit; systemd runs `torchpar apply` outside of this sandbox.
            write(_line({"applied_for": stamp["conf"], "problem": self._reload()}))

    def _planned_units(self) -> list[str]:
        """Lists the units of services in force, by the names of their drop-ins; none where the store is damaged."""
        try:
            active = self._store.active()
            names = os.listdir(active.path / "units") if active else []
        except (OSError, StoreError):
            return []
        return [name.removesuffix(".d") for name in names if name.endswith(".service.d")]

    def _take_stamp(self) -> dict[str, str]:
        """Makes a stamp that changes with the conf, the active generation, the host's CPUs and the services' states."""
        try:
            conf = repr(self._readers.conf.stamp())
            # A generation that is made or confirmed changes the directory that it is in.
            active = _stat(self._store.link), _stat(self._store.generations), self._stat_generation()
            host = tuple(self._readers.read_manifest().values())
            states = self._systemd.service_states()
            return {"stamp": repr((conf, active, host, self._heard, states)), "conf": conf}
        except TorchparError as error:
            # systemd does not answer, or executes itself anew: look again in time.
            return {"problem": str(error)}

    def _stat_generation(self) -> str:
        """Makes a stamp of all that is in the active generation, which nobody but root may have changed."""
        try:
            active = self._store.active()
        except StoreError:
            return ""
        of_files = hashlib.sha256()
        for folder, _, names in os.walk(active.path) if active else ():
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                of_files.update(repr((path, _stat(Path(path)))).encode())
        return of_files.hexdigest()

    def _reload(self) -> str:
        """Asks for a reload; returns why that cannot be asked for, or ""."""
        try:
            self._systemd.reload_without_waiting(DAEMON)
        except TorchparError as error:
            return str(error)
        return ""

    # ---- in the daemon, at a time of the monotonic clock ----

    def hear(self) -> None:
        """Takes note that a service has started or ended: what was seen before is not true any more."""
        self._heard += 1

    def is_due(self, now: float) -> bool:
        """Says whether the last look is old."""
        return now >= self.next_look

    def read_stamp(self, lines: Sequence[bytes]) -> str | None:
        """Reads the stamp of a glance or a look; None, with a line in the journal, where there is none."""
        said = json.loads(lines[0]) if lines else {"problem": "the conf and systemd have not answered in time"}
        problem = said.get("problem", "")
        if problem and problem != self._problem:
            self._tell(Priority.WARNING, problem, {})
        self._problem = problem
        return None if problem else str(said["stamp"])

    def has_drift(self, lines: Sequence[bytes]) -> bool:
        """Says whether a look has found a service that is not as planned."""
        return len(lines) > 1 and any(row["placed"] == "drift" for row in json.loads(lines[1])["services"])

    def take(self, lines: Sequence[bytes], now: float) -> bool:
        """Keeps what a look has found; says whether it has come to its end."""
        stamp = self.read_stamp(lines)
        if len(lines) < 3:
            # Not again at once, whatever held it.
            self.next_look = now + SETTLING_SECONDS
            if stamp is not None:
                late = "the services could not be looked at in time; what is shown of them is older"
                self._tell(Priority.WARNING, late, {})
            return False
        self.next_look = now + (SETTLING_SECONDS if stamp != self.stamp else VERIFY_SECONDS)
        self.stamp = stamp
        before = _told(self.observation)
        self.observation = json.loads(lines[1])
        self._shown = json.loads(lines[2])["shown"]
        # Where the store was damaged systemd has not been asked for all at once.
        all_shown = all(f"Id={row['unit']}\n" in self._shown for row in self.observation["services"])
        self._shown_at = stamp if all_shown else None
        if len(lines) > 3:
            applied = json.loads(lines[3])
            self._applied_for = applied["applied_for"]
            if applied["problem"]:
                self._tell(Priority.WARNING, applied["problem"], {})
        now_told = _told(self.observation)
        for notice, fields in now_told.items():
            if notice not in before:
                self._tell(Priority.WARNING, notice, fields)
        for notice in sorted(before.keys() - now_told.keys()):
            self._tell(Priority.INFO, f"no longer: {notice}", before[notice])
        return True

    def read_figures(self, now: float) -> None:
        """Reads how far the jobs are and what they use. What they told is gone when they end: so each poll and question
        calls this. It waits for nothing.
        """
        if self.observation and now >= self._next_figures:
            self._next_figures = now + FIGURES_SECONDS
            self._figures.look(self.observation["services"], now)

    def status(self) -> str:
        """Makes one line for `systemctl status torchpard`."""
        services = self.observation["services"]
        running = sum(1 for service in services if service["state"] == "running")
        drifted = sum(1 for service in services if service["placed"] == "drift")
        failed = sum(1 for service in services if service["state"] in ("failed", "restarting"))
        strays = sum(1 for service in services if not service["in_force"])
        generation, conf = self.observation["generation"] or "none", self.observation["conf"]
        parts = [f"generation {generation}, conf {conf}"]
        if conf == "broken":
            parts = [f"generation {generation}, conf is broken {self.observation['conf_problem']:.300}"]
        parts.append(f"{running} of {len(services)} services running")
        if failed:
            parts.append(f"{failed} failed")
        if drifted:
            parts.append(f"{drifted} not as planned")
        if strays:
            parts.append(f"{strays} out of force and still running")
        return "; ".join(parts)

    def answer(self, now: float, *notes: str) -> bytes:
        """Makes the line that clients get: the observation and how far the jobs are, with these notices besides."""
        self.read_figures(now)
        return _line({**self._figures.complete(self.observation, now, *notes), "moved": self.moved})


def _told(observation: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns what an observation finds wrong, as sentences, and the fields that each has in the journal."""
    if not observation:
        return {}
    common = {"TORCHPAR_GENERATION": str(observation["generation"] or 0)}
    told: dict[str, dict[str, str]] = dict.fromkeys(observation["notices"], common)
    for wrong in observation["wrong"]:
        told[wrong["text"]] = {**common, "MESSAGE_ID": MESSAGE_IDS[wrong["what"]], "TORCHPAR_CHECK": wrong["what"]}
    for row in observation["services"]:
        of_unit = {"TORCHPAR_UNIT": row["unit"], "OBJECT_SYSTEMD_UNIT": row["unit"]}
        for wrong in row["wrong"]:
            kind = {"MESSAGE_ID": MESSAGE_IDS[wrong["what"]], "TORCHPAR_CHECK": wrong["what"]}
            told[f"{row['unit']} {wrong['text']}"] = {**common, **of_unit, **kind}
    return told


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    # An owner and a mode are the file's, too, and no part of its text.
    return status.st_ctime_ns, status.st_size, status.st_ino

"""Collects the state of the host: the conf, the active generation, the host and every running service.

`torchpar status` prints it, torchpard keeps it; both get it here, as JSON data.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, PlacementError, Problem, StoreError, TorchparError
from torchpar.contract.fallback import Fallback, say_manifest
from torchpar.contract.messages import trouble
from torchpar.contract.unit_names import guard_of
from torchpar.facts.topology import HostFacts
from torchpar.generations.drift import find_drift
from torchpar.generations.generation import Content, Generation
from torchpar.generations.rollbacks import read_rollbacks
from torchpar.generations.store import Store
from torchpar.generations.unconfirmed import Unconfirmed
from torchpar.host.checkpoints import Checkpoint, Checkpoints
from torchpar.host.conf import ConfReader
from torchpar.host.facts import read_facts, read_manifest
from torchpar.host.in_force import read_fallback
from torchpar.host.inputs import find_refused_files
from torchpar.host.journal import Journal as LiveJournal
from torchpar.host.last_stop import LastStop, LastStops
from torchpar.host.processes import read_running_unit
from torchpar.host.systemd import Units, loaded_units, read_unit_file
from torchpar.plan.plan import make_plan
from torchpar.plan.record import ServiceRecord
from torchpar.verify.service import Around, ReadRunningUnit, observe_ad_hoc, observe_out_of_force, observe_service
from torchpar.verify.trouble import Journal, add_failures, add_overlaps

_IN_SYNC: Mapping[str, Any] = {"state": "in sync", "problem": None, "notices": (), "auto_apply": False}

# In which the processes of all services are read where that is possible. A service that comes later has its time too.
_SECONDS_OF_ALL = 20.0
_AT_ONCE = 4
# And then the last words of those that have failed.
_SECONDS_OF_JOURNAL = 20.0


class Conf(Protocol):
    """The door to the conf's files."""

    def read(self, *, trusted: bool) -> tuple[ConfFile, ...]:
        """Reads the conf's files. Raises ConfigError."""

    def stamp(self) -> object:
        """Returns a value that changes whenever a file changes, comes or goes."""


@dataclass(frozen=True)
class Readers:
    """The doors to what is looked at besides systemd. `loaded`: see find_drift(); `read_text`: see Around.

    `newest_checkpoint` finds the newest checkpoint in a folder, and `read_last_stop` how the last stop of a training
    job went, by its name. `find_refused_files` asks about the files that systemd opens for services.
    """

    conf: Conf
    read_facts: Callable[[], HostFacts]
    read_manifest: Callable[[], Mapping[str, str]]
    read_running_unit: ReadRunningUnit
    loaded: Callable[[], Path | None]
    journal: Journal
    read_text: Callable[[str], str | None]
    newest_checkpoint: Callable[[str], Checkpoint | None] = lambda folder: None
    read_fallback: Callable[[], Fallback | None] = lambda: None
    read_last_stop: Callable[[str], LastStop | None] = lambda name: None
    find_refused_files: Callable[[Config], tuple[Problem, ...]] = lambda config: ()


def live_readers() -> Readers:
    """Makes the readers of this host."""
    return Readers(
        ConfReader(),
        read_facts,
        read_manifest,
        read_running_unit,
        loaded_units,
        LiveJournal(),
        read_unit_file,
        Checkpoints().newest,
        read_fallback,
        LastStops().read,
        find_refused_files,
    )


def observe(store: Store, systemd: Units, readers: Readers) -> dict[str, Any]:
    """Collects the whole state as JSON data. Whatever cannot be read is said in it, not raised."""
    notices: list[str] = []
    # None where that cannot be known.
    planned: tuple[ServiceRecord, ...] | None = None
    try:
        active = store.active()
        content = active.read() if active else None
        planned = _planned(content, notices) if content else ()
    except StoreError as error:
        active = content = None
        notices.append(str(error))
    if active is None and planned is not None:
        notices.append("nothing has been applied on this host yet; run: torchpar apply")
    waits = _unconfirmed(store, active, notices) if active else None
    notices += (drift for drift in find_drift(store, readers.loaded()) if drift not in notices)
    manifest = readers.read_manifest()
    conf = observe_conf(active, content, readers)
    conf_notices = [f"{line}{_taken_back(store, active)}" for line in conf["notices"]]
    wrong = [*(trouble("store", line) for line in notices), *(trouble("conf", line) for line in conf_notices)]
    fallback = readers.read_fallback()
    if content and content.manifest != manifest:
        then, now = say_manifest(content.manifest, manifest), say_manifest(manifest, content.manifest)
        other = (
            f"generation {active.number if active else '?'} was made for {then}, this host has {now} now; make a new"
            " one: torchpar apply"
        )
        wrong.append(trouble("host", other))
    services: list[dict[str, Any]] = []
    if planned is not None:
        around = Around(
            in_force_since=_in_force_since(store),
            until=time.monotonic() + _SECONDS_OF_ALL,
            rendered=content.files if content else {},
            fallback=fallback,
            read_text=readers.read_text,
        )
        services += _observe_all(systemd, readers, planned, around)
        strays, more = observe_undeclared(systemd, readers.read_running_unit, {s["unit"] for s in services}, around)
        services += strays
        wrong += more
        add_failures(services, readers.journal, around.until + _SECONDS_OF_JOURNAL)
        add_overlaps(services)
        _add_checkpoints(services, readers.newest_checkpoint)
        for row in services:
            stop = readers.read_last_stop(row["name"]) if row["kind"] == "train" else None
            row["last_stop"] = dataclasses.asdict(stop) if stop else None
    return {
        "version": 1,
        "generation": active.number if active else None,
        "unconfirmed": dataclasses.asdict(waits) if waits else None,
        "conf": conf["state"],
        "conf_problem": conf["problem"],
        "auto_apply": conf["auto_apply"],
        "fallback": fallback is not None,
        "services": services,
        "wrong": wrong,
        "notices": [*(told["text"] for told in wrong), *(line for row in services for line in _notices(row))],
    }


def _observe_all(
    systemd: Units, readers: Readers, planned: tuple[ServiceRecord, ...], around: Around
) -> list[dict[str, Any]]:
    """Collects the services in force, a few at a time, so that one that takes long keeps few others waiting."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(
            pool.map(lambda service: observe_service(systemd, readers.read_running_unit, service, around), planned)
        )


def _add_checkpoints(rows: list[dict[str, Any]], newest: Callable[[str], Checkpoint | None]) -> None:
    """Adds to training jobs that run when they have saved last in this run, and whether that has come to its end."""
    for row in rows:
        began = row["run_began_unix_seconds"]
        if row["kind"] == "train" and row["main_pid"] and row["working_directory"] and began is not None:
            saved = newest(row["working_directory"])
            if saved is not None and saved.written >= began:
                row["checkpoint_complete"] = saved.complete
                # By the clock that nobody sets.
                row["checkpoint_monotonic_seconds"] = time.monotonic() - max(0.0, time.time() - saved.written)


def _notices(row: Mapping[str, Any]) -> list[str]:
    """Makes whole sentences of what is wrong with a service."""
    problem = [row["problem"]] if row["problem"] else []
    return [*problem, *(f"{row['unit']} {told['text']}" for told in row["wrong"])]


def _in_force_since(store: Store) -> float:
    """Reads the time when the active generation was put in force; 0 where its link has gone since it was read."""
    try:
        return os.lstat(store.link).st_mtime
    except OSError:
        return 0.0


def _unconfirmed(store: Store, active: Generation, notices: list[str]) -> Unconfirmed | None:
    try:
        return store.unconfirmed(active)
    except StoreError as error:
        notices.append(str(error))
        return None


def _taken_back(store: Store, active: Generation | None) -> str:
    """Says why what is in force is older than the conf: the last change was that another one was taken back."""
    last = next(iter(read_rollbacks(store)), None)
    return f"; generation {last.number} {last.say()}" if last and active and last.back == active.number else ""


def _planned(content: Content, notices: list[str]) -> tuple[ServiceRecord, ...] | None:
    try:
        return content.services()
    except StoreError as error:
        notices.append(str(error))
        return None


def observe_conf(active: Generation | None, content: Content | None, readers: Readers) -> Mapping[str, Any]:
    """Says whether the conf is "in sync" with the active generation, "newer", "broken" or "unknown", with notices.

    One that does not fit this host is broken too, as is one that is in force and names a file that has become a pipe:
    `torchpar apply` would refuse it.
    """
    number = f"generation {active.number}" if active else "what is in force"
    try:
        files = readers.conf.read(trusted=True)
        applied = bool(content and files == content.conf)
        guarded = content and any(path.startswith(guard_of("")) for path in content.files)
        if applied and not guarded:
            return _IN_SYNC
        facts = readers.read_facts()
        config = parse_config(files, facts)
        # Of what is in force files alone can have changed, and those that systemd opens have a guard.
        if problems := readers.find_refused_files(config):
            raise ConfigError(problems)
        if applied:
            return _IN_SYNC
        # Interpreters decide nothing about whether it fits, and may be on a file system that does not answer.
        make_plan(config, facts)
    except ConfigError as error:
        at = "at " if isinstance(error.found[0], Problem) else ""
        return _broken(f"{at}{error.problems[0]}", len(error.problems) - 1, number)
    except PlacementError as error:
        return _broken(f"at {error}" if error.unit else str(error), 0, number)
    except TorchparError as error:
        return {"state": "unknown", "problem": str(error), "notices": [str(error)], "auto_apply": False}
    notice = f"the conf is newer than {number}; see: torchpar diff, then: systemctl reload torchpard"
    return {"state": "newer", "problem": None, "notices": [notice], "auto_apply": config.host.auto_apply}


def _broken(problem: str, others: int, number: str) -> dict[str, Any]:
    more = f" (and {others} more; see: torchpar validate)" if others else ""
    notices = [f"the conf is broken {problem}{more}; {number} stays in force"]
    return {"state": "broken", "problem": problem, "notices": notices, "auto_apply": False}


def observe_undeclared(
    systemd: Units, read_running_unit: ReadRunningUnit, in_force: Collection[str], around: Around
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Collects what runs and is in no generation in force: services that have left the conf, and ad-hoc jobs.

    And what is wrong beside them: sockets that have left the conf and still listen.
    """
    rows: list[dict[str, Any]] = []
    try:
        for unit in systemd.running_services():
            if unit not in in_force and (row := observe_out_of_force(systemd, read_running_unit, unit, around)):
                rows.append(row)
        rows += (observe_ad_hoc(systemd, read_running_unit, unit, around) for unit in systemd.ad_hoc_jobs())
        sockets = [unit for unit in systemd.open_sockets() if f"{unit.removesuffix('.socket')}.service" not in in_force]
    except TorchparError as error:
        return rows, [trouble("host", str(error))]
    left = (f"{unit} is out of force and still listens; to end that: systemctl stop {unit}" for unit in sockets)
    return rows, [trouble("out-of-force", line) for line in left]

"""Checks the units of services in systemd: what others have added to them, how they start, and how they fail."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from torchpar.conf.values import parse_seconds
from torchpar.doctor.check import check
from torchpar.doctor.conditions import IN_FORCE, SYSTEMD
from torchpar.doctor.finding import Finding, fail, not_applicable, unknown, warn
from torchpar.doctor.host import Host
from torchpar.verify.overrides import find_overrides

# Where the rendered drop-ins are.
_GENERATED = "/run/systemd/generator/"
_ETC = "etc/systemd/system"
_OWN_UNIT = re.compile(r"torchpar-(train|infer)@.+\.service")
_MANY = 3


@check(
    "unit.override",
    passed="nothing wins over what torchpar has set",
    where=SYSTEMD,
    source="systemd.unit(5): drop-ins of /etc win over those of generators",
)
def override(host: Host) -> Iterator[Finding]:
    """Finds drop-ins, such as those of `systemctl edit`, with keys that torchpar decides."""
    for service in host.services:
        paths = service.properties.get("DropInPaths", "").split()
        place = next((place for place, path in enumerate(paths) if path.startswith(_GENERATED)), None)
        if place is None:
            continue
        later = {path: host.tree.text(path.lstrip("/")) or "" for path in paths[place + 1 :]}
        for path, keys in find_overrides(host.tree.text(paths[place].lstrip("/")) or "", later).items():
            yield warn(
                f"{', '.join(f'{key}=' for key in keys)} of {service.title} is not what torchpar has planned: a drop-in"
                " wins over it",
                path,
                f"write it into {service.section} in its own words, see torchpar.conf(5); then:"
                f" rm {shlex.quote(path)} && systemctl daemon-reload && torchpar apply",
            )


@check(
    "unit.enabled",
    passed="what systemd starts at boot is what the conf says",
    where=SYSTEMD,
    source="torchpar.conf(5): Enabled=yes starts a service at boot and keeps its CPUs",
)
def enabled(host: Host) -> Iterator[Finding]:
    """Finds services enabled by `systemctl enable`, for which nothing is kept, or that no conf declares.

    A conf with a mistake says neither: what is in force then goes on, and starts at boot.
    """
    if host.config is None:
        yield not_applicable("only where the conf has no mistake; see cfg.valid")
        return
    declared = {each.unit: each for each in host.services if each.declared}
    for folder in host.tree.names(_ETC):
        for unit in host.tree.names(f"{_ETC}/{folder}") if folder.endswith((".wants", ".requires")) else ():
            if not _OWN_UNIT.fullmatch(unit):
                continue
            service = declared.get(unit)
            link = f"/{_ETC}/{folder}/{unit}"
            disable = f"systemctl disable {shlex.quote(unit)}"
            if service is None:
                yield warn(f"{unit} is started at boot, and fails: no conf declares it", link, "", disable)
            elif service.declared and not service.declared.settings.enabled:
                yield warn(
                    f"{service.title} is started at boot, and no CPUs are kept for it",
                    link,
                    f"write Enabled=yes into {service.section}, then: {disable}; torchpar apply",
                )


@check(
    "unit.masked",
    passed="no declared service is masked",
    where=SYSTEMD,
    source="systemctl(1): mask",
)
def masked(host: Host) -> Iterator[Finding]:
    """Finds services that cannot start as somebody has masked them."""
    for service in host.services:
        if service.properties.get("LoadState") == "masked":
            yield warn(
                f"{service.title} is masked: it cannot be started",
                f"systemctl show -P LoadState {service.unit}: masked",
                f"if it is to start again: systemctl unmask {shlex.quote(service.unit)}",
            )


@check(
    "unit.failed",
    passed="no service has failed or fails again and again",
    where=SYSTEMD,
    source="systemd.service(5): Restart=, NRestarts",
)
def failed(host: Host) -> Iterator[Finding]:
    """Finds services that have failed, and those that are started again and again."""
    for service in host.services:
        state, again = service.properties.get("ActiveState"), service.properties.get("NRestarts", "0")
        log = f"see why: journalctl -u {service.unit} -n 50"
        what = f"Result={service.properties.get('Result')}, ExecMainStatus={service.properties.get('ExecMainStatus')}"
        if state == "failed":
            yield fail(f"{service.title} has failed", what, log)
        elif state == "activating" and again.isdecimal() and int(again) >= _MANY:
            yield fail(f"{service.title} fails again and again: {again} restarts", f"NRestarts={again}, {what}", log)


@check(
    "unit.missing_files",
    passed="the files that services need are there",
    where=IN_FORCE,
    source="systemd.exec(5): exit statuses 200, 203, 226",
)
def missing_files(host: Host) -> Iterator[Finding]:
    """Finds scripts, models, interpreters and folders of a service in force that are not there."""
    for service in host.services:
        for path in service.record.needed_files if service.record else ():
            missing = host.doors.is_missing(path)
            if missing is None:
                yield unknown(f"whether {path} is there cannot be told", f"as root: ls -l {shlex.quote(path)}")
            elif missing:
                yield fail(
                    f"{service.title} cannot start: {path} is not there",
                    f"ls -l {path}",
                    f"put it there, or mount what it is on; or correct {service.section} in torchpar.conf",
                )


@check(
    "stop.timeout",
    passed="systemd gives jobs the time to save that the conf promises",
    where=SYSTEMD,
    source="systemd.service(5): TimeoutStopSec=; a checkpoint of 40 s was killed after 31 s",
)
def stop_timeout(host: Host) -> Iterator[Finding]:
    """Finds a unit in force whose stop may take less time than CheckpointGrace=."""
    for service in host.services:
        train = service.declared.train() if service.declared else None
        try:
            most = parse_seconds(re.sub(r"[0-9]+(ms|us)", "", service.properties.get("TimeoutStopUSec", "")).strip())
        except ValueError:
            continue
        # An edit that is not applied yet is cfg.sync's.
        if train and host.conf_state == "in sync" and 0 < most < train.checkpoint_grace:
            yield fail(
                f"a stop kills {service.title} after {most} s, not the {train.checkpoint_grace} s of CheckpointGrace=",
                f"TimeoutStopUSec={service.properties['TimeoutStopUSec']}",
                f"put the conf in force: torchpar apply; see overrides: systemctl cat {service.unit}",
            )

"""Checks what lets an administrator see: torchpard, the journal and metrics."""

from __future__ import annotations

from collections.abc import Iterator

from torchpar.doctor.check import check
from torchpar.doctor.conditions import NODE_EXPORTER, SYSTEMD
from torchpar.doctor.finding import Finding, note, warn
from torchpar.doctor.host import Host


@check(
    "obs.torchpard",
    passed="torchpard watches",
    where=SYSTEMD,
    source="torchpard(8)",
)
def torchpard(host: Host) -> Iterator[Finding]:
    """Finds torchpard not active."""
    state = host.other_units.get("torchpard.service", {}).get("ActiveState", "")
    if state in ("inactive", "failed"):
        yield warn(
            "torchpard does not run: nothing notices drift, a newer conf or other CPUs, and speeds are not shown",
            f"torchpard.service is {state}",
            "see why: journalctl -u torchpard -n 50",
            "systemctl start torchpard.service",
        )


@check(
    "obs.journal",
    passed="the journal is kept over a restart of the host",
    where=SYSTEMD,
    source="journald.conf(5): Storage=auto keeps it where /var/log/journal is there",
)
def journal(host: Host) -> Iterator[Finding]:
    """Finds a journal that is lost with each restart, and with it why a job has failed."""
    text = host.tree.text("etc/systemd/journald.conf") or ""
    volatile = any(line.strip().lower() in ("storage=volatile", "storage=none") for line in text.splitlines())
    if volatile or not host.tree.exists("var/log/journal"):
        yield note(
            "the journal is gone after a restart of the host, and with it why a job has failed",
            "Storage= in /etc/systemd/journald.conf" if volatile else "there is no /var/log/journal",
            "mkdir /var/log/journal && systemd-tmpfiles --create --prefix /var/log/journal && journalctl --flush",
        )


@check(
    "obs.textfile",
    passed="metrics are written for node_exporter",
    where=NODE_EXPORTER,
    source="torchpar-metrics(7); what a textfile says stays true for Prometheus until it is written again",
)
def textfile(host: Host) -> Iterator[Finding]:
    """Finds metrics that nobody writes any more."""
    states = {
        unit: host.other_units.get(unit, {}).get("ActiveState", "")
        for unit in ("torchpar-metrics.timer", "torchpar-metrics.service")
    }
    stopped = states["torchpar-metrics.timer"] in ("inactive", "failed")
    unit = "torchpar-metrics.timer" if stopped else "torchpar-metrics.service"
    if stopped or states[unit] == "failed":
        yield warn(
            "metrics are not written, and what Prometheus has of this host is old, or nothing",
            f"{unit} is {states[unit]}",
            f"see why: systemctl status {unit}",
            f"systemctl start {unit}",
        )

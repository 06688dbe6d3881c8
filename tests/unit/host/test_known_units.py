"""What systemd has said of all units at once has the values of each; what is not plain is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from torchpar.contract.errors import SystemdError
from torchpar.host.known_units import KnownUnits

RUNS = """\
Id=torchpar-train@a.service
LoadState=loaded
ActiveState=active
SubState=running
Result=success
UnitFileState=static
ControlGroup=/torchpar.slice/torchpar-train@a.service
DropInPaths=/run/systemd/generator/torchpar-train@a.service.d/20-torchpar.conf /etc/x.conf
InvocationID=00ff0000000000000000000000000001
MainPID=4711
NRestarts=2
MemoryMax=infinity
ActiveEnterTimestampMonotonic=5000001
StateChangeTimestampMonotonic=5000002
ActiveEnterTimestamp=Mon 2026-11-30 22:07:52.123456 UTC
InactiveExitTimestamp=
ExecMainStartTimestamp=Thu 1970-01-01 00:00:01.500000 UTC
"""
UNIT = "torchpar-train@a.service"


class Asked:
    """Each unit is asked for by itself there."""

    def unit_properties(self, unit: str) -> dict[str, Any]:
        raise SystemdError(f"asked for {unit}")

    def running_services(self) -> tuple[str, ...]:
        raise NotImplementedError

    open_sockets = ad_hoc_jobs = running_services


def known(*blocks: str) -> KnownUnits:
    return KnownUnits("\n".join(blocks), Asked())


def test_values_have_their_types() -> None:
    """Those of busctl's JSON: numbers, lists, microseconds since the epoch, 2**64-1 for no limit."""
    properties = known(RUNS).unit_properties(UNIT)
    assert properties["InvocationID"] == [0, 255, *[0] * 13, 1]
    assert properties["DropInPaths"][1:] == ["/etc/x.conf"]
    assert (properties["MainPID"], properties["NRestarts"], properties["MemoryMax"]) == (4711, 2, 2**64 - 1)
    assert properties["ActiveEnterTimestamp"] == 1796076472123456
    assert (properties["InactiveExitTimestamp"], properties["ExecMainStartTimestamp"]) == (0, 1500000)
    assert properties["ActiveEnterTimestampMonotonic"] == 5000001


@pytest.mark.parametrize(
    "other",
    [
        RUNS.replace("Result=success", "Result=exit-code"),
        RUNS.replace("SubState=running", "SubState=auto-restart").replace("=active", "=activating"),
        RUNS.replace("/etc/x.conf", "[unprintable]"),
        RUNS.replace("MainPID=4711", "MainPID=some"),
        RUNS.replace("Mon 2026-11-30", "n/a"),
        "Id=torchpar-train@b.service\n",
        "",
    ],
)
def test_what_is_not_plain_is_asked_for(other: str) -> None:
    """A failure, whose reason is in more properties; what cannot be parsed; and what was not told of."""
    with pytest.raises(SystemdError, match=f"asked for {UNIT}"):
        known(other).unit_properties(UNIT)


def test_an_ad_hoc_job_is_asked_for() -> None:
    """Its variables say what it was given."""
    unit = "torchpar-run-train-7.service"
    with pytest.raises(SystemdError):
        known(RUNS.replace(UNIT, unit)).unit_properties(unit)
    assert known(RUNS.replace(UNIT, unit)).ad_hoc_jobs() == (unit,)


def test_what_runs_is_listed() -> None:
    """Services that are about to start too, sockets and ad-hoc jobs apart; nothing that has ended."""
    starts = RUNS.replace("=active", "=activating").replace(UNIT, "torchpar-infer@b.service")
    stopped = RUNS.replace("=active", "=inactive").replace(UNIT, "torchpar-train@c.service")
    door = RUNS.replace(UNIT, "torchpar-infer@b.socket")
    units = known(RUNS, starts, stopped, door)
    assert units.running_services() == ("torchpar-infer@b.service", UNIT)
    assert (units.open_sockets(), units.ad_hoc_jobs()) == (("torchpar-infer@b.socket",), ())

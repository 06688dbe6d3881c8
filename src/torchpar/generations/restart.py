"""Restarts services that run with the values of an earlier generation, and tells which of them were not restarted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torchpar.contract.errors import SystemdError

# The beginning of a line of an error, before the units.
NOT_RUNNING = "these do not run: "


class Services(Protocol):
    """The door to the services that run. Everything raises SystemdError."""

    def restart(self, units: tuple[str, ...]) -> None:
        """Restarts all of them and waits for it; where one fails the others are restarted all the same."""

    def invocations(self, units: tuple[str, ...]) -> Mapping[str, str]:
        """Returns, of the units that run, the invocation ID that tells this run of each from others."""


def restart(services: Services, units: tuple[str, ...]) -> None:
    """Restarts these units, if there are any. Raises SystemdError, which says which were not restarted."""
    if not units:
        return
    names = " ".join(units)
    try:
        before = services.invocations(units)
    except SystemdError as error:
        raise SystemdError(f"{error}\nno service was restarted: {names}; again: systemctl restart {names}") from None
    try:
        services.restart(units)
    except SystemdError as error:
        raise SystemdError(f"{error}\n{_left(services, units, before)}") from None
    except KeyboardInterrupt:
        raise SystemdError(f"interrupted; systemd goes on restarting {names}; see: systemctl list-jobs") from None


def _left(services: Services, units: tuple[str, ...], before: Mapping[str, str]) -> str:
    try:
        now = services.invocations(units)
    except SystemdError as error:
        names = " ".join(units)
        return f"whether these were restarted is not known ({error}): {names}; see: systemctl status {names}"
    told = []
    if ended := " ".join(unit for unit in units if unit not in now):
        told.append(f"{NOT_RUNNING}{ended}; see: systemctl status {ended}")
    if same := " ".join(unit for unit in units if unit in now and now[unit] == before.get(unit)):
        told.append(f"these were not restarted and run with their old values: {same}; again: systemctl restart {same}")
    return "\n".join(told) or "all were restarted"

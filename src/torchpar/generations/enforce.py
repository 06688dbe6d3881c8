"""Asks what systemd holds of a generation, and whether one may be in force. Callers hold the store's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from torchpar.contract.errors import StoreError, SystemdError
from torchpar.contract.unit_names import guard_of
from torchpar.generations.compile import Compiled
from torchpar.generations.drift import find_foreign, find_unloaded
from torchpar.generations.generation import Content, Generation
from torchpar.generations.idle import is_idle
from torchpar.generations.readback import ReadBack, compare_socket, compare_unit
from torchpar.generations.store import Store
from torchpar.generations.unit_check import check_units
from torchpar.host import analyze
from torchpar.host import systemd as live
from torchpar.host.systemd import Units
from torchpar.units.drop_ins import socket_of

WAY_BACK = "torchpar-way-back.service"


class LiveSystemd:
    """The door of a transition to the systemd of this host. `at_boot`: it is at work on a start that waits for this."""

    def __init__(self, *, at_boot: bool = False) -> None:
        self._at_boot = at_boot

    def reload(self) -> None:
        """Has the generator run and all units read again. Raises SystemdError."""
        live.daemon_reload()

    def check(self, generation: Generation) -> tuple[str, ...]:
        """Compares what systemd holds with a generation; returns notes on overrides. Raises SystemdError on
        differences."""
        return check_in_force(live, generation)

    def start_way_back(self) -> None:
        """Starts what goes back in time unless the generation is confirmed. Raises SystemdError."""
        # One of an earlier generation may have looked for the last time and not have ended yet: it would not see this
        # one, and a start would change nothing. It holds no lock now, so that nothing is lost with it.
        live.restart([WAY_BACK], wait=not self._at_boot)

    def find_passed_over(self, compiled: Compiled) -> tuple[str, ...]:
        """Finds lines of new units that systemd would pass over. Raises ConfigError for units that it would refuse."""
        return check_units(compiled.plan, compiled.content.files)

    def find_unloaded(self, content: Content) -> str | None:
        """Finds the first unit that systemd has not read as it is in a generation."""
        return find_unloaded(content, live.GENERATED)

    def running_among(self, units: Iterable[str]) -> tuple[str, ...]:
        """Returns those of the units that run now. Raises SystemdError."""
        return running_among(live, units)

    def forget_refusals(self) -> None:
        """Has systemd forget which guards have refused a start."""
        live.forget_failures(guard_of("*"))

    def is_idle(self, unit: str) -> bool:
        """Says whether a running unit uses no CPU now. Raises SystemdError."""
        return is_idle(unit)

    def restart(self, units: tuple[str, ...]) -> None:
        """Restarts services and waits for it. Raises SystemdError."""
        live.restart(units)

    def invocations(self, units: tuple[str, ...]) -> dict[str, str]:
        """Returns, of the units that run, the invocation ID that tells this run from others. Raises SystemdError."""
        return live.invocations(units)


@contextlib.contextmanager
def changing(store: Store, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock of everything that changes the store, without what killed commands left there and elsewhere.

    Raises BusyError, unless this is to wait, and StoreError.
    """
    with store.locked(wait=wait):
        analyze.remove_leftovers()
        yield


def read_active(store: Store) -> tuple[Generation, Content] | None:
    """Reads the active generation and its content; None when there is none or it is damaged, which apply mends."""
    with contextlib.suppress(StoreError):
        generation = store.active()
        if generation:
            return generation, generation.read()
    return None


def check_in_force(systemd: Units, generation: Generation) -> tuple[str, ...]:
    """Compares what systemd holds with a generation; returns notes on overrides. Raises SystemdError on differences."""
    services = generation.read().services()
    compared = [compare_unit(service, systemd.unit_properties(service.unit)) for service in services]
    for service in services:
        if service.listen:
            compared.append(compare_socket(service, systemd.unit_properties(socket_of(service.unit))))
    wrong = _all(compared, "wrong")
    if wrong:
        raise SystemdError("\n".join(("systemd does not hold what was planned:", *wrong)))
    return _all(compared, "notes")


@contextlib.contextmanager
def is_in_force(generation: Generation, but: str = "", waits: str = "") -> Iterator[None]:
    """Adds to an error or an interrupt that the generation is in force all the same, `but` something is not done, and
    what it `waits` for."""
    says = f"generation {generation.number} is in force{but and f', but {but}'}{waits and f'; {waits}'}"
    try:
        yield
    except SystemdError as error:
        raise SystemdError(f"{error}\n{says}") from None
    except KeyboardInterrupt:
        raise SystemdError(f"interrupted; {says}") from None


def running_among(systemd: Units, units: Iterable[str]) -> tuple[str, ...]:
    """Returns those of the units that run now: they have the values that were in force when they started."""
    return tuple(sorted(set(units) & set(systemd.running_services() + systemd.open_sockets())))


def refuse_foreign(generation: Generation) -> None:
    """Raises StoreError when others than root can change a generation, and with it what runs as whom."""
    if path := find_foreign(generation):
        raise StoreError(f"{path}: must be root's alone; make a new generation: torchpar apply")


def refuse_other_host(content: Content, number: int, now: Mapping[str, str]) -> None:
    """Raises StoreError when a generation was made for other CPUs or nodes than this host has now."""
    if content.manifest != now:
        raise StoreError(
            f"generation {number} was made for CPUs {content.manifest.get('cpus_online')}, this host has CPUs "
            f"{now['cpus_online']}; make a new one: torchpar apply"
        )


def _all(compared: Iterable[ReadBack], what: str) -> tuple[str, ...]:
    return tuple(line for each in compared for line in getattr(each, what))

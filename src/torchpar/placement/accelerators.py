"""Gives accelerators to claims: shared out among services like cores, but before them, so that cores can be near."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts, PciDevice
from torchpar.placement.claims import Claim, Decision, Reason, Taken, largest_remainder

# The accelerators of each claim, by its name.
_Given = Mapping[str, tuple[PciDevice, ...]]


def place_gpus(
    claims: Sequence[Claim], facts: HostFacts, taken: Taken = None
) -> dict[str, Decision[tuple[PciDevice, ...]]]:
    """Gives each claim its accelerators: named ones, then counts, then the rest by weight.

    Services with CPUs=shared get none unless they ask. A GPU that is a part of the processor is for those that name
    it. Claims that are not enabled keep away from what is `taken`, where they can. Raises
    PlacementError for devices that are not there or taken.
    """
    devices = facts.accelerators()
    enabled = [claim for claim in claims if claim.enabled]
    guests = [claim for claim in claims if not claim.enabled]
    named = _place_named([*enabled, *guests], devices, facts)
    devices = facts.discrete_accelerators()
    held = {gpu for claim in enabled for gpu in named[claim.name]}
    free = [gpu for gpu in devices if gpu not in held]
    amounts = _count_out(enabled, named, devices, len(free))
    laid_out = _lay_out(amounts, free)
    given = {claim.name: _one_instance(claim, {**named, **laid_out}[claim.name]) for claim in enabled}
    holders = {gpu: claim for claim in enabled for gpu in given[claim.name]}
    free = [gpu for gpu in devices if gpu not in holders]
    busy = {name for each in (taken or {}).values() for name in each.gpus}
    quiet = [gpu for gpu in free if gpu.name not in busy]
    for claim in guests:
        given[claim.name] = named[claim.name]
        count = _wanted(claim)
        if count is None and _shares(claim):
            given[claim.name] = _one_instance(claim, tuple(quiet))
        elif count and not named[claim.name]:
            if count > len(devices):
                raise _too_many(claim, count, devices, len(free))
            if len(quiet) >= count:
                given.update(_lay_out([(claim, count)], quiet))
            else:
                offered = free if len(free) >= count else devices
                given[claim.name] = _keep_away(claim, count, offered, (quiet, free))
    return {claim.name: _decide(claim, given[claim.name], holders, devices, busy) for claim in claims}


def _decide(
    claim: Claim,
    gpus: tuple[PciDevice, ...],
    holders: Mapping[PciDevice, Claim],
    devices: Sequence[PciDevice],
    busy: Collection[str],
) -> Decision[tuple[PciDevice, ...]]:
    """Says why a claim has its accelerators, and where it has those of an enabled one, or none as enabled ones have
    all."""
    where, ask = f"{claim.services[0].origin('GPUs')}: {claim.name}", claim.services[0].ask
    reasons = []
    warnings = [
        f"{where}: accelerator {gpu.name} is held by {holders[gpu].name}, which is enabled; both will be slower"
        for gpu in gpus
        if not claim.enabled and gpu in holders
    ]
    if gpus:
        names = " ".join(gpu.name for gpu in gpus)
        reasons.append(Reason("GPUs", names, f"{len(gpus)} of the host's {len({*devices, *gpus})}"))
    shared = " ".join(gpu.name for gpu in gpus if gpu.name in busy)
    if shared and not claim.enabled:
        warnings.append(f"{where} shares accelerators with other jobs: {shared}; all of them will be slower")
    if devices and not gpus and _wanted(claim) is None and _shares(claim):
        why = f"enabled services have all of the host's {len(devices)}"
        how = f"{ask('GPUs', 'none')} says that this is meant"
        others = " ".join(gpu.name for gpu in devices if gpu.name in busy and gpu not in holders)
        if others and not claim.enabled:
            why, how = f"other jobs compute on {others}", f"{ask('GPUs', 1)} shares one"
        reasons.append(Reason("GPUs", "none", why))
        warnings.append(f"{where}: no accelerator is left for it, {why}; {how}")
    if len(gpus) > 1 and any(gpu.mig for gpu in gpus):
        warnings.append(
            f"{where} has {len(gpus)} accelerators, MIG instances "
            "among them; CUDA shows a process one MIG instance at the most"
        )
    return Decision(gpus, tuple(reasons), tuple(warnings))


def _place_named(
    claims: Sequence[Claim], devices: Sequence[PciDevice], facts: HostFacts
) -> dict[str, tuple[PciDevice, ...]]:
    """Gives out the devices that claims name."""
    named: dict[str, tuple[PciDevice, ...]] = {}
    held: set[PciDevice] = set()
    for claim in claims:
        names = [name for service in claim.services for name in service.settings.gpus.names]
        gpus = tuple(dict.fromkeys(_find_gpu(name, devices, facts, claim) for name in names))
        named[claim.name] = gpus
        for gpu in gpus if claim.enabled else ():
            if gpu in held:
                raise claim.services[0].refuse("GPUs", gpu.name, "another enabled service holds it")
            held.add(gpu)
    return named


def _find_gpu(name: str, devices: Sequence[PciDevice], facts: HostFacts, claim: Claim) -> PciDevice:
    wanted = name.lower()
    if re.fullmatch(r"[0-9a-f]{8}:.*", wanted):
        # nvidia-smi writes the domain of an address with eight digits.
        wanted = wanted.removeprefix("0000")

    def named(device: PciDevice) -> bool:
        return wanted in (device.pci.lower(), (device.uuid or "").lower())

    found = [device for device in devices if wanted == device.name.lower() or (device.mig is None and named(device))]
    if found:
        return found[0]
    parts = [device.name for device in devices if named(device)]
    if parts:
        why = f"it is in MIG instances, of which one can be named: {', '.join(parts)}"
    elif any(named(device) for device in facts.gpus):
        why = "PyTorch cannot use it: it is no accelerator, has no driver, or its driver keeps it for something else"
    else:
        why = f"no such accelerator on this host; it has: {', '.join(device.name for device in devices) or 'none'}"
    raise claim.services[0].refuse("GPUs", name, why)


def _count_out(
    enabled: Sequence[Claim], named: _Given, devices: Sequence[PciDevice], free: int
) -> list[tuple[Claim, int]]:
    """Counts the `free` devices that each enabled claim gets; the largest first, as they are the hardest to place."""
    amounts = []
    for claim in enabled:
        count = _wanted(claim)
        if count and not named[claim.name]:
            if count > free:
                raise _too_many(claim, count, devices, free)
            amounts.append((claim, count))
            free -= count
    autos = [claim for claim in enabled if _wanted(claim) is None and _shares(claim)]
    shares = zip(autos, largest_remainder(free, [claim.weight for claim in autos]), strict=True)
    by_size = (sorted(part, key=lambda pair: (-pair[1], pair[0].name)) for part in (amounts, shares))
    return [amount for part in by_size for amount in part]


def _wanted(claim: Claim) -> int | None:
    """Returns the most that any service of a claim asks for; None if all leave it open."""
    counts = [service.settings.gpus.count for service in claim.services]
    return None if set(counts) == {None} else max(count or 0 for count in counts)


def _shares(claim: Claim) -> bool:
    return claim.request.kind is not CpuRequestKind.SHARED


def _too_many(claim: Claim, count: int, devices: Sequence[PciDevice], free: int) -> Exception:
    why = f"of the {len(devices)} accelerators of this host {free} {'is' if free == 1 else 'are'} free"
    return claim.services[0].refuse("GPUs", count, why)


def _lay_out(amounts: Sequence[tuple[Claim, int]], free: Sequence[PciDevice]) -> dict[str, tuple[PciDevice, ...]]:
    """Gives out devices: every claim keeps what it has in force, as far as it gets as many."""
    left = list(free)
    given: dict[str, tuple[PciDevice, ...]] = {}
    for claim, count in amounts:
        kept = tuple(gpu for gpu in left if gpu.name in claim.held.gpus)[:count]
        left = [gpu for gpu in left if gpu not in kept]
        given[claim.name] = kept
    for claim, count in amounts:
        kept = given[claim.name]
        chosen = _choose(left, count - len(kept), _near(claim, kept))
        left = [gpu for gpu in left if gpu not in chosen]
        given[claim.name] = tuple(sorted((*kept, *chosen), key=_bus))
    return given


def _keep_away(
    claim: Claim, count: int, offered: Sequence[PciDevice], parts: Sequence[Sequence[PciDevice]]
) -> tuple[PciDevice, ...]:
    """Gives devices to a claim that holds none where it has to share some: as many of the first part as can be, then of
    the next.

    MIG instances come last, as CUDA shows a process of several one.
    """
    chosen: list[PciDevice] = []
    for kind in ([gpu for gpu in offered if gpu.mig is None], offered):
        for part in (*parts, offered):
            left = [gpu for gpu in kind if gpu in part and gpu not in chosen]
            chosen += _choose(left, min(len(left), count - len(chosen)), _near(claim, chosen))
    return tuple(sorted(chosen, key=_bus))


def _bus(gpu: PciDevice) -> tuple[str, str]:
    return gpu.pci, gpu.mig or ""


def _one_instance(claim: Claim, gpus: tuple[PciDevice, ...]) -> tuple[PciDevice, ...]:
    """Leaves a claim that asked for no number whole GPUs, or one MIG instance: CUDA shows a process no more."""
    if _wanted(claim) is not None or len(gpus) < 2:
        return gpus
    whole = tuple(gpu for gpu in gpus if gpu.mig is None)
    return whole or tuple(sorted(gpus, key=lambda gpu: gpu.name not in claim.held.gpus))[:1]


def _near(claim: Claim, kept: Sequence[PciDevice]) -> CpuSet:
    """Returns the nodes that its devices should be on: those of what it keeps, and of the CPUs that it names."""
    places = [*(gpu.numa_node for gpu in kept), *(core.numa_node for core in claim.named)]
    return CpuSet(node for node in places if node is not None and node >= 0)


def _choose(free: Sequence[PciDevice], count: int, near: CpuSet) -> list[PciDevice]:
    """Chooses `count` devices, whole ones before MIG instances, on the nodes `near` if there are any, on as few nodes
    as can be, and breaking up none that it need not."""
    chosen: list[PciDevice] = []
    while len(chosen) < count:
        places: dict[tuple[bool, int | None], list[PciDevice]] = {}
        for gpu in free:
            if gpu not in chosen:
                places.setdefault((gpu.mig is not None, gpu.numa_node), []).append(gpu)
        room = count - len(chosen)
        # Whole nodes while they are too small; then the one with the fewest left over.
        group = min(
            places.values(),
            key=lambda gpus: (
                gpus[0].mig is not None,
                gpus[0].numa_node not in near,
                len(gpus) < room,
                abs(len(gpus) - room),
                gpus[0].pci,
            ),
        )
        chosen += group[:room]
    return chosen

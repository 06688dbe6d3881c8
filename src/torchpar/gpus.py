"""Accelerators to claims: shared out among services like cores, but before them, so that cores can be near."""

from __future__ import annotations

from collections.abc import Sequence

from torchpar.claims import Claim, Reason, largest_remainder
from torchpar.topology import HostFacts, PciDevice
from torchpar.values import CpuRequestKind


def place_gpus(claims: Sequence[Claim], facts: HostFacts) -> None:
    """Give each claim its accelerators: named ones, then counts, then the rest by weight.

    Services with CPUs=shared get none unless they ask. Raises PlacementError for devices that are not there or taken.
    """
    devices = facts.accelerators()
    free = list(devices)
    ordered = sorted(claims, key=lambda claim: not claim.enabled)
    for claim in ordered:
        names = [name for service in claim.services for name in service.settings.gpus.names]
        claim.gpus = tuple(_find_gpu(name, devices, claim) for name in dict.fromkeys(names))
        for gpu in claim.gpus:
            if claim.enabled and gpu not in free:
                raise claim.services[0].refuse("GPUs", gpu.pci, "another enabled service holds it")
            if claim.enabled:
                free.remove(gpu)
    for claim in ordered:
        count = max(service.settings.gpus.count or 0 for service in claim.services)
        if count and not claim.gpus:
            available = free if claim.enabled or len(free) >= count else list(devices)
            if count > len(available):
                why = f"of the {len(devices)} accelerators of this host {len(free)} are free"
                raise claim.services[0].refuse("GPUs", count, why)
            claim.gpus = tuple(available[:count])
            if claim.enabled:
                free = free[count:]
    autos = [
        claim
        for claim in ordered
        if claim.request.kind is not CpuRequestKind.SHARED
        and all(service.settings.gpus.count is None for service in claim.services)
    ]
    sharing = [claim for claim in autos if claim.enabled]
    for claim, count in zip(sharing, largest_remainder(len(free), [c.weight for c in sharing]), strict=True):
        claim.gpus, free = tuple(free[:count]), free[count:]
    for claim in autos:
        if not claim.enabled:
            claim.gpus = tuple(free)
    for claim in claims:
        if claim.gpus:
            addresses = " ".join(gpu.pci for gpu in claim.gpus)
            claim.reasons.append(Reason("GPUs", addresses, f"{len(claim.gpus)} of the host's {len(devices)}"))


def _find_gpu(name: str, devices: Sequence[PciDevice], claim: Claim) -> PciDevice:
    for device in devices:
        if name.lower() in (device.pci.lower(), (device.uuid or "").lower()):
            return device
    having = ", ".join(device.pci for device in devices) or "none"
    raise claim.services[0].refuse("GPUs", name, f"no such accelerator on this host; it has: {having}")

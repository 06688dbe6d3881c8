"""Finds the addresses of inference services, and which of them would take each other's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torchpar.conf.services import Service
from torchpar.conf.settings import InferSettings
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.errors import PlacementError

# What a service without Listen= gets: Triton's port for HTTP, where only this host can reach it.
DEFAULT = ("127.0.0.1:8000",)

_ALL = ("0.0.0.0", "[::]")


def addresses(settings: InferSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the addresses of a service's HTTP and of its gRPC; systemd's socket holds them all."""
    http = tuple(address for address in settings.listen if not address.startswith("grpc:"))
    grpc = tuple(address.removeprefix("grpc:") for address in settings.listen if address.startswith("grpc:"))
    return http or DEFAULT, grpc


def find_collisions(services: Sequence[Service]) -> tuple[str, ...]:
    """Finds services that cannot listen at the same time, as warnings that name both.

    Services that take turns (Slot=) may have one address; so may a shared one that is not enabled, such as the demo,
    as it gives way. Raises PlacementError where two that are enabled, or one alone, name an address twice.
    """
    warnings = []
    for service in services:
        for address, other in itertools.combinations(_all(service), 2):
            if _same(address, other):
                raise service.refuse("Listen", f"{address} {other}", "that is one address twice")
    for first, second in itertools.combinations(services, 2):
        slot = first.settings.slot
        if slot and slot == second.settings.slot:
            continue
        for one, other in itertools.product(_all(first), _all(second)):
            if not _same(one, other):
                continue
            why = (
                f"{second.section} listens on {other} and {first.section} on {one}, so only one of them can run; give "
                "each an address of its own by Listen="
            )
            if first.settings.enabled and second.settings.enabled:
                raise PlacementError(f"{second.origin('Listen')}: {why}", second.unit)
            if not (_gives_way(first) or _gives_way(second)):
                warnings.append(f"{second.origin('Listen')}: {why}")
    return tuple(warnings)


def _all(service: Service) -> Iterator[str]:
    settings = service.infer()
    if settings:
        http, grpc = addresses(settings)
        yield from (*http, *grpc)


def _same(one: str, other: str) -> bool:
    host, _, port = one.rpartition(":")
    other_host, _, other_port = other.rpartition(":")
    return port == other_port and (host == other_host or host in _ALL or other_host in _ALL)


def _gives_way(service: Service) -> bool:
    return not service.settings.enabled and service.settings.cpus.kind is CpuRequestKind.SHARED

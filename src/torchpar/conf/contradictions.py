"""Finds what is wrong between keys and between services, each of which is right by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torchpar.conf.endpoint import whole_endpoint
from torchpar.conf.services import Service
from torchpar.conf.settings import (
    InferSettings,
    TrainSettings,
)
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.errors import Problem


def find_contradictions(service: Service) -> Iterator[Problem]:
    """Yields a problem for each contradiction between the keys of one service."""
    settings = service.settings
    if isinstance(settings, TrainSettings):
        if not settings.script and not settings.module:
            yield service.problem("", "has nothing to run; set Script=/path/to/train.py or Module=NAME")
        if settings.script and settings.module:
            yield service.problem("Module", "has both Script= and Module=; keep one of them")
        least, most = settings.nodes
        if most > 1 and not settings.endpoint:
            yield service.problem("Nodes", "has Nodes= but no Endpoint=, where they meet; set Endpoint=HOST")
        if least < most and not settings.elastic:
            yield service.problem(
                "Nodes",
                f"Nodes={least}:{most}: would go on with fewer hosts only with Elastic=yes; set that, or Nodes={most}",
            )
        if settings.elastic and least == most:
            yield service.problem("Elastic", "Elastic=yes needs Nodes=LEAST:MOST, how few hosts it may go on with")
    if isinstance(settings, InferSettings):
        if not settings.model and not settings.handler:
            yield service.problem("", "has nothing to serve; set Model=/path/to/model.pt or Handler=")
        if bool(settings.tls_certificate) != bool(settings.tls_key):
            have, lack = ("TLSCertificate", "TLSKey") if settings.tls_certificate else ("TLSKey", "TLSCertificate")
            yield service.problem(have, f"{have}= needs {lack}= beside it")
    yield from _lending(service)
    explicit = ("preferred", "bind", "interleave")
    if settings.numa_mask and settings.numa_policy.value not in (*explicit, "auto"):
        yield service.problem(
            "NUMAMask",
            f"NUMAMask= has no meaning with "
            f"NUMAPolicy={settings.numa_policy.value}; it goes with {', '.join(explicit)}",
        )


def _lending(service: Service) -> Iterator[Problem]:
    settings, infer = service.settings, service.infer()
    if settings.lend and settings.cpus.kind is CpuRequestKind.SHARED:
        yield service.problem("Lend", "Lend=yes has no meaning with CPUs=shared, which are not its own; set Lend=no")
    if settings.borrow:
        for key, number in (("Threads", settings.threads), ("Workers", infer and infer.workers)):
            if number:
                yield service.problem(
                    "Borrow", f"Borrow=yes has no use with {key}={number}, which stays; set {key}=auto or Borrow=no"
                )


def find_shared_endpoints(services: Sequence[Service]) -> Iterator[Problem]:
    """Two jobs that may run at once on one endpoint would meet each other there."""
    seen: dict[str, Service] = {}
    for service in services:
        train = service.train()
        if not train or not train.endpoint or train.nodes[1] == 1:
            continue
        endpoint = whole_endpoint(train.endpoint, service.name)
        other = seen.setdefault(endpoint, service)
        if other is not service and not (train.slot and train.slot == other.settings.slot):
            yield service.problem(
                "Endpoint",
                f"Endpoint={train.endpoint}: {other.section} meets at {endpoint} too; give each job a port of its own",
            )

"""Lists the files that systemd opens as root when a service starts, and hands on to it.

Who can put another file in the place of one of them reads or writes with root's rights. So the way to each is root's
alone: ownership.py asks that before a conf is put in force, and a unit of root's (torchpar-guard@.service) before
every start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from torchpar.conf.passed import judge_directive, opened
from torchpar.conf.services import Config, Service
from torchpar.contract.errors import Problem, printable


class Named(NamedTuple):
    """A path, and the key and the value of the conf that name it."""

    key: str
    value: str
    path: str


def opened_paths(service: Service) -> tuple[Named, ...]:
    """Lists the files that systemd opens for a service, in the order of the unit."""
    return tuple(dict.fromkeys(_opened(service)))


def _opened(service: Service) -> Iterator[Named]:
    infer = service.infer()
    if infer and infer.tls_certificate and infer.tls_key:
        yield Named("TLSCertificate", infer.tls_certificate, infer.tls_certificate)
        yield Named("TLSKey", infer.tls_key, infer.tls_key)
    for name, value in service.directives:
        # With one that is refused the service does not start, see find_refused().
        with contextlib.suppress(ValueError):
            yield from (Named(f"Service.{name}", value, path) for path in opened(name, value, service.unit))


def find_refused(config: Config) -> dict[str, tuple[Problem, ...]]:
    """Finds the directives of a conf that was in force that are not passed on any more, by the unit that has them.

    Without them the service would run as something else than was meant, with them as something else than is allowed.
    """
    refused = {
        service.unit: tuple(
            service.problem(f"Service.{name}={value}", f"Service.{name}={printable(value, 60)}: {wrong}")
            for name, value in service.directives
            if (wrong := judge_directive(name, value)[0])
        )
        for service in config.services
    }
    return {unit: problems for unit, problems in refused.items() if problems}

"""The declared services of a host, and the rest of its conf, as immutable values; parse.py makes them.

A Config that exists is right: its values have their types, each service has something to run. Whether it fits a host
is decided by the plan.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from torchpar.conf.directives import SINCE, is_too_new
from torchpar.conf.settings import (
    HostSettings,
    InferSettings,
    ServiceSettings,
    TrainSettings,
)
from torchpar.contract.errors import CoresError, Place, PlacementError, Problem, printable
from torchpar.contract.unit_names import is_called, no_such_service, title_of, unit_name

# Who a service runs as that names no User=.
OWN_USER = "torchpar"

# The section of a job that no file declares, see adhoc.conf_of(): what no service is called.
AD_HOC = "torchpar.run:"

# A file's name has at most 255 bytes, and systemd's folder for PrivateTmp= of the service needs 79 beside its name.
LONGEST_NAME = 100


class Kind(enum.Enum):
    """The kinds of services; the value is the middle of the unit's name."""

    TRAIN = "train"  # torchpar-train@NAME.service, [Train NAME]
    INFER = "infer"  # torchpar-infer@NAME.service, [Infer NAME]

    @property
    def section(self) -> str:
        """The word in the section header."""
        return self.value.capitalize()


@dataclass(frozen=True)
class Service:
    """One declared service. `directives` are its Service.KEY= pairs; `origins` says where each key was set,
    and under "" where the service is declared."""

    kind: Kind
    name: str
    settings: ServiceSettings
    directives: tuple[tuple[str, str], ...]
    origins: Mapping[str, Place]

    @property
    def unit(self) -> str:
        """The name of its unit."""
        return unit_name(self.kind.value, self.name)

    @property
    def title(self) -> str:
        """The name of the service for people, such as "train@demo"."""
        return title_of(self.kind.value, self.name)

    @property
    def section(self) -> str:
        """Its section header, for messages."""
        return f"[{self.kind.section} {self.name}]"

    @property
    def names_cpus(self) -> bool:
        """Says whether CPUs= names CPUs, NUMA nodes or packages, and not only a number of cores."""
        return self.settings.cpus.is_explicit()

    def origin(self, key: str) -> str:
        """Returns the place where the key was set, or where the service is declared, as "file:line"."""
        return str(self.place(key))

    def ask(self, key: str, value: object) -> str:
        """Returns what to write to ask for a value, for messages."""
        return f"{key}={value}"

    def place(self, key: str) -> Place:
        """Returns the place where the key was set, or where the service is declared."""
        return self.origins.get(key) or self.origins[""]

    def problem(self, key: str, what: str) -> Problem:
        """Makes a problem of a key, or of the whole service (key "")."""
        return Problem(self.place(key), f"{self.section} {what}")

    def refuse(self, key: str, value: object, why: str) -> PlacementError:
        """Makes the error that a value does not fit the host."""
        what = f"{self.section} {key}={printable(str(value), 80)}: {printable(why, 800)}"
        return PlacementError(f"{self.origin(key)}: {what}", self.unit)

    def lacks(self, key: str, value: object, why: str) -> CoresError:
        """Makes the error that there are too few cores for a value."""
        return CoresError(str(self.refuse(key, value, why)), self.unit)

    @property
    def own_user(self) -> bool:
        """Says whether it runs as torchpar's own user, which has neither a home nor files but its services'."""
        return self.settings.user in (None, OWN_USER)

    @property
    def confined(self) -> bool:
        """Says whether it may write only in its own folders and in those that the conf names.

        A training job of another user writes wherever that user may.
        """
        return self.own_user or self.kind is Kind.INFER

    def known_to(self, systemd_version: int | None) -> Self:
        """Returns the service without the directives that this systemd lacks; one of unknown version (None) has all."""
        known = tuple(pair for pair in self.directives if not is_too_new(pair[0], systemd_version))
        return replace(self, directives=known)

    def left_out(self, systemd_version: int | None) -> tuple[str, ...]:
        """Returns a warning for each directive that this version of systemd lacks."""
        return tuple(
            f"{self.origin(f'Service.{key}')}: {self.section} Service.{key}= needs systemd {SINCE[key]}; this host has "
            f"{systemd_version}, so it is left out"
            for key, _ in self.directives
            if is_too_new(key, systemd_version)
        )

    def variable(self, name: str) -> str | None:
        """Returns the value that its Environment= sets; of several the last, as in systemd."""
        return dict(assignment.partition("=")[::2] for assignment in self.settings.environment).get(name)

    def train(self) -> TrainSettings | None:
        """Returns the settings if it is a training service."""
        return self.settings if isinstance(self.settings, TrainSettings) else None

    def infer(self) -> InferSettings | None:
        """Returns the settings if it is an inference service."""
        return self.settings if isinstance(self.settings, InferSettings) else None


@dataclass(frozen=True)
class Config:
    """All files merged. Services are sorted by kind and name, so their order in the files means nothing."""

    host: HostSettings
    services: tuple[Service, ...]
    notes: tuple[Problem, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings about the configuration, a line each."""
        return tuple(map(str, self.notes))

    def known_to(self, systemd_version: int | None) -> Config:
        """Returns the configuration without the directives that this version of systemd lacks."""
        return replace(self, services=tuple(service.known_to(systemd_version) for service in self.services))

    def interpreters(self) -> tuple[str, ...]:
        """Returns the interpreters of all services, sorted."""
        return tuple(sorted({service.settings.python for service in self.services}))

    def find(self, name: str) -> tuple[Service, ...]:
        """Finds the services called "resnet" (of both kinds), or the one called "train@resnet" or by its unit's name.

        Raises NoSuchServiceError when there is none.
        """
        found = tuple(service for service in self.services if service.name == name) or tuple(
            service for service in self.services if is_called(service.kind.value, service.name, name)
        )
        if not found:
            raise no_such_service(name, "in torchpar.conf", (service.title for service in self.services))
        return found

"""Writes and reads what torchpard does for services that cannot be placed as planned: /run/torchpar-fallback.

torchpard alone writes it. Plans read which services systemd could not give their CPUs or their memory policy, and
status which ones run on less than they had. It is gone when the host boots: then all is tried anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from torchpar.contract.typed_json import ShapeError, parse_json, shape

VERSION = 1
MOST_BYTES = 2**20
# What systemd ends a start with that it cannot give its CPUs, or its memory policy (systemd.exec(5)).
CPU_AFFINITY, NUMA_POLICY = 215, 242
# Starts of a service on one host: with a placement for this host, then without what systemd could not set.
MOST_TRIES = 2


@dataclass(frozen=True)
class Fallen:
    """A service whose start (`invocation`) ended with `status`, and how often it was started again on this host."""

    unit: str
    status: int
    invocation: str
    tries: int

    @property
    def is_without(self) -> bool:
        """Says whether it is planned without what systemd could not set."""
        return self.tries >= MOST_TRIES


@dataclass(frozen=True)
class Fallback:
    """The services that have fallen on this host, by its CPUs and nodes online (`host`), as a manifest has them.

    `before` are those of the host on which all were placed as planned. `asked` is the generation in force when a new
    one was asked for last; 0: it is still to be asked for. `due` are the units whose start is still to be asked for.
    """

    before: Mapping[str, str]
    host: Mapping[str, str]
    asked: int
    units: tuple[Fallen, ...] = ()
    due: tuple[str, ...] = ()
    version: int = VERSION

    @property
    def without(self) -> dict[str, int]:
        """Returns the units that are planned without what systemd could not set, with the status of their starts."""
        return {one.unit: one.status for one in self.units if one.is_without}


def say_manifest(manifest: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Says which CPUs and memory nodes a manifest has, where those of the other are not the same.

    >>> one = {"cpus_online": "0-7", "nodes_online": "0-1"}
    >>> say_manifest(one, {**one, "cpus_online": "0-3"})
    'CPUs 0-7'
    """
    words = {"cpus_online": "CPUs", "nodes_online": "memory nodes"}
    differ = [key for key in words if manifest.get(key) != other.get(key)]
    return " and ".join(f"{words[key]} {manifest.get(key, '-')}" for key in differ)


def make_fallback_json(fallback: Fallback) -> str:
    """Makes the text of the file."""
    return json.dumps(dataclasses.asdict(fallback), sort_keys=True) + "\n"


def parse_fallback(text: bytes) -> Fallback | None:
    """Parses the text of the file; None for anything else."""
    try:
        fallback = shape(parse_json(text), Fallback)
    except ShapeError:
        return None
    return fallback if fallback.version == VERSION else None

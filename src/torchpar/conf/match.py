"""Decides whether the file that begins with a [Match] applies to a host."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torchpar.conf import values as v
from torchpar.conf.settings import MatchSettings
from torchpar.facts.topology import HostFacts


def matches(match: MatchSettings, facts: HostFacts) -> bool:
    """Says whether a host is what a [Match] asks for."""
    names = {facts.arch} | v.ARCHITECTURES.get(facts.arch or "", set())
    short = facts.hostname.partition(".")[0]
    return (
        (not match.host or any(_is_called(glob, (facts.hostname, short)) for glob in match.host))
        and (not match.architecture or bool(names & set(match.architecture)))
        and all(comparison.holds(len(facts.discrete_accelerators())) for comparison in match.gpus)
        and all(comparison.holds(len(facts.online_cpus)) for comparison in match.cpus)
        and all(comparison.holds(sum(1 for n in facts.numa_nodes if n.cpus)) for comparison in match.memory_nodes)
    )


def _is_called(glob: str, names: Sequence[str]) -> bool:
    return glob in names or (v.is_glob(glob) and any(fnmatch.fnmatchcase(name, glob) for name in names))


def named_hosts(match: MatchSettings) -> tuple[str, ...]:
    """Returns the hosts that a [Match] names in full, without * or ?."""
    return tuple(glob for glob in match.host if not v.is_glob(glob))

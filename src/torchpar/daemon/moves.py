"""Says where services are that have other CPUs than planned, and makes the moves of their threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, read_given
from torchpar.contract.paths import GIVEN
from torchpar.contract.unit_names import shorten
from torchpar.host.affinity import Move, UnitMove

# Of those that share its CPUs.
_MOST_NAMES = 3


def make_move(given: Given) -> UnitMove:
    """Makes the move of all threads of a service to what it has now."""
    sets = (*given.had, given.planned_cpus, given.cpus, *(rank.cpus for rank in (*given.planned, *given.ranks)))
    known = set(sets)
    gone = CpuSet.union(given.had) - given.planned_cpus - given.cpus
    counts = Counter(cpu for rank in given.planned for cpu in rank.cpus)
    ranks = tuple(
        Move(known, rank.cpus, CpuSet(cpu for cpu in planned.cpus if counts[cpu] == 1), gone)
        for rank, planned in zip(given.ranks, given.planned, strict=True)
    )
    lent = CpuSet.union(sets) - given.planned_cpus
    return UnitMove(given.unit, given.control_group, ranks, Move(known, given.cpus, gone=gone), lent=lent)


def describe(given: Given, lent: CpuSet) -> dict[str, Any]:
    """Says, as JSON data, where a service is that has been moved in this run, since when and why.

    `lent` are those of its CPUs that others have.
    """
    return {
        "unit": given.unit,
        "cpus": str(given.cpus),
        "planned_cpus": str(given.planned_cpus),
        "threads": [rank.threads for rank in given.ranks],
        "beside": given.why,
        "borrowed_cpus": str(CpuSet.union(loan.cpus for loan in given.loans)),
        "lenders": name_units(loan.unit for loan in given.loans),
        "lent_cpus": str(lent),
        "lent_to": given.lent_to,
        "since_timestamp_seconds": given.since,
    }


def read_moved(rows: Sequence[Mapping[str, Any]], folder: str = GIVEN) -> list[dict[str, Any]]:
    """Reads where the services of these rows are that have been moved in their present run; see describe()."""
    files = {row["unit"]: read_given(row["unit"], folder) for row in rows}
    here = [given for row in rows if (given := files[row["unit"]]) and given.invocation == row["invocation"] != ""]
    loans = [loan for given in here for loan in given.loans]
    return [
        describe(given, CpuSet.union(loan.cpus for loan in loans if loan.unit == given.unit))
        for given in here
        if given.is_moved or given.lent_to
    ]


def say(given: Given, before: Given | None) -> list[str]:
    """Says for the journal what a service has from now on; nothing where that has not changed."""
    name, lines = shorten(given.unit), []
    loans, had = given.loans, before.loans if before else ()
    ranks, earlier = given.own or given.ranks, (before.own or before.ranks) if before else given.planned
    if ranks != earlier:
        cpus, planned = CpuSet.union(rank.cpus for rank in ranks), given.planned_cpus
        if ranks == given.planned:
            lines.append(f"{name} has all of its CPUs {planned} again")
        else:
            why = f", which it shares with {given.why}" if given.why else ": the others are offline"
            lines.append(f"{name} has CPUs {cpus} of its {planned}{why}")
    if loans != had:
        back = [loan for loan in had if loan not in loans]
        new = [loan for loan in loans if loan not in had]
        if back and not new:
            lines.append(f"{name} has given back {_name_loans(back)}: it has CPUs {given.cpus}")
        elif loans:
            lines.append(f"{name} borrows {_name_loans(loans)}: it has CPUs {given.cpus}")
    return lines


def _name_loans(loans: Sequence[Any]) -> str:
    return " and ".join(f"CPUs {loan.cpus} of {shorten(loan.unit)}" for loan in loans)


def name_units(units: Iterable[str]) -> str:
    """Names the first of the services, and says how many others there are: "train@a, train@b and 3 others"."""
    units = list(units)
    names = [shorten(unit) for unit in units[:_MOST_NAMES]]
    others = len(units) - len(names)
    if others:
        names.append("another" if others == 1 else f"{others} others")
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""

"""Says which CPUs of other services a service may be lent, and what of its own it lends."""

from __future__ import annotations

from torchpar.conf.services import Config, Service
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts
from torchpar.placement.claims import Reason
from torchpar.placement.place import Placement


def explain_lending(
    service: Service, config: Config, placement: Placement, facts: HostFacts
) -> tuple[CpuSet, tuple[Reason, ...]]:
    """Returns the CPUs of others that the service's control group has to allow for loans, and the reasons.

    A control group cannot have them for the time of a loan alone: systemd would keep that beyond the run.
    """
    own = placement.shares[service.unit].cpus
    reasons = []
    if service.settings.lend:
        when = "does not run, or has had no request for a while" if service.infer() else "does not run"
        reasons.append(Reason("Lend", "yes", f"while it {when}, services with Borrow=yes may compute on CPUs {own}"))
    if not service.settings.borrow:
        return CpuSet(), tuple(reasons)
    lenders = [other for other in config.services if other.settings.lend and other is not service]
    lent = CpuSet.union(placement.shares[other.unit].cpus for other in lenders) - own - facts.isolated_cpus
    names = ", ".join(other.title for other in lenders if not placement.shares[other.unit].cpus.isdisjoint(lent))
    why = (
        f"while they are not needed by {names} it may compute on CPUs {lent}, too"
        if lent
        else "no other service with Lend=yes has CPUs that are not its own already"
    )
    reasons.append(Reason("Borrow", "yes", why))
    return lent, tuple(reasons)

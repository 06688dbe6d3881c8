"""Divides a service's cores among its ranks: which CPUs, how many compute threads and loader workers each rank has.

The rule against oversubscription lives here: threads and loader workers of a rank never exceed its cores when it
trains on CPUs, or its CPUs when it feeds accelerators, nor the CPU quota. On a host with several kinds of cores the
slower ones of its loader workers come on top. Only OMP_NUM_THREADS in the service's own Environment= may break it, with
a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchpar.conf.services import Service
from torchpar.conf.settings import TrainSettings
from torchpar.conf.values import Binding, CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts, PciDevice
from torchpar.placement.claims import Reason
from torchpar.placement.cores import Core
from torchpar.placement.place import Share
from torchpar.placement.places import split_places
from torchpar.placement.split import by_node, chunks, split_cores, split_nodes

# Enough for the Python and driver threads of a rank that computes on accelerators; its other cores load data.
GPU_RANK_THREADS = 4


@dataclass(frozen=True)
class Rank:
    """One process of a service: its CPUs, the NUMA nodes of those, and what runs on them.

    Its loader workers, those that the conf asks for, may also use the `loader_cpus`, on which it does not compute.
    `budget` is the most that threads and loader workers may be together.
    """

    local_rank: int
    cpus: CpuSet
    numa_nodes: CpuSet
    threads: int
    loader_workers: int
    gpus: tuple[PciDevice, ...]
    budget: int
    loader_cpus: CpuSet = CpuSet()


def make_ranks(
    service: Service, share: Share, facts: HostFacts, *, smt: bool, quota: int | None
) -> tuple[tuple[Rank, ...], tuple[Reason, ...], tuple[str, ...]]:
    """Splits a service's share between its ranks; returns them with reasons and warnings.

    `smt` asks for a compute thread on each CPU rather than on each core; `quota` is the CPU quota in whole CPUs, or
    None. Raises PlacementError when there are more ranks than cores, or no accelerator for Ranks=gpu.
    """
    train = service.train()
    reasons: list[Reason] = []
    warnings: list[str] = []
    ranks = []
    if train:
        parts = _split(service, train, share)
        count = len(parts)
        per_rank = train.gpus_per_rank if count > 1 else len(share.gpus)
        binding = train.binding
    else:
        # A process for each accelerator where there are any, and for each place with a memory or a cache of its own.
        count = min(len(share.gpus), len(share.cores))
        shared = service.settings.cpus.kind is CpuRequestKind.SHARED
        parts, reason = split_places(share.cores, quota, shared=shared)
        if count:
            parts = _split_by_gpus(share, count, 1) or split_cores(share.cores, count)
            reason = Reason("Places", str(count), "one for each accelerator")
        count, per_rank, binding = len(parts), -(-len(share.gpus) // len(parts)), Binding.AUTO
        reasons += [reason, _processes_reason(service, share)]
    loader_parts = chunks(share.loader_cores, len(parts))
    for local_rank, (cores, loader_cores) in enumerate(zip(parts, loader_parts, strict=True)):
        cpus = _bind(cores, share, facts, binding)
        gpus = share.gpus[local_rank * per_rank : (local_rank + 1) * per_rank]
        rank_quota = None if quota is None else max(1, quota // count)
        threads, workers, budget = _divide(
            service, train, cores, loader_cores, len(gpus), smt, rank_quota, reasons, warnings
        )
        loader_cpus = CpuSet.union(core.cpus for core in loader_cores)
        ranks.append(Rank(local_rank, cpus, facts.node_of(cpus), threads, workers, gpus, budget, loader_cpus))
    if train and count > 1:
        crossing = [rank.local_rank for rank in ranks if len(rank.numa_nodes) > 1]
        how = f"crossing NUMA nodes: rank {CpuSet(crossing)}" if crossing else "none crosses a NUMA node"
        used = sum(map(len, parts))
        unused = f", {len(share.cores) - used} left out so that ranks are alike" if used < len(share.cores) else ""
        reasons.insert(0, Reason("Ranks", str(count), f"{used} cores split evenly{unused}; {how}"))
    if train and train.ranks == "numa" and count < len(facts.node_of(share.cpus)):
        of = f"{count} of its {len(facts.node_of(share.cpus))} NUMA nodes"
        few = share.gpus and count >= len(share.gpus) // train.gpus_per_rank
        why = f"{of}, as it has no more accelerators" if few else f"equal parts of {of} are faster than of all"
        reasons.insert(0, Reason("Ranks", "numa", why))
    if train and (count > 1 or binding is not Binding.AUTO):
        reasons.append(_binding_reason(binding, ranks))
    return tuple(ranks), tuple(dict.fromkeys(reasons)), tuple(dict.fromkeys(warnings))


def _processes_reason(service: Service, share: Share) -> Reason:
    """Says how many processes each place has, as far as that is known before they run."""
    infer = service.infer()
    if infer and infer.processes:
        return Reason("Processes", str(infer.processes), "on each place")
    if share.gpus or not share.own:
        why = "has an accelerator" if share.gpus else "others use too"
        return Reason("Processes", "1", f"on each place, which {why}")
    return Reason("Processes", "auto", "on each place its first process measures at each start how many are best there")


def _split(service: Service, train: TrainSettings, share: Share) -> list[list[Core]]:
    """Splits a training service's cores between its ranks. Raises PlacementError where that cannot be."""
    if train.ranks == "numa":
        most = max(1, len(share.gpus) // train.gpus_per_rank) if share.gpus else len(share.cores)
        parts = by_node(share.cores) if service.names_cpus else split_nodes(share.cores, most)
        count = len(parts)
    elif train.ranks == "gpu":
        parts, count = [], len(share.gpus) // train.gpus_per_rank
        if count == 0:
            why = f"it has {len(share.gpus)} accelerators here and GPUsPerRank={train.gpus_per_rank}"
            raise service.refuse("Ranks", "gpu", f"{why}; for hosts without GPUs use a file with [Match] GPUs=")
    else:
        parts, count = [], train.ranks
    if count > len(share.cores):
        why = f"it has {len(share.cores)} cores ({share.cpus}), and each of {count} ranks needs one at least"
        raise service.lacks("Ranks", train.ranks, why)
    if count > 1 and share.gpus and count * train.gpus_per_rank > len(share.gpus):
        why = f"with GPUsPerRank={train.gpus_per_rank} that is more than its {len(share.gpus)} accelerators"
        raise service.refuse("Ranks", count, f"{why}; GPUs=none trains on CPUs")
    return _split_by_gpus(share, count, train.gpus_per_rank) or parts or split_cores(share.cores, count)


def _split_by_gpus(share: Share, count: int, per_rank: int) -> list[list[Core]] | None:
    """Splits the cores by the GPUs near them: the ranks of a node share its cores, and none has more than one core more
    than another; None where that cannot be."""
    if count == 1 or len(share.gpus) < count * per_rank:
        return None
    nodes = [share.gpus[rank * per_rank].numa_node for rank in range(count)]
    on_node: dict[int | None, list[Core]] = {}
    for core in share.cores:
        on_node.setdefault(core.numa_node, []).append(core)
    if any(node is None or len(on_node.get(node, ())) < nodes.count(node) for node in nodes):
        return None
    most = min(len(on_node[node]) // nodes.count(node) for node in set(nodes)) + 1
    parts = {node: iter(chunks(on_node[node][: most * nodes.count(node)], nodes.count(node))) for node in set(nodes)}
    return [next(parts[node]) for node in nodes]


def _bind(cores: Sequence[Core], share: Share, facts: HostFacts, binding: Binding) -> CpuSet:
    cpus = CpuSet.union(core.cpus for core in cores)
    if binding is Binding.NONE:
        return share.cpus
    places: tuple[CpuSet, ...] = ()
    if binding is Binding.NODE:
        places = tuple(node.cpus for node in facts.numa_nodes)
    elif binding is Binding.SOCKET:
        places = tuple(package.cpus for package in facts.packages or ())
    elif binding is Binding.CORE_COMPLEX:
        places = facts.l3_groups or ()
    around = CpuSet.union(place for place in places if not place.isdisjoint(cpus))
    return (around & share.cpus) | cpus


_BOUND_TO = {
    Binding.AUTO: "exclusive: each rank has a share of its own",
    Binding.NODE: "each rank has all of the service's CPUs on the NUMA node of its share",
    Binding.SOCKET: "each rank has all of the service's CPUs in the package of its share",
    Binding.EXCLUSIVE: "each rank has a share of its own",
    Binding.CORE_COMPLEX: "each rank has all of the service's CPUs in the L3 group of its share",
    Binding.NONE: "no rank is bound; each has all of the service's CPUs",
}


def _binding_reason(binding: Binding, ranks: Sequence[Rank]) -> Reason:
    """Says what the ranks are bound to, and which of them have CPUs in common."""
    shared = CpuSet(a.local_rank for a in ranks for b in ranks if a is not b and not a.cpus.isdisjoint(b.cpus))
    beside = (
        f"; ranks {shared} share CPUs with each other, and each keeps to its own number of threads" if shared else ""
    )
    bound = "; ".join(dict.fromkeys(str(rank.cpus) for rank in ranks))
    return Reason("Binding", binding.value, f"{_BOUND_TO[binding]}: CPUs {bound}{beside}")


def _divide(  # noqa: PLR0913 - each is a number of the rank
    service: Service,
    train: TrainSettings | None,
    cores: Sequence[Core],
    loader_cores: Sequence[Core],
    gpus: int,
    smt: bool,
    quota: int | None,
    reasons: list[Reason],
    warnings: list[str],
) -> tuple[int, int, int]:
    """Divides one rank's cores: compute threads, loader workers, and the most that both may be together."""
    cpu_count = sum(len(core.cpus) for core in cores)
    budget, of_what = (cpu_count, "CPUs") if smt or gpus else (len(cores), "cores")
    if quota is not None and quota < budget:
        budget, of_what = quota, "CPUs of the CPU quota"
    # A quota counts the time on every core.
    slots = len(loader_cores) if quota is None else min(len(loader_cores), max(0, quota - budget))
    stated = _stated_threads(service)
    threads, asked = stated or service.settings.threads, train.loader_workers if train else None
    workers = asked if isinstance(asked, int) else 0
    if threads is None:
        threads = _auto_threads(budget, gpus > 0, max(0, workers - slots))
        why = f"{threads} of the rank's {budget} {of_what}"
    elif stated:
        why = "OMP_NUM_THREADS in Environment= says so, and wins over Threads="
    else:
        why = "as asked for"
    if stated and threads > budget:
        warnings.append(
            f"{service.origin('Environment')}: {service.section} OMP_NUM_THREADS={threads}: more than its {budget} "
            f"{of_what}; what Environment= sets is left alone, and the service will be slow"
        )
    elif threads > budget:
        warnings.append(
            f"{service.origin('Threads')}: {service.section} Threads={threads}: reduced to its {budget} {of_what}"
        )
        threads, why = budget, f"asked for more than the rank's {budget} {of_what}"
    reasons.append(Reason("Threads", str(threads), why))
    budget = max(budget, threads)
    if train is None:
        return threads, 0, budget
    left = budget - threads
    if asked is None:
        why = "the calls in the script decide; what it waits for is measured, see torchpar status"
    elif asked == "off":
        why = "DataLoader calls are left alone"
    elif workers > left + slots:
        on_slots = f", and there are {slots} slower cores for them" if slots else ""
        warnings.append(
            f"{service.origin('LoaderWorkers')}: {service.section} LoaderWorkers={workers}: reduced to "
            f"{left + slots}: its threads take {threads} of {budget} {of_what}{on_slots}"
        )
        workers, why = left + slots, "asked for more than the threads leave" + on_slots
    else:
        why = "as asked for"
    reasons.append(Reason("LoaderWorkers", str(workers) if isinstance(asked, int) else asked or "auto", why))
    return threads, workers, budget + slots


def _stated_threads(service: Service) -> int | None:
    """Reads the threads of OMP_NUM_THREADS in Environment=: a number, or a list of which torch uses the first."""
    text = (service.variable("OMP_NUM_THREADS") or "").partition(",")[0].strip()
    return (int(text) or None) if text.isascii() and text.isdigit() and len(text) < 6 else None


def _auto_threads(budget: int, with_gpus: bool, workers: int) -> int:
    """Counts compute threads when the conf leaves them open, beside `workers` loader workers."""
    if with_gpus:
        return max(1, min(GPU_RANK_THREADS, budget // 2))
    return max(1, budget - workers)

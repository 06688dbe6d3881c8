"""Jobs of several hosts: the part that each host has, and whether the parts fit together."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torchpar.conf.endpoint import whole_endpoint
from torchpar.contract.errors import printable
from torchpar.facts.topology import PciDevice
from torchpar.fleet.names import say_hosts, sort_versions
from torchpar.plan.export import Export
from torchpar.plan.plan import ServicePlan

# PCI classes of network controllers, by the first digits of `class` in sysfs.
_KINDS = {"0x0207": "InfiniBand", "0x0200": "Ethernet"}
_VIRTUAL = "no device's own"  # a bridge, a bond, a VLAN


@dataclass(frozen=True)
class Part:
    """The part of a job of several hosts that one host has.

    `endpoint` is HOST:PORT. `interface` is what Interface= names, "" where it is chosen at the start, and
    `interface_kind` what that is, None where the host has none of that name. `torch` and `torchpar` are versions, None
    where nothing is known of them.
    """

    service: str
    endpoint: str
    nodes: tuple[int, int]
    ranks: int
    accelerators: bool
    torch: str | None
    torchpar: str | None
    interface: str
    interface_kind: str | None
    slot: str


@dataclass(frozen=True)
class Member:
    """A host as its jobs see it: its name and addresses, the parts that it has, and the ports that its inference
    services listen on, by service."""

    name: str
    addresses: frozenset[str]
    parts: tuple[Part, ...]
    ports: Mapping[int, str]

    def is_called(self, host: str) -> bool:
        """Says whether a name or an address is this host's. Where only one of two names has a domain, it is no
        difference."""
        if _is_address(host):
            return host in self.addresses
        name, other = self.name.lower(), host.lower()
        if "." in name and "." in other:
            return name == other
        return name.partition(".")[0] == other.partition(".")[0]


@dataclass(frozen=True)
class Fit:
    """The result for the parts of one job: what is wrong with them, or a sentence that says how they fit."""

    service: str
    hosts: tuple[str, ...]
    problems: tuple[str, ...]
    sentence: str


def make_parts(services: Sequence[ServicePlan], export: Export) -> tuple[Part, ...]:
    """Makes the parts that a host has of jobs of several hosts."""
    return tuple(_parts(services, export))


def _parts(services: Sequence[ServicePlan], export: Export) -> Iterator[Part]:
    for plan in services:
        train = plan.service.train()
        if train is None or train.nodes[1] == 1 or not train.endpoint:
            continue
        interface = train.interface or ""
        yield Part(
            plan.service.title,
            whole_endpoint(train.endpoint, plan.service.name),
            train.nodes,
            len(plan.ranks),
            bool(plan.gpus),
            export.versions.torch.get(train.python),
            export.versions.packages.get("torchpar"),
            interface,
            _kind_of(interface, export) if interface else None,
            train.slot or "",
        )


def _kind_of(interface: str, export: Export) -> str | None:
    device: PciDevice | None = next((nic for nic in export.facts.nics if interface in nic.netdevs), None)
    if device is None:
        return _VIRTUAL if interface in export.addresses else None
    kind = _KINDS.get((device.class_code or "")[:6], device.class_code or "unknown")
    return "RoCE" if kind == "Ethernet" and device.infiniband else kind


def fit_jobs(members: Sequence[Member]) -> tuple[Fit, ...]:
    """Compares the parts of every job of several hosts, by the job's name."""
    by_job: dict[str, list[tuple[Member, Part]]] = defaultdict(list)
    for member in members:
        for part in member.parts:
            by_job[part.service].append((member, part))
    meeting = _meeting(by_job, members)
    return tuple(_fit(job, by_job[job], meeting) for job in sorted(by_job))


def _fit(job: str, parts: Sequence[tuple[Member, Part]], meeting: Mapping[tuple[str, int], Sequence[str]]) -> Fit:
    hosts = tuple(member.name for member, _ in parts)
    first = parts[0][1]
    problems = [*_count(parts), *_alike(parts), *_interfaces(parts), *_endpoint(job, parts, meeting)]
    sentence = (
        f"{len(parts)} hosts fit: {say_hosts(hosts)}; they meet at {first.endpoint}, torch {first.torch}, "
        f"{first.ranks} rank{'s' * (first.ranks != 1)} each"
    )
    return Fit(job, hosts, tuple(problems), sentence)


def _count(parts: Sequence[tuple[Member, Part]]) -> Iterator[str]:
    least, most = parts[0][1].nodes
    count, hosts = len(parts), say_hosts([member.name for member, _ in parts])
    wanted = _say_nodes(parts[0][1])
    if count < least:
        yield f"Nodes={wanted}, and {count} of these hosts have it: {hosts}; it would wait for the others"
    elif count > most:
        yield f"Nodes={wanted}, and {count} hosts have it: {hosts}; [Match] Host= of its file can name those that do"


def _say_nodes(part: Part) -> str:
    least, most = part.nodes
    return str(most) if least == most else f"{least}:{most}"


def _alike(parts: Sequence[tuple[Member, Part]]) -> Iterator[str]:
    """Yields what differs between hosts and may not."""
    questions = {
        "Nodes=": [_say_nodes(part) for _, part in parts],
        "Endpoint=": [part.endpoint for _, part in parts],
        "the number of ranks": [str(part.ranks) for _, part in parts],
        "what they compute on": ["accelerators" if part.accelerators else "CPUs" for _, part in parts],
        "the version of torch": [part.torch or "unknown" for _, part in parts],
        "the version of torchpar": [part.torchpar or "unknown" for _, part in parts],
    }
    for what, values in questions.items():
        if len(set(values)) > 1:
            yield f"{what} differs between its hosts: {_groups(parts, values)}"
    if all(part.torch is None for _, part in parts):
        yield "no torch is known of its interpreter on any of its hosts; export the facts with this conf on them"


def _groups(parts: Sequence[tuple[Member, Part]], values: Sequence[str]) -> str:
    by_value: dict[str, list[str]] = defaultdict(list)
    for (member, _), value in zip(parts, values, strict=True):
        by_value[value].append(member.name)
    return "; ".join(f"{printable(value, 60)} on {say_hosts(by_value[value])}" for value in sort_versions(by_value))


def _interfaces(parts: Sequence[tuple[Member, Part]]) -> Iterator[str]:
    missing = [member.name for member, part in parts if part.interface and part.interface_kind is None]
    if missing:
        yield f"Interface={parts[0][1].interface}: is not there on {say_hosts(missing)}"
    kinds = [part.interface_kind or "not there" for _, part in parts]
    if not missing and len(set(kinds)) > 1:
        yield f"Interface= is of other kinds on its hosts: {_groups(parts, kinds)}"


def _endpoint(
    job: str, parts: Sequence[tuple[Member, Part]], meeting: Mapping[tuple[str, int], Sequence[str]]
) -> Iterator[str]:
    endpoint = parts[0][1].endpoint
    host, port = split_endpoint(endpoint)
    there = [member for member, _ in parts if member.is_called(host)]
    if not there:
        yield f"Endpoint={endpoint}: {printable(host, 60)} is none of its hosts, by name or address"
    elif len(there) > 1:
        yield f"Endpoint={endpoint}: {say_hosts([member.name for member in there])} are all called that"
    for member in there[:1]:
        others = [other for other in meeting[member.name, port] if other != job]
        if others:
            yield f"Endpoint={endpoint}: {', '.join(others)} meets on that port of {member.name} too"
        if port in member.ports:
            yield f"Endpoint={endpoint}: {member.ports[port]} listens on that port of {member.name}"


def _meeting(
    by_job: Mapping[str, Sequence[tuple[Member, Part]]], members: Sequence[Member]
) -> dict[tuple[str, int], list[str]]:
    """Finds the jobs that meet on each port of a host. Those of one slot take turns there."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    slots: dict[tuple[str, int, str], str] = {}
    for job in sorted(by_job):
        part = by_job[job][0][1]
        host, port = split_endpoint(part.endpoint)
        for member in (member for member in members if member.is_called(host)):
            turn = (member.name, port, part.slot)
            if not part.slot or slots.setdefault(turn, job) == job:
                found[member.name, port].append(job)
    return found


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Returns host and port of HOST:PORT; a literal address is written as `torchpar facts` has it.

    >>> split_endpoint("[2001:DB8::1]:29500"), split_endpoint("gpu1:29500")
    (('2001:db8::1', 29500), ('gpu1', 29500))
    """
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    return str(ipaddress.ip_address(host)) if _is_address(host) else host, int(port)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

"""Checks the network of jobs on several hosts, their clocks, and the addresses of inference services."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterable, Iterator

from torchpar.conf.endpoint import whole_endpoint
from torchpar.conf.settings import TrainSettings
from torchpar.doctor.check import Condition, check
from torchpar.doctor.conditions import INFERENCE, RDMA, SEVERAL_HOSTS
from torchpar.doctor.finding import Finding, fail, unknown, warn
from torchpar.doctor.host import Host, Service

_NET = "sys/class/net"
_UP = 0x1  # IFF_UP of linux/if.h
_LISTENS = "0A"  # TCP_LISTEN of net/tcp_states.h
_CLOCKS = ("systemd-timesyncd.service", "chrony.service", "ntpsec.service", "ntp.service", "openntpd.service")


def _several(host: Host) -> Iterator[tuple[Service, TrainSettings]]:
    """Yields the jobs of several hosts."""
    for service in host.services:
        train = service.declared.train() if service.declared else None
        if train and train.nodes[1] > 1:
            yield service, train


def _names_interface(host: Host) -> bool:
    return any(train.interface for _, train in _several(host))


_NAMED = Condition("a job of several hosts has Interface=", _names_interface, of_services=True)


@check(
    "time.sync",
    passed="the clock is synchronised",
    where=SEVERAL_HOSTS,
    source="torch.distributed.elastic, dynamic_rendezvous.py: hosts compare their clocks, and 15 s part them",
)
def clock(host: Host) -> Iterator[Finding]:
    """Finds a clock that nothing keeps right: a host whose clock is off is taken for lost."""
    synchronised = host.doors.clock_is_synchronised()
    if synchronised is None:
        yield unknown("the kernel does not say whether the clock is synchronised", "see: timedatectl")
    elif not synchronised:
        active = next((unit for unit in _CLOCKS if host.is_active(unit)), None)
        if active:
            yield warn(
                f"the clock is not synchronised, though {active} runs; hosts whose clocks differ lose each other",
                "adjtimex(2): STA_UNSYNC",
                f"see: systemctl status {active}; timedatectl",
            )
        else:
            yield warn(
                "nothing synchronises the clock; hosts whose clocks differ lose each other",
                "adjtimex(2): STA_UNSYNC",
                "set up the one that your hosts use, such as chrony; or apt-get install systemd-timesyncd, then:"
                " timedatectl set-ntp true",
            )


@check(
    "net.endpoint",
    passed="the endpoint of each job leads to where all hosts can meet",
    where=SEVERAL_HOSTS,
    source="torchrun's rendezvous; mlc-ai/pith-train#91: with localhost each host trains alone",
)
def endpoint(host: Host) -> Iterator[Finding]:
    """Finds an endpoint that does not resolve, or only to this host's loopback interface."""
    for service, train in _several(host):
        name = _meeting_host(train)
        addresses = host.doors.resolve(name) if name else ()
        if addresses is None:
            yield unknown(f"the resolver does not say in time where {name} is", f"see: getent hosts {name}")
        elif not addresses:
            yield fail(
                f"the endpoint of {service.title} does not resolve",
                f"getent hosts {name}: nothing",
                f"write its address into /etc/hosts of all hosts, or as Endpoint= into {service.section}",
            )
        elif all(_is_loopback(address) for address in addresses) and not _is_here(host, train):
            yield fail(
                f"the endpoint of {service.title} is this host's loopback address, where no other host can be",
                f"getent hosts {name}: {' '.join(addresses)}",
                f"write an address that all hosts reach as Endpoint= into {service.section}",
            )


@check(
    "net.hosts",
    passed="the address of this host for the others is known",
    where=SEVERAL_HOSTS,
    source="Debian's installer writes 127.0.1.1 into /etc/hosts; meta-pytorch/monarch#4394, tried with gloo",
)
def own_name(host: Host) -> Iterator[Finding]:
    """Finds this host's name on 127.0.1.1 for a job whose endpoint it is, where there are several interfaces.

    torchpar tells the other hosts the address of an interface; it cannot know which of several they reach.
    """
    name = host.facts.hostname.partition(".")[0]
    addresses = [words[0] for words in _own_lines(host)]
    up = [each for each in host.tree.names(_NET) if each != "lo" and _is_up(host, each)]
    if len(up) < 2 or not addresses or not all(_is_loopback(address) for address in addresses):
        return
    for service, train in _several(host):
        if not train.interface and _is_here(host, train):
            yield fail(
                f"{service.title} cannot start: its endpoint {name} is {addresses[0]} on this host, and which of its"
                " interfaces the others reach is not said",
                f"/etc/hosts: {addresses[0]} {name}; interfaces: {' '.join(up)}",
                f"replace {addresses[0]} by this host's address in /etc/hosts, or name Interface= in {service.section}",
            )


@check(
    "net.interface",
    passed="the interfaces that jobs name are there and up",
    where=_NAMED,
    source="aws-samples/aws-do-eks#51: gloo ends where the interface is not there",
)
def interface(host: Host) -> Iterator[Finding]:
    """Finds an Interface= that is not there, or down."""
    for service, train in _several(host):
        name = train.interface
        if not name:
            continue
        flags = host.tree.text(f"{_NET}/{name}/flags")
        if flags is None:
            known = " ".join(host.tree.names(_NET))
            yield fail(
                f"{service.title} is to use the interface {name}, which this host does not have",
                f"interfaces: {known}",
                f"write one of them as Interface= into {service.section}, then: torchpar apply",
            )
        elif not _is_up(host, name):
            yield fail(
                f"the interface {name} of {service.title} is down",
                f"/{_NET}/{name}/flags: {flags}",
                "",
                f"ip link set {name} up",
            )


@check(
    "net.route",
    passed="this host reaches the endpoint of each job by the interface that the job names",
    where=_NAMED,
    source="route(8), skypilot-org/skypilot#8276: ranks meet over one interface and look for each other on another",
)
def route(host: Host) -> Iterator[Finding]:
    """Finds an endpoint to which the kernel's routes take another interface than Interface=. IPv4 alone."""
    routes = list(_routes(host))
    for service, train in _several(host):
        if not train.interface or not routes or _is_here(host, train):
            continue
        for address in host.doors.resolve(_meeting_host(train)) or ():
            taken = _interface_to(routes, address)
            if taken and taken not in (train.interface, "lo"):
                yield warn(
                    f"{service.title} is to use {train.interface}, and this host reaches its endpoint by {taken}",
                    f"ip route get {address}: dev {taken}",
                    f"write an Endpoint= of the network of {train.interface}, or Interface={taken}, into"
                    f" {service.section}; then: torchpar apply",
                )
                break


@check(
    "net.speed",
    passed="the interfaces that jobs name are as fast as any on this host",
    where=_NAMED,
    source="Documentation/ABI/testing/sysfs-class-net: speed; deepops: a cable that fell back to a lower speed",
)
def speed(host: Host) -> Iterator[Finding]:
    """Finds an Interface= that is slower than another network card with a link."""
    speeds = {
        name: int(text)
        for name in host.tree.names(_NET)
        if host.tree.exists(f"{_NET}/{name}/device")
        and host.tree.text(f"{_NET}/{name}/operstate") == "up"
        and (text := host.tree.text(f"{_NET}/{name}/speed") or "").isdecimal()
    }
    for service, train in _several(host):
        mine = speeds.get(train.interface or "")
        if mine is not None and mine < max(speeds.values()):
            best = max(speeds, key=lambda name: speeds[name])
            yield warn(
                f"{service.title} uses {train.interface} at {mine} Mbit/s, and {best} has {speeds[best]}",
                f"/{_NET}/{train.interface}/speed: {mine}",
                f"write Interface={best} into {service.section} on all hosts; see the cable: ethtool {train.interface}",
            )


@check(
    "net.port",
    passed="the ports where jobs of several hosts meet are free, or theirs",
    where=SEVERAL_HOSTS,
    source="pytorch/elastic#151, pytorch/pytorch#147064; tried: a leftover agent takes hosts into its own job",
)
def port(host: Host) -> Iterator[Finding]:
    """Finds the port of an endpoint on this host taken while its job does not run."""
    taken = _listening(host)
    for service, train in _several(host):
        number = whole_endpoint(train.endpoint or "", service.title.partition("@")[2]).rpartition(":")[2]
        if _is_here(host, train) and number.isdecimal() and int(number) in taken and not service.runs:
            yield fail(
                f"port {number}, where {service.title} meets, is taken on this host",
                f"/proc/net/tcp: something listens on port {number}",
                f"see what it is, and stop it: ss -ltnp sport = :{number}; or name another port by Endpoint=",
            )


@check(
    "infer.port",
    passed="the addresses of inference services are free, or theirs",
    where=INFERENCE,
    source="systemd.socket(5): a socket whose address is taken fails, and so does its service",
)
def infer_port(host: Host) -> Iterator[Finding]:
    """Finds a port of an inference service taken while neither it nor its socket is active."""
    taken = _listening(host)
    # Two services may have one address, and take turns.
    ours = {
        address.rpartition(":")[2]
        for each in host.services
        if each.record and (each.runs or host.is_active(f"{each.unit.removesuffix('.service')}.socket"))
        for address in each.record.listen
    }
    for service in host.services:
        socket = f"{service.unit.removesuffix('.service')}.socket"
        state = host.other_units.get(socket, {}).get("ActiveState")
        if service.trains or service.runs or not service.record or state not in ("inactive", "failed"):
            continue
        for address in service.record.listen:
            number = address.rpartition(":")[2]
            if number.isdecimal() and int(number) in taken and number not in ours:
                yield warn(
                    f"{service.title} cannot start: port {number} is taken",
                    f"/proc/net/tcp: something listens on port {number}",
                    f"see who has it: ss -ltnp sport = :{number}; stop that, or give {service.section} another Listen=",
                )


@check(
    "net.nccl_ib",
    passed="NCCL may use the RDMA devices",
    where=RDMA,
    source="NCCL's documentation: NCCL_IB_DISABLE, /etc/nccl.conf",
)
def nccl_ib(host: Host) -> Iterator[Finding]:
    """Finds NCCL told to leave RDMA alone, on the host or in a service, where there is such a device."""
    for line in (host.tree.text("etc/nccl.conf") or "").splitlines():
        if line.replace(" ", "") == "NCCL_IB_DISABLE=1":
            yield warn(
                "NCCL is told to use TCP in place of the RDMA device",
                "/etc/nccl.conf: NCCL_IB_DISABLE=1",
                "remove the line from /etc/nccl.conf",
            )
    for service in host.services:
        if service.environment.get("NCCL_IB_DISABLE") == "1":
            yield warn(
                f"{service.title} tells NCCL to use TCP in place of the RDMA device",
                "NCCL_IB_DISABLE=1 in its environment",
                f"take it out of Environment= in {service.section}, then: torchpar apply",
            )


def _meeting_host(train: TrainSettings) -> str:
    endpoint = train.endpoint or ""
    return endpoint.rpartition("]")[0].strip("[") or endpoint.partition(":")[0]


def _is_here(host: Host, train: TrainSettings) -> bool:
    """Says whether the endpoint of a job is this host by a name that the job takes for its own when it starts.

    That is, beside the host's own, the first on its line of /etc/hosts: with the domain, as Debian's installer does it.
    """
    names = {*_short_and_whole(host), *(words[1] for words in _own_lines(host))}
    return _meeting_host(train) in {name for name in names if not name.startswith("localhost")}


def _short_and_whole(host: Host) -> set[str]:
    return {host.facts.hostname, host.facts.hostname.partition(".")[0]}


def _own_lines(host: Host) -> Iterator[list[str]]:
    """Yields the lines of /etc/hosts with this host's name, each as its address and its names."""
    for line in (host.tree.text("etc/hosts") or "").splitlines():
        words = line.partition("#")[0].split()
        if not _short_and_whole(host).isdisjoint(words[1:]):
            yield words


def _routes(host: Host) -> Iterator[tuple[ipaddress.IPv4Network, int, str]]:
    """Reads the routes that are up (RTF_UP), each with its metric and interface; route(8) explains /proc/net/route."""
    for line in (host.tree.text("proc/net/route") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and int(fields[3], 16) & 1:
            # The kernel prints what stands in memory in the order of the network as if it were a number of its own.
            to, mask = (int.from_bytes(int(fields[at], 16).to_bytes(4, sys.byteorder), "big") for at in (1, 7))
            yield ipaddress.IPv4Network((to, mask.bit_count())), int(fields[6]), fields[0]


def _interface_to(routes: Iterable[tuple[ipaddress.IPv4Network, int, str]], address: str) -> str | None:
    """Returns the interface of the longest prefix that has an address, and of several the one of the least metric."""
    try:
        wanted = ipaddress.IPv4Address(address)
    except ValueError:
        return None
    fit = [(-network.prefixlen, metric, name) for network, metric, name in routes if wanted in network]
    return min(fit)[2] if fit else None


def _is_up(host: Host, interface: str) -> bool:
    flags = host.tree.text(f"{_NET}/{interface}/flags") or ""
    return bool(re.fullmatch(r"0x[0-9a-f]{1,8}", flags)) and bool(int(flags, 16) & _UP)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _listening(host: Host) -> set[int]:
    """Reads the TCP ports that something listens on; proc_net_tcp.rst in the kernel's documentation."""
    ports = set()
    for path in ("proc/net/tcp", "proc/net/tcp6"):
        for line in (host.tree.text(path) or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTENS:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports

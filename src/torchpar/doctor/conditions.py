"""The conditions under which checks mean anything, in words and as questions."""

from __future__ import annotations

from torchpar.doctor.check import Condition
from torchpar.doctor.host import Host

DEBIANS_TORCH = "usr/lib/python3/dist-packages/torch"


def _with_infiniband(host: Host) -> bool:
    return any(host.tree.names("sys/class/infiniband"))


ALWAYS = Condition("there is a host", lambda host: True)
SERVICES = Condition("a service is declared or in force", lambda host: bool(host.services), of_services=True)
LIVE = Condition("it is this host that is looked at", lambda host: host.live)
TRAINING = Condition(
    "a training service is declared", lambda host: any(each.trains for each in host.services), of_services=True
)
TRAINING_HERE = Condition(
    "a training service is declared on this host", lambda host: host.live and TRAINING.holds(host), of_services=True
)
RUNNING = Condition("a service runs", lambda host: any(each.runs for each in host.services), of_services=True)
# A job's libraries and memory, which only root and its own user may look into.
VISIBLE = Condition(
    "a service runs whose processes can be read",
    lambda host: any(
        each.running and all(process.allocator is not None for process in each.running.processes)
        for each in host.services
    ),
    of_services=True,
)
SEVERAL_HOSTS = Condition(
    "this host has a job of several hosts",
    lambda host: host.live and any(each.hosts > 1 for each in host.services),
    of_services=True,
)
SEVERAL_NODES = Condition(
    "there are several NUMA nodes with CPUs", lambda host: sum(bool(node.cpus) for node in host.facts.numa_nodes) > 1
)
IN_FORCE = Condition(
    "a generation is in force", lambda host: any(each.record for each in host.services), of_services=True
)
SYSTEMD = Condition(
    "systemd answers and a service is declared", lambda host: host.has_systemd and bool(host.services), of_services=True
)
NODE_EXPORTER = Condition(
    "node_exporter reads text files on this host, and Metrics=textfile",
    lambda host: (
        host.has_systemd
        and host.tree.exists("var/lib/prometheus/node-exporter")
        and (host.config is None or host.config.host.metrics == "textfile")
    ),
)
BOUND = Condition(
    "a service is bound to the memory of some of several NUMA nodes",
    lambda host: SEVERAL_NODES.holds(host) and any(each.memory_policy == "bind" for each in host.services),
)
LIMITED_TORCH = Condition("Debian's python3-torch is installed", lambda host: host.tree.exists(DEBIANS_TORCH))
RDMA = Condition(
    "this host has an RDMA device and a job of several hosts",
    lambda host: SEVERAL_HOSTS.holds(host) and _with_infiniband(host),
)
GPUS_IN_FORCE = Condition(
    "a service has accelerators", lambda host: any(each.record and each.record.gpus for each in host.services)
)
NVIDIA = Condition(
    "a service has accelerators and NVIDIA's driver has a GPU of this host",
    lambda host: (
        host.live
        and GPUS_IN_FORCE.holds(host)
        and any(gpu.vendor == "0x10de" and gpu.driver == "nvidia" for gpu in host.facts.gpus)
    ),
)
LOGIN_USERS = Condition(
    "a service has User=",
    lambda host: any(each.declared and not each.declared.own_user for each in host.services),
    of_services=True,
)
INFERENCE = Condition(
    "systemd answers and there is an inference service",
    lambda host: host.has_systemd and any(not each.trains for each in host.services),
    of_services=True,
)
CPU_FREQUENCY = Condition(
    "the kernel sets the frequency of CPUs", lambda host: host.tree.exists("sys/devices/system/cpu/cpu0/cpufreq")
)
THERMAL = Condition(
    "the kernel counts how long heat has held processors back",
    lambda host: any(
        host.tree.exists(f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_total_time_ms")
        for cpu in host.facts.online_cpus
    ),
)

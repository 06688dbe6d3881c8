"""Checks variables that the conf sets for services by Environment=, and that do harm or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchpar.doctor.check import check
from torchpar.doctor.conditions import GPUS_IN_FORCE, SERVICES, TRAINING
from torchpar.doctor.finding import Finding, fail, note, warn
from torchpar.doctor.host import Host, Service

_APPLY = "then: torchpar apply, and restart it"


def _having(host: Host, name: str) -> Iterator[tuple[Service, str]]:
    """Yields the services that have a variable, with its value."""
    for service in host.services:
        value = service.environment.get(name)
        if value is not None:
            yield service, value


@check(
    "env.bind",
    passed="no OpenMP runtime is told to bind threads one by one",
    where=TRAINING,
    source="pytorch/pytorch#101850, #91989, #99625: forked loader workers inherit the one CPU of the main thread",
)
def bind(host: Host) -> Iterator[Finding]:
    """Finds variables that bind OpenMP's threads in a training service."""
    for name in ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"):
        for service, value in _having(host, name):
            if service.trains and value.lower() not in ("false", "none", "disabled", ""):
                yield warn(
                    f"{name} binds the main thread of {service.title} to one CPU, and all loader workers with it",
                    f"{name}={value}",
                    f"take {name} out of Environment= in {service.section}: its CPUs are set by systemd; {_APPLY}",
                )


@check(
    "aff.double",
    passed="no job binds its ranks by torchrun too",
    where=TRAINING,
    source="torch.numa.binding: torchrun starts each rank by numactl, which fails on CPUs that are not the unit's",
)
def double(host: Host) -> Iterator[Finding]:
    """Finds a job that is a torchrun of its own with --numa-binding."""
    for service in host.services:
        train = service.declared.train() if service.declared else None
        arguments = train.arguments if train else ()
        flags = [each for each in arguments if each.replace("_", "-").startswith("--numa-binding")]
        if train and train.module in ("torch.distributed.run", "torch.distributed.launch") and flags:
            yield warn(
                f"{service.title} binds its ranks by torchrun, beside the CPUs that systemd gives it",
                f"Arguments={flags[0]}",
                f"take it out of Arguments= in {service.section}; better name the script itself, as Script=, and"
                f" Ranks=: torchpar starts torchrun and binds each rank; {_APPLY}",
            )


@check(
    "env.threads",
    passed="no variable gives a service more threads than it has CPUs",
    where=SERVICES,
    source="pytorch/pytorch#125547; OpenBLAS, MKL and numexpr each have a variable of their own",
)
def threads(host: Host) -> Iterator[Finding]:
    """Finds thread counts of other libraries above the CPUs of the service."""
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS"):
        for service, value in _having(host, name):
            if value.isdecimal() and len(value) < 6 and service.cpus and int(value) > len(service.cpus):
                yield warn(
                    f"{name} gives {service.title} {value} threads on {len(service.cpus)} CPUs",
                    f"{name}={value}, CPUs {service.cpus}",
                    f"take {name} out of Environment= in {service.section}; {_APPLY}",
                )


@check(
    "env.nccl_affinity",
    passed="NCCL keeps its threads on the CPUs of the service",
    where=GPUS_IN_FORCE,
    source="NVIDIA/nccl#1017, ROCm/rccl#1948",
)
def nccl_affinity(host: Host) -> Iterator[Finding]:
    """Finds NCCL told to leave the CPUs that it was started on."""
    for service, value in _having(host, "NCCL_IGNORE_CPU_AFFINITY"):
        if value == "1":
            yield warn(
                f"NCCL's threads in {service.title} leave the CPUs that were planned for it",
                "NCCL_IGNORE_CPU_AFFINITY=1",
                f"take it out of Environment= in {service.section}; {_APPLY}",
            )


@check(
    "cfg.nccl_conf",
    passed="/etc/nccl.conf takes nothing from what is planned",
    where=GPUS_IN_FORCE,
    source="NCCL's documentation: /etc/nccl.conf holds for what no variable says; NVIDIA/nccl#1017",
)
def nccl_conf(host: Host) -> Iterator[Finding]:
    """Finds the settings of NCCL's own file that take its threads off the planned CPUs, or jobs off RDMA."""
    lines = (line.partition("#")[0].strip() for line in (host.tree.text("etc/nccl.conf") or "").splitlines())
    settings = dict(line.partition("=")[::2] for line in lines)
    harms = {"NCCL_IGNORE_CPU_AFFINITY": "leave the planned CPUs"}
    if host.tree.names("sys/class/infiniband"):
        harms["NCCL_IB_DISABLE"] = "use TCP in place of the RDMA device"
    for name, harm in harms.items():
        if settings.get(name) == "1" and any(name not in each.environment for each in host.services):
            yield warn(
                f"NCCL is told for all jobs of this host to {harm}",
                f"/etc/nccl.conf: {name}=1",
                "take it out of that file, and restart the jobs; for one job write it as Environment= into its section",
            )


@check(
    "env.gloo",
    passed="gloo is told whole names of interfaces",
    where=TRAINING,
    source="aws-samples/aws-do-eks#51: gloo ends at ^lo, which only NCCL takes",
)
def gloo(host: Host) -> Iterator[Finding]:
    """Finds NCCL's way to write interfaces in gloo's variable."""
    for service, value in _having(host, "GLOO_SOCKET_IFNAME"):
        if value.startswith(("^", "=")):
            yield fail(
                f"{service.title} fails when gloo looks for an interface of this name",
                f"GLOO_SOCKET_IFNAME={value}",
                f"take it out of Environment= in {service.section}, and name Interface= there; {_APPLY}",
            )


@check(
    "env.no_effect",
    passed="no variable is set that has no effect",
    where=SERVICES,
    source="torch.distributed.elastic starts no health check server; TORCH_NUM_THREADS is no variable of torch's",
)
def no_effect(host: Host) -> Iterator[Finding]:
    """Finds variables that look as if they did something."""
    for name in ("TORCHELASTIC_HEALTH_CHECK_PORT", "TORCH_NUM_THREADS", "PYTORCH_NUM_THREADS"):
        for service, value in _having(host, name):
            cure = f"take it out of {service.section}"
            yield note(f"{name} has no effect in {service.title}", f"{name}={value}", cure)


@check(
    "mem.jemalloc_conf",
    passed="what jemalloc is told can be parsed",
    where=SERVICES,
    source="jemalloc(3): a wrong option is named on stderr and passed over",
)
def jemalloc_conf(host: Host) -> Iterator[Finding]:
    """Finds MALLOC_CONF that is no list of option:value."""
    for service, value in _having(host, "MALLOC_CONF"):
        wrong = [part for part in value.split(",") if not re.fullmatch(r"[a-z_0-9]+:[^:\s]+", part)]
        if wrong and service.record and service.record.allocator == "jemalloc":
            yield warn(
                f"jemalloc passes over a part of its options in {service.title}",
                f"MALLOC_CONF={value}: {wrong[0]!r} is not option:value",
                f"write AllocatorConf=option:value,option:value into {service.section}; {_APPLY}",
            )


@check(
    "mem.preload",
    passed="the libraries that services preload are there",
    where=SERVICES,
    source="ld.so(8): a library of LD_PRELOAD that cannot be loaded is passed over; intel-extension-for-pytorch#279",
)
def preload(host: Host) -> Iterator[Finding]:
    """Finds LD_PRELOAD in force that names a missing library."""
    for service, value in _having(host, "LD_PRELOAD"):
        for path in value.replace(":", " ").split():
            if path.startswith("/") and not host.tree.exists(path.lstrip("/")):
                yield fail(
                    f"{service.title} starts without the malloc, or other library, that it was planned with",
                    f"LD_PRELOAD={path}: there is no such file",
                    f"install it again, or plan with what is there: torchpar apply; then restart {service.title}",
                )


@check(
    "mem.allocator",
    passed="there is a malloc that gives memory back in larger pieces than glibc's",
    where=SERVICES,
    source="measured: a steady training step faults in new pages with glibc's malloc, hardly any with the others",
)
def allocator(host: Host) -> Iterator[Finding]:
    """Finds a host on which neither tcmalloc nor jemalloc is installed."""
    wants = [each for each in host.services if each.declared and each.declared.settings.allocator.value == "auto"]
    if wants and not host.facts.libraries:
        yield warn(
            "services run with glibc's malloc, which gives memory back and takes it anew in each step",
            "neither libtcmalloc_minimal.so.4 nor libjemalloc.so.2 is in /usr/lib",
            "apt-get install libjemalloc2, then: torchpar apply, and restart them",
        )

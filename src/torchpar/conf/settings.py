"""The settings: one table of every key, as the fields of frozen dataclasses.

A field's metadata holds the key as the admin writes it, its parser, the default's text, what is allowed and a line of
help. The reader of the conf, its messages and torchpar.conf(5) are all made from it. It is as long as the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torchpar.conf import values as v
from torchpar.contract.cpulist import CpuSet


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    `field` is the attribute that holds the value; `default` and `allowed` are texts for people; a list setting
    appends when it is repeated; an `own` setting belongs to one service and cannot stand in [Train] or [Infer]; a
    `later` setting is read and checked, and has no effect in this version.
    """

    field: str
    key: str
    parse: Callable[[str], Any]
    default: str
    allowed: str
    help: str
    is_list: bool
    own: bool
    later: bool


def _setting(  # noqa: PLR0913 - a row of the table has as many columns
    key: str,
    parse: Callable[[str], Any],
    default: str,
    allowed: str,
    help: str,
    *,
    is_list: bool = False,
    own: bool = False,
    later: bool = False,
) -> Any:
    row = {"key": key, "parse": parse, "default": default, "allowed": allowed, "help": help}
    if is_list:
        value = parse(default) if default else ()
    else:
        value = parse(default) if default else None
    return dataclasses.field(default=value, metadata={**row, "is_list": is_list, "own": own, "later": later})


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """[Match], which may begin a file: where it does not hold, the whole file is skipped."""

    host: tuple[str, ...] = _setting(
        "Host", v.parse_globs, "", "host names, * and ? allowed", "the host's name is one of these", is_list=True
    )
    architecture: tuple[str, ...] = _setting(
        "Architecture",
        v.parse_architectures,
        "",
        "x86-64, arm64, ...",
        "the host's architecture is one of these",
        is_list=True,
    )
    gpus: tuple[v.Comparison, ...] = _setting(
        "GPUs",
        v.parse_comparisons,
        "",
        "a comparison such as >= 1",
        "the number of accelerators, without GPUs that are a part of the processor",
        is_list=True,
    )
    cpus: tuple[v.Comparison, ...] = _setting(
        "CPUs",
        v.parse_comparisons,
        "",
        "a comparison such as >= 64",
        "the number of CPUs that are online",
        is_list=True,
    )
    memory_nodes: tuple[v.Comparison, ...] = _setting(
        "MemoryNodes",
        v.parse_comparisons,
        "",
        "a comparison such as = 2",
        "the number of NUMA nodes with CPUs",
        is_list=True,
    )


@dataclass(frozen=True, kw_only=True)
class HostSettings:
    """[Host]: the machine as a whole."""

    cpus: CpuSet | None = _setting(
        "CPUs", v.parse_host_cpus, "all", "all, or a cpulist such as 0-7", "the CPUs that torchpar may use at all"
    )
    reserve_cores: int | None = _setting(
        "ReserveCores",
        v.auto_or(v.parse_count),
        "auto",
        "auto, or a number",
        "cores kept for the system; auto: none below 4 cores, 1 below 16, then 1 for each NUMA node, and no more than "
        "a sixteenth of the cores, less those that a cpuset leaves out, as a container's; all of which services get "
        "before one is refused; a number is always kept",
    )
    smt: bool = _setting(
        "SMT", v.parse_boolean, "no", "yes, no", "one compute thread for each CPU (yes) or for each core (no)"
    )
    metrics: str = _setting(
        "Metrics",
        v.parse_metrics,
        "textfile",
        "textfile, ADDRESS:PORT, no",
        "where Prometheus metrics go: to node_exporter's textfile collector where it is installed, or over HTTP at an "
        "address; see torchpar-metrics(7)",
    )
    auto_apply: bool = _setting(
        "AutoApply", v.parse_boolean, "no", "yes, no", "torchpard applies a valid edit of the conf by itself"
    )
    hotplug: v.Hotplug = _setting(
        "Hotplug",
        v.one_of(v.Hotplug),
        "advise",
        "advise, follow",
        "what is done when CPUs or memory nodes come or go: torchpard says so, or also has all services placed anew and"
        " moves those that run",
    )


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The settings that training and inference services have in common."""

    enabled: bool = _setting(
        "Enabled", v.parse_boolean, "no", "yes, no", "it starts at boot, and its CPUs are kept for it"
    )
    python: str = _setting(
        "Python",
        v.parse_program,
        "/usr/bin/python3",
        "an absolute path",
        "the interpreter, which may be that of a virtual environment",
    )
    user: str | None = _setting(
        "User", v.parse_account, "", "a user", "the user that it runs as, torchpar unless set"
    )
    group: str | None = _setting("Group", v.parse_account, "", "a group", "its group, the user's unless set")
    working_directory: str | None = _setting(
        "WorkingDirectory",
        v.parse_path,
        "",
        "an absolute path",
        "the folder in which it starts, its state directory unless set",
    )
    read_write_paths: tuple[str, ...] = _setting(
        "ReadWritePaths",
        v.parse_paths,
        "",
        "absolute paths; - before one that may be missing",
        "folders and files that it may write in addition to those in WHERE SERVICES WRITE",
        is_list=True,
    )
    environment: tuple[str, ...] = _setting(
        "Environment",
        v.parse_environment,
        "",
        "NAME=VALUE ...",
        "variables; they win over those that torchpar sets, OMP_NUM_THREADS also over Threads=",
        is_list=True,
    )
    cpus: v.CpuRequest = _setting(
        "CPUs",
        v.parse_cpus,
        "auto",
        "auto, a number of cores, a cpulist such as 0-7, node:LIST, package:LIST, shared",
        "its CPUs; a single number counts whole cores, of which the slower ones of a host with several kinds only load "
        "data where that is faster; shared: all CPUs that no other service has for itself",
    )
    weight: int = _setting(
        "Weight",
        v.parse_weight,
        "100",
        "1 to 10000",
        "its share where several services have CPUs=auto, or run on CPUs that all of them are planned on; cores that "
        "equal ranks leave over are nobody's",
    )
    slot: str | None = _setting(
        "Slot", v.parse_identifier, "", "a name", "services of one slot take turns on the same CPUs"
    )
    lend: bool = _setting(
        "Lend",
        v.parse_boolean,
        "no",
        "yes, no",
        "while it does not run, or serves no request, its CPUs are lent to running services with Borrow=yes; see "
        "LENDING in torchpard(8)",
    )
    borrow: bool = _setting(
        "Borrow",
        v.parse_boolean,
        "no",
        "yes, no",
        "it computes on CPUs that services with Lend=yes do not need, with as many threads more",
    )
    smt: bool | None = _setting(
        "SMT",
        v.parse_auto_boolean,
        "auto",
        "auto, yes, no",
        "as in [Host], for this service; auto: the value of [Host]",
    )
    gpus: v.GpuRequest = _setting(
        "GPUs",
        v.parse_gpus,
        "auto",
        "auto, a number, none, PCI addresses, UUIDs, or MIG instances such as MIG-GPU-8a2f1c04-.../1/0",
        "its accelerators; auto: a share by Weight=. A GPU that is a part of the processor goes only to a service that "
        "names it, and one without a driver to none",
    )
    numa_policy: v.MemoryPolicy = _setting(
        "NUMAPolicy",
        v.one_of(v.MemoryPolicy),
        "auto",
        "auto, default, preferred, bind, interleave, local",
        "memory policy; auto: bind or preferred on one node, local on several",
    )
    numa_mask: CpuSet | None = _setting(
        "NUMAMask", v.parse_nodelist, "auto", "auto, or a nodelist such as 0-1", "the nodes of the memory policy"
    )
    threads: int | None = _setting(
        "Threads", v.auto_or(v.parse_positive), "auto", "auto, or a number", "compute threads of each process"
    )
    interop_threads: int | None = _setting(
        "InteropThreads",
        v.auto_or(v.parse_positive),
        "auto",
        "auto, or a number",
        "threads between which PyTorch shares independent operations",
    )
    allocator: v.AllocatorChoice = _setting(
        "Allocator",
        v.one_of(v.AllocatorChoice),
        "auto",
        "auto, tcmalloc, jemalloc, glibc, none",
        "the malloc that is preloaded; auto: the first of tcmalloc, jemalloc and glibc that is installed. An "
        "interpreter with a libstdc++ of its own, as conda's, gets no malloc that needs Debian's, but one in its own "
        "lib, or glibc",
    )
    allocator_conf: str | None = _setting(
        "AllocatorConf",
        v.parse_text,
        "",
        "text",
        "MALLOC_CONF for jemalloc, in place of torchpar's own; Allocator=auto then prefers jemalloc",
    )
    wait_policy: v.WaitPolicy = _setting(
        "WaitPolicy",
        v.one_of(v.WaitPolicy),
        "auto",
        "auto, active, passive",
        "idle OpenMP threads spin (active) or sleep (passive); auto: they spin only on CPUs of the service's own",
    )
    cudnn_benchmark: bool | None = _setting(
        "CudnnBenchmark",
        v.parse_auto_boolean,
        "auto",
        "auto, yes, no",
        "torch.backends.cudnn.benchmark: yes is faster where sizes stay the same, and chooses other algorithms, so "
        "that results differ in their last digits; auto: torch's own",
    )
    memory_max: str | None = _setting(
        "MemoryMax", v.parse_memory, "", "a size such as 8G, 50% or infinity", "as in systemd.resource-control(5)"
    )
    memory_high: str | None = _setting(
        "MemoryHigh", v.parse_memory, "", "a size such as 8G, 50% or infinity", "as in systemd.resource-control(5)"
    )
    cpu_weight: str | None = _setting(
        "CPUWeight",
        lambda text: text if text == "idle" else str(v.parse_weight(text)),
        "",
        "1 to 10000, idle",
        "as in systemd.resource-control(5)",
    )
    restart: v.Restart = _setting(
        "Restart",
        v.one_of(v.Restart),
        "on-failure",
        "no, on-success, on-failure, on-abnormal, on-watchdog, on-abort, always",
        "as in systemd.service(5)",
    )
    tune: v.Tune = _setting(
        "Tune", v.one_of(v.Tune), "off", "off, online", "tune the service while it runs", later=True
    )

    def memory_limits(self) -> dict[str, str]:
        """Returns the limits of its memory that the conf sets, by the word that systemd has for them, too."""
        return _set({"MemoryMax": self.memory_max, "MemoryHigh": self.memory_high})

    def limits(self) -> dict[str, str]:
        """Returns all limits that the conf sets and only a unit can have, likewise."""
        return self.memory_limits() | _set({"CPUWeight": self.cpu_weight})


@dataclass(frozen=True, kw_only=True)
class TrainSettings(ServiceSettings):
    """[Train NAME]; [Train] holds defaults for all of them."""

    script: str | None = _setting("Script", v.parse_path, "", "an absolute path", "the script to run", own=True)
    module: str | None = _setting(
        "Module", v.parse_module, "", "a module", "a module to run in its place, as by python -m", own=True
    )
    arguments: tuple[str, ...] = _setting(
        "Arguments", v.parse_arguments, "", "words, quotes allowed", "the script's arguments", is_list=True, own=True
    )
    ranks: int | Literal["gpu", "numa"] = _setting(
        "Ranks",
        v.parse_ranks,
        "1",
        "a number, gpu, numa",
        "processes of a script that uses torch.distributed; gpu: one for each GPU, numa: one for each NUMA node, or "
        "for each of fewer nodes where equal ranks are faster so",
    )
    gpus_per_rank: int = _setting("GPUsPerRank", v.parse_positive, "1", "a number", "GPUs of each rank")
    binding: v.Binding = _setting(
        "Binding",
        v.one_of(v.Binding),
        "auto",
        "auto, node, socket, exclusive, core-complex, none",
        "the CPUs that each rank is bound to, in PyTorch's words; auto: exclusive",
    )
    loader_workers: int | Literal["off"] | None = _setting(
        "LoaderWorkers",
        v.parse_loader_workers,
        "auto",
        "auto, a number, off",
        "num_workers for DataLoader calls that do not set it; auto: nothing is changed, and torchpar status says what "
        "would help; off: nothing is changed, and PrefetchFactor= and PinMemory= have no effect",
    )
    prefetch_factor: int | None = _setting(
        "PrefetchFactor",
        v.auto_or(v.parse_positive),
        "auto",
        "auto, or a number",
        "prefetch_factor, likewise: batches that each worker loads ahead; auto: torch's own, 2",
    )
    pin_memory: bool | None = _setting(
        "PinMemory",
        v.parse_auto_boolean,
        "auto",
        "auto, yes, no",
        "pin_memory, likewise; auto: torch's own, no",
    )
    nodes: tuple[int, int] = _setting(
        "Nodes",
        v.parse_hosts,
        "1",
        "a number, or LEAST:MOST with Elastic=yes",
        "hosts that train together; each has the same section",
    )
    endpoint: str | None = _setting(
        "Endpoint",
        v.parse_endpoint,
        "",
        "HOST or HOST:PORT",
        "the host where all meet (torchrun's rendezvous), by a name or address that all reach; without a port, one "
        "that follows from the service's name",
    )
    interface: str | None = _setting(
        "Interface",
        v.parse_interface,
        "",
        "a network interface",
        "the interface by which the hosts talk to each other, the one with the route to the endpoint unless set",
    )
    elastic: bool = _setting(
        "Elastic",
        v.parse_boolean,
        "no",
        "yes, no",
        "go on with fewer hosts when one is lost, and take it in again; no: all stop and begin again together",
    )
    max_restarts: int | None = _setting(
        "MaxRestarts",
        v.auto_or(v.parse_count),
        "auto",
        "auto, or a number",
        "torchrun's restarts within one run; auto: 3 with Elastic=yes, else none, as systemd restarts the service",
    )
    checkpoint_grace: int = _setting(
        "CheckpointGrace",
        v.parse_seconds,
        "120s",
        "a time span such as 120s",
        "the time that a job has to save when it is stopped",
    )


@dataclass(frozen=True, kw_only=True)
class InferSettings(ServiceSettings):
    """[Infer NAME]; [Infer] holds defaults for all of them."""

    model: str | None = _setting("Model", v.parse_path, "", "an absolute path", "the model file to serve", own=True)
    handler: str | None = _setting(
        "Handler", v.parse_path, "", "an absolute path", "a Python handler to serve in its place", own=True
    )
    listen: tuple[str, ...] = _setting(
        "Listen",
        v.parse_listens,
        "",
        "ADDRESS:PORT ..., grpc:ADDRESS:PORT ...",
        "the addresses on which it listens, for HTTP and for gRPC; unless set 127.0.0.1:8000 for HTTP, and no gRPC",
        is_list=True,
        own=True,
    )
    tls_certificate: str | None = _setting(
        "TLSCertificate",
        v.parse_path,
        "",
        "an absolute path",
        "the certificate, and the chain that signed it, with which HTTP is served as HTTPS",
        own=True,
    )
    tls_key: str | None = _setting(
        "TLSKey",
        v.parse_path,
        "",
        "an absolute path",
        "the key of the certificate; only root need be able to read it, as systemd does that",
        own=True,
    )
    processes: int | None = _setting(
        "Processes",
        v.auto_or(v.parse_positive),
        "auto",
        "auto, or a number",
        "inference processes on each NUMA node or core complex of its share, which divide its CPUs; auto: as many as "
        "keep up with the requests, by what the first one measures at each start",
    )
    workers: int | None = _setting(
        "Workers",
        v.auto_or(v.parse_positive),
        "auto",
        "auto, or a number",
        "batches that are computed at the same time on each NUMA node or core complex; auto: as many as it has threads",
    )
    backend: v.Backend = _setting(
        "Backend",
        v.one_of(v.Backend),
        "auto",
        "auto, thread, process",
        "its workers: threads of one process, or a process each; auto: as suits the model",
    )
    max_batch: int | None = _setting(
        "MaxBatch",
        v.auto_or(v.parse_positive),
        "auto",
        "auto, or a number",
        "the most rows in one batch; auto: learned from the time that batches take",
    )
    max_queue: int | None = _setting(
        "MaxQueue",
        v.auto_or(v.parse_positive),
        "auto",
        "auto, or a number",
        "the most requests that wait, in each process and for each version of a model; more are refused",
    )
    drain_timeout: int = _setting(
        "DrainTimeout",
        v.parse_seconds,
        "30s",
        "a time span such as 30s",
        "the time that a stop may take to answer the requests that were accepted",
    )
    drain_delay: int = _setting(
        "DrainDelay",
        v.parse_seconds,
        "0s",
        "a time span such as 5s",
        "before that, the time in which a service that is to stop says 503 to /v2/health/ready and still takes "
        "requests, so that load balancers send no more of them",
    )


def _set(values: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value is not None}


def settings_of(section: type) -> Iterator[Setting]:
    """Yields the rows of one of the classes above, in their order."""
    for field in dataclasses.fields(section):
        yield Setting(field=field.name, **field.metadata)


SECTIONS: dict[str, type] = {
    "Match": MatchSettings,
    "Host": HostSettings,
    "Train": TrainSettings,
    "Infer": InferSettings,
}

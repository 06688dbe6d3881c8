"""Makes the environment variables of a service, and says why each; what the admin sets in Environment= always wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torchpar.conf.endpoint import whole_endpoint
from torchpar.conf.services import Kind, Service
from torchpar.conf.settings import InferSettings, TrainSettings
from torchpar.conf.values import WaitPolicy, parse_seconds
from torchpar.contract.job import THREAD_VARIABLES, JobSettings, RankSettings, ServeSettings, job_environment
from torchpar.facts.topology import HostFacts, PciDevice
from torchpar.placement.claims import Reason
from torchpar.placement.place import Share
from torchpar.plan.listening import addresses
from torchpar.plan.memory import PlannedMemory
from torchpar.plan.ranks import Rank
from torchpar.plan.sandbox import caches

# vLLM's rule for the pool that compiles kernels; PyTorch's own default of up to 32 can exhaust a small host's memory.
MAX_COMPILE_THREADS = 8

# How often an idle libgomp thread looks for work before it sleeps; its default is 300,000. Long enough for the pauses
# between operators, and in those that loading data makes the core is free.
SPIN_COUNT = "50000"

# SYCL, by which torch.xpu finds Intel's devices, then shows no GPU at all. Taken from its documentation, and not tried
# on hardware: an empty ZE_AFFINITY_MASK means the same to Level Zero as none, which is every device.
NO_INTEL_GPU = {"ONEAPI_DEVICE_SELECTOR": "opencl:cpu"}

CUDNN_BENCHMARK = (
    "torch's own: no. With yes it tries several algorithms for each new shape and keeps the fastest: quicker where "
    "sizes stay the same, and results differ in their last digits"
)

VISIBLE_DEVICES = {"0x10de": "CUDA_VISIBLE_DEVICES", "0x1002": "ROCR_VISIBLE_DEVICES", "0x8086": "ZE_AFFINITY_MASK"}


def make_environment(
    service: Service,
    share: Share,
    ranks: Sequence[Rank],
    facts: HostFacts,
    *,
    memory: PlannedMemory,
    allocator: dict[str, str],
    quota: int | None,
) -> tuple[dict[str, str], tuple[Reason, ...]]:
    """Makes all variables of a service, sorted by name, and the reasons for those that a rule decided."""
    settings = service.settings
    threads = max(rank.threads for rank in ranks)
    reasons: list[Reason] = []
    planned = {
        **caches(service),
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "TORCHINDUCTOR_COMPILE_THREADS": str(min(MAX_COMPILE_THREADS, threads)),
        **allocator,
        **_wait_policy(settings.wait_policy, share, quota, service.variable("OMP_WAIT_POLICY"), reasons),
        **_visible_devices(share.gpus, facts.accelerators()),
    }
    interop = settings.interop_threads or 1
    reasons.append(
        Reason(
            "InteropThreads",
            str(interop),
            "as asked for" if settings.interop_threads else "more would multiply the compute threads",
        )
    )
    if settings.cudnn_benchmark is None and share.gpus:
        reasons.append(Reason("CudnnBenchmark", "auto", CUDNN_BENCHMARK))
    job = JobSettings(
        service=service.unit,
        interop_threads=interop,
        cudnn_benchmark=settings.cudnn_benchmark,
        ranks=tuple(
            RankSettings(
                local_rank=rank.local_rank,
                cpus=str(rank.cpus),
                numa_nodes=str(rank.numa_nodes),
                threads=rank.threads,
                loader_workers=rank.loader_workers,
                loader_cpus=str(rank.loader_cpus),
                budget=rank.budget if service.kind is Kind.TRAIN else 0,
                gpus=tuple(gpu.name for gpu in rank.gpus),
            )
            for rank in ranks
        ),
        memory_policy=memory.policy.value,
    )
    train = service.train()
    if train:
        job = dataclasses.replace(
            job,
            max_restarts=_max_restarts(train, reasons),
            nodes=_nodes(train),
            endpoint=_endpoint(service.name, train, reasons),
            interface=train.interface,
            elastic=train.elastic,
            checkpoint_grace=train.checkpoint_grace,
            own_threads=train.threads is not None,
            prefetch_factor=None if train.loader_workers == "off" else train.prefetch_factor,
            pin_memory=None if train.loader_workers == "off" else train.pin_memory,
        )
    infer = service.infer()
    if infer:
        job = dataclasses.replace(job, serve=_serve(infer, share, _start_timeout(service)))
    planned.update(job_environment(job))
    for assignment in settings.environment:
        name, _, value = assignment.partition("=")
        if name in planned and planned[name] != value:
            reasons.append(Reason(name, value, f"set by Environment=; torchpar would set {planned[name]}"))
        planned[name] = value
    return dict(sorted(planned.items())), tuple(reasons)


def _serve(infer: InferSettings, share: Share, start_timeout: int | None) -> ServeSettings:
    http, grpc = addresses(infer)
    return ServeSettings(
        model=infer.model,
        handler=infer.handler,
        listen=http,
        grpc=grpc,
        workers=infer.workers,
        backend=infer.backend.value,
        max_batch=infer.max_batch,
        max_queue=infer.max_queue,
        drain_timeout=infer.drain_timeout,
        drain_delay=infer.drain_delay,
        own=share.own,
        processes=infer.processes,
        lend=infer.lend,
        start_timeout=start_timeout,
    )


def _start_timeout(service: Service) -> int | None:
    """Returns the seconds of Service.TimeoutStartSec=, None where systemd waits for ever.

    Where there is none, or one in other units than torchpar reads, it is the template unit's.
    """
    text = dict(service.directives).get("TimeoutStartSec", "")
    if text == "infinity":
        return None
    try:
        return (parse_seconds(text) or None) if text else ServeSettings.start_timeout
    except ValueError:
        return ServeSettings.start_timeout


def _max_restarts(train: TrainSettings, reasons: list[Reason]) -> int:
    """Counts torchrun's own restarts. A job of a fixed size has none: systemd starts it again on all its hosts, which
    also works where the host with the endpoint is lost, and leaves no agent behind that waits for one that is gone.
    """
    if train.max_restarts is not None:
        return train.max_restarts
    if train.elastic:
        reasons.append(Reason("MaxRestarts", "3", "an elastic job begins again without the lost host, in the same run"))
    return 3 if train.elastic else 0


def _nodes(train: TrainSettings) -> str:
    least, most = train.nodes
    return str(most) if least == most else f"{least}:{most}"


def _endpoint(name: str, train: TrainSettings, reasons: list[Reason]) -> str | None:
    """Returns the address where the hosts of a job meet, with its port; None for a job of one host."""
    if train.nodes[1] == 1 or train.endpoint is None:
        return None
    endpoint = whole_endpoint(train.endpoint, name)
    why = "as asked for" if endpoint == train.endpoint else "the port follows from the service's name"
    reasons.append(Reason("Endpoint", endpoint, f"{why}; {_nodes(train)} hosts meet there"))
    return endpoint


def _wait_policy(
    choice: WaitPolicy, share: Share, quota: int | None, stated: str | None, reasons: list[Reason]
) -> dict[str, str]:
    """Decides how OpenMP threads wait, and says why.

    Alone on its CPUs a job is up to 1.6 times faster when idle OpenMP threads spin for a while; with another job on the
    same CPUs spinning is 20 times slower than sleeping. Where the admin names OMP_WAIT_POLICY, that alone holds.
    """
    if stated is not None:
        reasons.append(Reason("WaitPolicy", stated.lower(), "OMP_WAIT_POLICY in Environment= says so, and wins"))
        return {}
    if choice is not WaitPolicy.AUTO:
        reasons.append(Reason("WaitPolicy", choice.value, "as asked for"))
        return {"OMP_WAIT_POLICY": choice.value.upper()}
    if share.own and quota is None:
        reasons.append(Reason("WaitPolicy", "active", "its CPUs are its own: spin for a while, then sleep"))
        return {"GOMP_SPINCOUNT": SPIN_COUNT}
    why = "a CPU quota counts spinning as work" if share.own else "other services may run on its CPUs"
    reasons.append(Reason("WaitPolicy", "passive", why))
    return {"OMP_WAIT_POLICY": "PASSIVE"}


def _visible_devices(gpus: Sequence[PciDevice], devices: Sequence[PciDevice]) -> dict[str, str]:
    """Hides the accelerators that are others'. Numbers count each vendor's devices in the order of PCI addresses."""
    if not devices:
        return {}
    variables = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if any(device.vendor == "0x8086" for device in devices):
        variables["ZE_ENABLE_PCI_ID_DEVICE_ORDER"] = "1"
    for vendor, variable in VISIBLE_DEVICES.items():
        of_vendor = sorted((d for d in devices if d.vendor == vendor), key=lambda device: device.pci)
        if of_vendor:
            visible = ",".join(_visible([gpu for gpu in gpus if gpu.vendor == vendor], of_vendor))
            hidden = NO_INTEL_GPU if vendor == "0x8086" else {variable: ""}
            variables.update({variable: visible} if visible else hidden)
    return variables


def _visible(gpus: Sequence[PciDevice], devices: Sequence[PciDevice]) -> list[str]:
    """Names all by UUID, or all by number: CUDA takes no list of both. A MIG instance has no number."""
    if all(gpu.uuid for gpu in gpus):
        return [gpu.uuid or "" if gpu.mig is None else gpu.name for gpu in gpus]
    return [str(devices.index(gpu)) for gpu in gpus if gpu.mig is None]

"""The variables between unit and job, both directions.

A rendered unit carries what its job must know of the plan in one variable, TORCHPAR_JOB; the runtime inside the job
reads it back. Runs under any Python from 3.9 on. It does not know the variables that torch, OpenMP and the allocators
read by themselves, nor where the values come from.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from torchpar.contract.errors import JobSettingsError

VARIABLE = "TORCHPAR_JOB"

# The variables that say how many threads each process computes with. A unit has them once for all of its processes.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class RankSettings:
    """One process of a training service: its place and its sizes.

    cpus and numa_nodes are lists in the kernel's syntax ("0-3,8"); gpus are PCI addresses ("0000:17:00.0"). threads
    counts compute threads (1 or more), loader_workers the DataLoader's processes that the conf asks for (0: it asks for
    none), which may run on loader_cpus too: the unit starts on cpus, but its cpuset allows both. budget is what threads
    and loader workers may be together (0: an older unit does not say).
    """

    local_rank: int
    cpus: str
    numa_nodes: str
    threads: int
    loader_workers: int
    gpus: tuple[str, ...]
    loader_cpus: str = ""
    budget: int = 0


@dataclass(frozen=True)
class ServeSettings:
    """The settings of an inference service: its model, its addresses and its limits.

    model and handler are paths; one of them is set. listen are the addresses that HTTP may be served on, grpc those of
    gRPC ("127.0.0.1:8000", "[::]:8000"). workers counts batches at the same time on the CPUs of each rank; None: as
    many as the rank has threads. backend is "auto", "thread" or "process"; max_batch counts rows and max_queue
    requests, None: the server finds out. drain_timeout and drain_delay are in seconds. own: nobody else is expected on
    the service's CPUs. processes counts inference processes on the CPUs of each rank, which share its threads or
    workers; None: the server measures. lend: its CPUs may be lent while no request comes. start_timeout is how many
    seconds systemd waits for a start or a reload, the unit's TimeoutStartSec=; None: for ever.
    """

    model: str | None
    handler: str | None
    listen: tuple[str, ...]
    grpc: tuple[str, ...]
    workers: int | None
    backend: str
    max_batch: int | None
    max_queue: int | None
    drain_timeout: int
    own: bool
    processes: int | None = None
    drain_delay: int = 0
    lend: bool = False
    start_timeout: int | None = 900


@dataclass(frozen=True)
class JobSettings:
    """The part of the plan that a service's processes must know.

    service is the unit's name ("torchpar-train@demo.service"); cudnn_benchmark is None where the job's own choice
    stands; ranks are in the order of local_rank. memory_policy is a word of NUMAPolicy= in systemd.exec(5); nodes is
    torchrun's --nnodes ("2", or "2:4" for an elastic job), endpoint its rendezvous ("host:port"); checkpoint_grace is
    how many seconds a stop may take. prefetch_factor and pin_memory are what the conf has for DataLoader calls that
    leave them out; None: torch's own. serve is that of an inference service. own_threads says that the user has asked
    for the ranks' numbers of threads, so that they stay on fewer CPUs. signals is for a job without a unit, which
    SIGTERM and SIGUSR1 ask to stop: "each" where every process of it gets them, "main" where the first one does; "":
    it has a unit.

    What has a default here is what older units do not say.
    """

    service: str
    interop_threads: int
    cudnn_benchmark: bool | None
    ranks: tuple[RankSettings, ...]
    memory_policy: str = "default"
    max_restarts: int = 0
    nodes: str = "1"
    endpoint: str | None = None
    interface: str | None = None
    elastic: bool = False
    checkpoint_grace: int = 120
    prefetch_factor: int | None = None
    pin_memory: bool | None = None
    serve: ServeSettings | None = None
    own_threads: bool = False
    signals: str = ""

    def rank(self, local_rank: int) -> RankSettings | None:
        """Finds the settings of one process; None if the plan has no such rank."""
        return next((rank for rank in self.ranks if rank.local_rank == local_rank), None)

    @property
    def unit_threads(self) -> str:
        """The number of threads that the unit names: the most that one of its processes has."""
        return str(max(rank.threads for rank in self.ranks))

    def narrow_threads(self, rank: RankSettings, environ: MutableMapping[str, str]) -> None:
        """Replaces the unit's number of threads by that of this process; an administrator's number stays."""
        for name in THREAD_VARIABLES:
            if environ.get(name) == self.unit_threads:
                environ[name] = str(rank.threads)

    def is_planned(self, rank: RankSettings, stated: str) -> bool:
        """Says whether an OMP_NUM_THREADS is the plan's, of the unit or of this process, and not an administrator's.

        Of a list, which is for nested regions, the first counts (OpenMP 5.2, 21.2.2).
        """
        return stated.partition(",")[0].strip() in (self.unit_threads, str(rank.threads))


def job_environment(settings: JobSettings) -> dict[str, str]:
    """Makes the variable that carries the settings; the same settings give the same ASCII text."""
    data = asdict(settings)
    data["ranks"] = list(_shorten(data["ranks"]))
    for name in ("own_threads", "signals"):
        if not data[name]:
            del data[name]
    if settings.serve is None:
        del data["serve"]
    else:
        for name in ("processes", "drain_delay", "lend"):
            if not data["serve"][name]:
                del data["serve"][name]
        if settings.serve.start_timeout == ServeSettings.start_timeout:
            del data["serve"]["start_timeout"]
    return {VARIABLE: json.dumps(data, sort_keys=True, separators=(",", ":"))}


def _shorten(ranks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the ranks; one whose number follows that of the rank before it has only the fields that differ from it.

    The kernel takes one variable of 128 KiB, and hundreds of ranks may each be bound to the same long list of CPUs.
    """
    before: dict[str, Any] = {}
    for rank in ranks:
        if before and rank["local_rank"] == before["local_rank"] + 1:
            yield {key: value for key, value in rank.items() if key != "local_rank" and value != before[key]}
        else:
            yield {key: value for key, value in rank.items() if value or key not in ("loader_cpus", "budget")}
        before = rank


def _lengthen(ranks: Iterable[Any]) -> Iterator[RankSettings]:
    """Reverses _shorten(); an entry with a number is whole, as all are in older units."""
    before: RankSettings | None = None
    for place, data in enumerate(ranks):
        where = f"{VARIABLE}.ranks[{place}]"
        fields = _object(data, where)
        if before and "local_rank" not in fields:
            same = {**asdict(before), "gpus": list(before.gpus), "local_rank": before.local_rank + 1}
            fields = {**same, **fields}
        before = _parse_rank(fields, where)
        yield before


def parse_job_environment(environ: Mapping[str, str]) -> JobSettings | None:
    """Parses the settings in a process environment; None where no unit has set any.

    Names that are not known are passed over: the unit in force may be older or newer than this runtime, for example
    between an upgrade of the package and the next `torchpar apply`. Raises JobSettingsError when the variable is not
    what `job_environment` writes.
    """
    text = environ.get(VARIABLE)
    if text is None:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobSettingsError(f"{VARIABLE}: not JSON: {error}; render the unit again: torchpar apply") from None
    fields = _object(data, VARIABLE)
    ranks = _field(fields, VARIABLE, "ranks", list)
    return JobSettings(
        service=_field(fields, VARIABLE, "service", str),
        interop_threads=_number(fields, VARIABLE, "interop_threads", least=1),
        cudnn_benchmark=_field(fields, VARIABLE, "cudnn_benchmark", (bool, type(None))),
        ranks=tuple(_lengthen(ranks)),
        memory_policy=_field(fields, VARIABLE, "memory_policy", str, JobSettings.memory_policy),
        max_restarts=_number(fields, VARIABLE, "max_restarts", least=0, absent=JobSettings.max_restarts),
        nodes=_field(fields, VARIABLE, "nodes", str, JobSettings.nodes),
        endpoint=_field(fields, VARIABLE, "endpoint", (str, type(None)), JobSettings.endpoint),
        interface=_field(fields, VARIABLE, "interface", (str, type(None)), JobSettings.interface),
        elastic=_field(fields, VARIABLE, "elastic", bool, JobSettings.elastic),
        checkpoint_grace=_number(fields, VARIABLE, "checkpoint_grace", least=0, absent=JobSettings.checkpoint_grace),
        prefetch_factor=_prefetch_factor(fields),
        pin_memory=_field(fields, VARIABLE, "pin_memory", (bool, type(None)), JobSettings.pin_memory),
        serve=_parse_serve(fields["serve"], f"{VARIABLE}.serve") if "serve" in fields else None,
        own_threads=_field(fields, VARIABLE, "own_threads", bool, JobSettings.own_threads),
        signals=_field(fields, VARIABLE, "signals", str, JobSettings.signals),
    )


def _parse_serve(data: Any, where: str) -> ServeSettings:
    fields = _object(data, where)
    text, number = (str, type(None)), (int, type(None))
    return ServeSettings(
        model=_field(fields, where, "model", text),
        handler=_field(fields, where, "handler", text),
        listen=_texts(fields, where, "listen"),
        grpc=_texts(fields, where, "grpc"),
        workers=_field(fields, where, "workers", number),
        backend=_field(fields, where, "backend", str),
        max_batch=_field(fields, where, "max_batch", number),
        max_queue=_field(fields, where, "max_queue", number),
        drain_timeout=_number(fields, where, "drain_timeout", least=0),
        own=_field(fields, where, "own", bool),
        processes=_field(fields, where, "processes", number, None),
        drain_delay=_number(fields, where, "drain_delay", least=0, absent=ServeSettings.drain_delay),
        lend=_field(fields, where, "lend", bool, ServeSettings.lend),
        start_timeout=_field(fields, where, "start_timeout", number, ServeSettings.start_timeout),
    )


def _prefetch_factor(fields: Mapping[str, Any]) -> int | None:
    if fields.get("prefetch_factor") is None:
        return None
    return _number(fields, VARIABLE, "prefetch_factor", least=1)


def _parse_rank(fields: Mapping[str, Any], where: str) -> RankSettings:
    return RankSettings(
        local_rank=_number(fields, where, "local_rank", least=0),
        cpus=_field(fields, where, "cpus", str),
        numa_nodes=_field(fields, where, "numa_nodes", str),
        threads=_number(fields, where, "threads", least=1),
        loader_workers=_number(fields, where, "loader_workers", least=0),
        gpus=_texts(fields, where, "gpus"),
        loader_cpus=_field(fields, where, "loader_cpus", str, RankSettings.loader_cpus),
        budget=_number(fields, where, "budget", least=0, absent=RankSettings.budget),
    )


def _object(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _unexpected(where, data)
    return data


_REQUIRED = object()

_MOST = 2**53  # of a number: what any JSON reader keeps


def _field(fields: Mapping[str, Any], where: str, name: str, kind: Any, absent: Any = _REQUIRED) -> Any:
    """Returns a field of the right kind; `absent` where an older unit does not have it. Raises JobSettingsError."""
    if name not in fields and absent is not _REQUIRED:
        return absent
    if name not in fields:
        raise JobSettingsError(f"{where}: '{name}' is missing; render the unit again: torchpar apply")
    value = fields[name]
    # JSON's true is an int for Python.
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise _unexpected(f"{where}.{name}", value)
    if (isinstance(value, str) and not _is_text(value)) or (type(value) is int and not 0 <= value <= _MOST):
        raise _unexpected(f"{where}.{name}", value)
    return value


def _texts(fields: Mapping[str, Any], where: str, name: str) -> tuple[str, ...]:
    texts = _field(fields, where, name, list)
    if not all(isinstance(text, str) and _is_text(text) for text in texts):
        raise _unexpected(f"{where}.{name}", texts)
    return tuple(texts)


def _number(fields: Mapping[str, Any], where: str, name: str, *, least: int, absent: Any = _REQUIRED) -> int:
    value: Any = _field(fields, where, name, int, absent)
    if value < least:
        raise _unexpected(f"{where}.{name}", value)
    return int(value)


def _is_text(text: str) -> bool:
    """Says whether a text can be a path or a variable: no half of a letter, and no end of a C string."""
    return not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text)


def _unexpected(where: str, value: Any) -> JobSettingsError:
    # The whole text of a list may be endless, or nested too deep to be made.
    what = reprlib.repr(value)
    return JobSettingsError(f"{where}: {what} is not what belongs there; render the unit again: torchpar apply")

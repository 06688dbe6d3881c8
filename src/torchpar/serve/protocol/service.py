"""Answers everything but inference, as JSON's values; HTTP and gRPC both ask here."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

from torchpar.contract.version import version
from torchpar.serve.engine.metadata import READY
from torchpar.serve.engine.requests import Done, Request, Ticket
from torchpar.serve.errors import ServeError
from torchpar.serve.limits import ORDER
from torchpar.serve.protocol.apart import Apart
from torchpar.serve.protocol.log_settings import LogSettings, TraceSettings
from torchpar.serve.protocol.parsing import parse_json
from torchpar.serve.protocol.triton import model_config, model_statistics

if TYPE_CHECKING:
    from torchpar.serve.engine.engine import Engine

# Only what is there: clients look an extension up here before they use it.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
    "trace",
)

# Requests and answers of more bytes than this are read and written on another thread, some milliseconds in which the
# event loop goes on; on so few threads, for they all want Python's lock.
INLINE = 128 * 1024
THREADS = 2


class Service:
    """An engine, and what of the server can be asked for or set at run time.

    `remote_control`: whether clients on other hosts may load and unload models and change settings; those on this host
    may. `threads` are for work whose size a client chooses, `apart` for what of it would hold Python's lock. `tell` is
    given each change of a setting, for the service's other processes, whose `take` it is for.
    """

    def __init__(self, engine: Engine, log: LogSettings, trace: TraceSettings, *, remote_control: bool = False) -> None:
        self.engine = engine
        self.log = log
        self.trace = trace
        self.remote_control = remote_control
        self.threads: Executor = ThreadPoolExecutor(THREADS, "protocol")
        self.apart = Apart()
        self.tell: Callable[[dict[str, Any]], object] = lambda change: None

    def change_log(self, changes: dict[str, Any]) -> dict[str, Any]:
        """See LogSettings.update."""
        values = self.log.update(changes)
        self.tell({"log": changes})
        return values

    def change_trace(self, model: str | None, changes: dict[str, Any]) -> dict[str, Any]:
        """See TraceSettings.update."""
        values = self.trace.update(model, changes)
        self.tell({"trace": changes, "model": model})
        return values

    def take(self, change: dict[str, Any]) -> None:
        """Makes a change that another process was asked for."""
        if "log" in change:
            self.log.update(change["log"])
        else:
            self.trace.update(change["model"], change["trace"])

    def submit(self, request: Request, done: Done) -> Ticket:
        """See Engine.submit."""
        return self.engine.submit(request, done)

    def check_bytes(self, names: Iterable[str], model: str, version: str) -> None:
        """Raises ServeError where taking these inputs of BYTES apart, which takes a while, would be for nothing."""
        wanted = {spec.name for spec in self.engine.metadata(model, version).inputs if spec.datatype == "BYTES"}
        for name in names:
            if name not in wanted:
                raise ServeError(400, f"model '{model}' has no input '{name}' of BYTES")

    def server(self) -> dict[str, Any]:
        """Returns the server's metadata."""
        return {"name": "torchpar", "version": version(), "extensions": list(EXTENSIONS)}

    def model(self, name: str, version: str) -> dict[str, Any]:
        """Returns a model's metadata. Raises ServeError 404."""
        metadata = self.engine.metadata(name, version)
        return {
            "name": metadata.name,
            "versions": list(metadata.versions),
            "platform": metadata.platform,
            "inputs": [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in metadata.inputs],
            "outputs": [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in metadata.outputs],
        }

    def config(self, name: str, version: str) -> dict[str, Any]:
        """Returns a model's configuration in Triton's words. Raises ServeError 404."""
        return model_config(self.engine.metadata(name, version))

    def statistics(self, name: str | None, version: str) -> dict[str, Any]:
        """Returns the statistics of one version, one model, or all. Raises ServeError 404."""
        return {"model_stats": [model_statistics(*counted) for counted in self.engine.statistics(name, version)]}

    def index(self, only_ready: bool) -> list[dict[str, str]]:
        """Returns the repository's index."""
        return [
            {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for entry in self.engine.index()
            if entry.state == READY or not only_ready
        ]

    async def load(self, name: str, parameters: Any) -> None:
        """Loads a model, or loads it again. Raises ServeError."""
        for parameter in _names(parameters):
            if parameter == "config" or parameter.startswith("file:"):
                raise ServeError(
                    400,
                    f"failed to load '{name}', '{parameter}' cannot be overridden: models here are what the host's"
                    " configuration says; load it without parameters",
                )
            raise ServeError(400, f"failed to load '{name}', unknown parameter '{parameter}'")
        await self.engine.load(name)

    async def unload(self, name: str, parameters: Any) -> None:
        """Unloads a model; `unload_dependents` is accepted and means nothing, for no model depends on another."""
        for parameter in _names(parameters):
            if parameter != "unload_dependents":
                raise ServeError(400, f"failed to unload '{name}', unknown parameter '{parameter}'")
        await self.engine.unload(name)

    def shared_memory(self, kind: str, verb: str, region: str) -> list[dict[str, Any]]:
        """Returns the regions of shared memory of the kind "system" or "cuda": none, as none is ever registered.

        Raises ServeError 400 for a region that is named, and 501 for registering one.
        """
        if verb == "register":
            raise ServeError(
                501,
                f"failed to register {kind} shared memory region '{region}': this server maps no memory of its clients;"
                " send tensors in the request",
            )
        if verb == "status" and region:
            raise ServeError(400, f"unable to find {kind} shared memory region: '{region}'")
        return []


def body_object(body: bytes | bytearray) -> dict[str, Any]:
    """Parses the JSON object of a request's body; an empty body is an empty one. Raises ServeError 400 or 413."""
    if not body:
        return {}
    if len(body) > ORDER:
        raise ServeError(413, f"the request has {len(body)} bytes; the limit of this one is {ORDER}")
    fields = parse_json(body)
    if not isinstance(fields, dict):
        raise ServeError(400, "the request is not a JSON object")
    return fields


def _names(parameters: Any) -> list[str]:
    if parameters is None:
        return []
    if not isinstance(parameters, dict):
        raise ServeError(400, "'parameters' is not an object")
    return list(parameters)

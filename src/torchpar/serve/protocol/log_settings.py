"""Log settings and trace settings, in Triton's words: clients change by them which lines the journal gets."""

from __future__ import annotations

import itertools
import json
from typing import Any, Callable

from torchpar.serve.errors import ServeError

_LOG: dict[str, Any] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


class LogSettings:
    """A verbose level of 1 or more is a line for every request; `verbose` is told when it changes.

    The journal is where lines go and says itself what is shown, so the other settings can only be what they are.
    """

    def __init__(self, verbose: Callable[[bool], None]) -> None:
        self._verbose = verbose
        self._values = dict(_LOG)

    def values(self) -> dict[str, Any]:
        """Returns all settings."""
        return dict(self._values)

    def update(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes some, all or none of them; returns all. Raises ServeError 400."""
        values = dict(self._values)
        for name, value in changes.items():
            if name not in _LOG:
                raise ServeError(400, f"there is no log setting '{name}'")
            if type(value) is not type(_LOG[name]) or (name == "log_verbose_level" and value < 0):
                raise ServeError(400, f"log setting '{name}' cannot be {value!r:.40}")
            if name in ("log_file", "log_format") and value != _LOG[name]:
                raise ServeError(400, f"log setting '{name}' cannot be changed: lines go to the journal")
            values[name] = value
        self._values = values
        self._verbose(values["log_verbose_level"] > 0)
        return self.values()


_TRACE: dict[str, Any] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


class TraceSettings:
    """With trace_level TIMESTAMPS, every trace_rate-th request of a model gets a line of JSON with its times.

    A model has the server's settings but for those that it was given itself; null gives them up again. Each process of
    a service counts its own requests, for trace_rate and trace_count. `active` is whether any request at all is traced,
    to ask first.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._server = dict(_TRACE)
        self._models: dict[str, dict[str, Any]] = {}
        self._counter = itertools.count()
        self.active = False

    def values(self, model: str | None) -> dict[str, Any]:
        """Returns the settings of a model, or of the server."""
        return {**self._server, **self._models.get(model or "", {})}

    def update(self, model: str | None, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes some of them; returns all. Raises ServeError 400."""
        own = dict(self._models.get(model, {}) if model else self._server)
        for name, value in changes.items():
            if name not in _TRACE:
                raise ServeError(400, f"there is no trace setting '{name}'")
            if value is None or value == []:
                own.pop(name, None)
                if not model:
                    own[name] = _TRACE[name]
                continue
            own[name] = _trace_value(name, value)
        if model:
            self._models[model] = own
        else:
            self._server = own
        settings = [self._server, *self._models.values()]
        self.active = any("TIMESTAMPS" in each.get("trace_level", ()) for each in settings)
        return self.values(model)

    def wanted(self, model: str) -> bool:
        """Says whether this request of a model is one to trace; counts it."""
        values = self.values(model)
        if "TIMESTAMPS" not in values["trace_level"] or values["trace_count"] == "0":
            return False
        if next(self._counter) % int(values["trace_rate"]):
            return False
        left = int(values["trace_count"])
        if left > 0:
            where = self._models[model] if "trace_count" in self._models.get(model, {}) else self._server
            where["trace_count"] = str(left - 1)
        return True

    def trace(self, model: str, id_: str, status: int, stamps: dict[str, float]) -> None:
        """Writes a request's line; stamps are seconds of the event loop's clock."""
        times = {name: round(value * 1e9) for name, value in stamps.items()}
        self._write("trace: " + json.dumps({"model": model, "id": id_, "status": status, "ns": times}))


def _trace_value(name: str, value: Any) -> Any:
    if name == "trace_level":
        levels = [value] if isinstance(value, str) else value
        if isinstance(levels, list) and set(map(str, levels)) <= {"OFF", "TIMESTAMPS"}:
            return sorted({str(level) for level in levels})
        raise ServeError(400, "trace setting 'trace_level' can be OFF and TIMESTAMPS")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text = str(value)
    if name in ("trace_file", "trace_mode"):
        if text != _TRACE[name]:
            raise ServeError(400, f"trace setting '{name}' cannot be changed: lines go to the journal")
        return text
    least = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}[name]
    if not text.lstrip("-").isdecimal() or not least <= int(text) < 1 << 31:
        raise ServeError(400, f"trace setting '{name}' cannot be {text[:40]!r}")
    return text

"""Answers each request by its path and method, where its client may ask for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from functools import partial
from typing import Any, Callable
from urllib.parse import unquote

from torchpar.serve.errors import ServeError
from torchpar.serve.http.exchange import TEXT, Exchange
from torchpar.serve.http.inference import Inference
from torchpar.serve.http.metrics import render_metrics
from torchpar.serve.http.page import Page
from torchpar.serve.http.predict import Predict
from torchpar.serve.http.state import ServerState
from torchpar.serve.protocol.service import Service, body_object

# How many targets are remembered with the model that they name.
KEPT = 512

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]{1,18}))?(?:/(infer|ready|config|stats|trace/setting))?")
_PREDICT = re.compile(r"/predict(?:/(.*))?", re.DOTALL)
_REPOSITORY = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)")
_MEMORY = re.compile(r"/v2/(system|cuda)sharedmemory(?:/region/([^/]+))?/(status|register|unregister)")

Answer = Callable[[], Any]


class Application:
    """Answers every exchange of a server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._state: ServerState
        self._infer: Inference
        self._targets: dict[bytes, tuple[str, str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, state: ServerState) -> None:
        """Say whose exchanges it answers, before the first comes."""
        self._state = state
        self._infer = Inference(self._service, state.limits)
        self._predictions = Predict(self._service, state.limits)
        self._page = Page(self._service, state)
        # What is at each path, and at those with a name in them.
        self._paths = self._make_paths()
        self._patterns: tuple[tuple[re.Pattern[str], Callable[..., None]], ...] = (
            (_MODEL, self._model),
            (_PREDICT, self._predict),
            (_REPOSITORY, self._repository),
            (_MEMORY, self._memory),
        )

    def __call__(self, exchange: Exchange) -> None:
        """Answer one request, now or later."""
        known = self._targets.get(exchange.target)
        if known is not None and exchange.method == b"POST":
            self._infer(exchange, *known)
            return
        try:
            self._route(exchange, exchange.path)
        except ServeError as error:
            exchange.fail(error.status, error.message, error.retry_after)

    def _route(self, exchange: Exchange, path: str) -> None:
        if len(path) > 1 and path.endswith("/"):
            path = path[:-1]
        if path in self._paths:
            self._paths[path](exchange)
            return
        for pattern, answer in self._patterns:
            if match := pattern.fullmatch(path):
                answer(exchange, *(unquote(group or "") for group in match.groups()))
                return
        raise ServeError(404, f"there is nothing at {path[:200]}")

    def _make_paths(self) -> dict[str, Callable[[Exchange], None]]:
        service = self._service
        return {
            "/": self._root,
            "*": self._server_options,
            "/state": partial(self._get, answer=self._page.state),
            "/metrics": self._metrics,
            "/v2": partial(self._get, answer=service.server),
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v2/models/stats": partial(self._get, answer=partial(service.statistics, None, "")),
            "/v2/repository/index": self._index,
            "/v2/logging": partial(self._settings, values=service.log.values, update=service.change_log),
            "/v2/trace/setting": partial(self._trace, model=None),
        }

    def _root(self, exchange: Exchange) -> None:
        if self._method(exchange, "GET", "HEAD", well=self._is_ready()):
            self._page(exchange)

    def _server_options(self, exchange: Exchange) -> None:
        """Answers OPTIONS *, which names no path: the methods of the server."""
        if exchange.method != b"OPTIONS":
            raise ServeError(404, "there is nothing at *")
        self._method(exchange, "GET", "HEAD", "POST", well=self._is_ready())

    def _metrics(self, exchange: Exchange) -> None:
        if self._method(exchange, "GET", "HEAD"):
            exchange.respond(200, TEXT, render_metrics(self._service.engine, self._state))

    def _live(self, exchange: Exchange) -> None:
        self._health(exchange, self._service.engine.live(), {"live": True})

    def _ready(self, exchange: Exchange) -> None:
        # The protocol's text says "live" for this one too, its servers say "ready".
        self._health(exchange, self._is_ready(), {"ready": True, "live": True})

    def _index(self, exchange: Exchange) -> None:
        if self._method(exchange, "POST"):
            exchange.respond_json(self._service.index(body_object(exchange.body).get("ready") is True))

    def _predict(self, exchange: Exchange, model: str) -> None:
        if self._method(exchange, "POST"):
            self._predictions(exchange, model)

    def _model(self, exchange: Exchange, name: str, version: str, verb: str) -> None:
        service = self._service
        if verb == "infer":
            if self._method(exchange, "POST"):
                if len(self._targets) >= KEPT:
                    self._targets.clear()
                self._targets[exchange.target] = name, version
                self._infer(exchange, name, version)
        elif verb == "ready":
            ready = service.engine.ready(name, version) and not self._state.draining
            self._health(exchange, ready, {"name": name, "ready": True})
        elif verb == "config":
            self._get(exchange, lambda: service.config(name, version))
        elif verb == "stats":
            self._get(exchange, lambda: service.statistics(name, version))
        elif verb == "trace/setting":
            self._trace(exchange, name)
        else:
            self._get(exchange, lambda: service.model(name, version))

    def _is_ready(self) -> bool:
        return self._service.engine.ready() and not self._state.draining

    def _health(self, exchange: Exchange, well: bool, body: dict[str, Any]) -> None:
        if not self._method(exchange, "GET", "HEAD", well=well):
            return
        if well:
            exchange.respond_json(body)
        else:
            wrong = {key: False if value is True else value for key, value in body.items()}
            exchange.respond_json({**wrong, "error": "not ready"}, 503, b"Retry-After: 1")

    def _repository(self, exchange: Exchange, name: str, verb: str) -> None:
        if not self._method(exchange, "POST"):
            return
        self._check_control(exchange)
        parameters = body_object(exchange.body).get("parameters")
        do = self._service.load if verb == "load" else self._service.unload
        self._later(exchange, do(name, parameters))

    def _trace(self, exchange: Exchange, model: str | None) -> None:
        if model is not None:
            self._service.engine.metadata(model, "")
        service = self._service
        self._settings(exchange, lambda: service.trace.values(model), partial(service.change_trace, model))

    def _settings(
        self, exchange: Exchange, values: Callable[[], Any], update: Callable[[dict[str, Any]], Any]
    ) -> None:
        if not self._method(exchange, "GET", "HEAD", "POST"):
            return
        if exchange.method != b"POST":
            exchange.respond_json(values())
            return
        self._check_control(exchange)
        exchange.respond_json(update(body_object(exchange.body)))

    def _memory(self, exchange: Exchange, kind: str, region: str, verb: str) -> None:
        if not self._method(exchange, *(("GET", "HEAD") if verb == "status" else ("POST",))):
            return
        regions = self._service.shared_memory(kind, verb, region)
        exchange.respond_json(regions if verb == "status" else {})

    def _get(self, exchange: Exchange, answer: Answer) -> None:
        if self._method(exchange, "GET", "HEAD"):
            exchange.respond_json(answer())

    def _method(self, exchange: Exchange, *allowed: str, well: bool = True) -> bool:
        """Says whether the method is one of those; if not, answers the request.

        OPTIONS is, everywhere: 503 unless `well`, for load balancers ask so whether a server is. No other origin is
        allowed anything: the web pages of others must not use the models.
        """
        method = exchange.method.decode("ascii", "replace")
        if method in allowed:
            return True
        names = ", ".join((*allowed, "OPTIONS"))
        allow = b"Allow: " + names.encode()
        if method == "OPTIONS":
            exchange.send(200 if well else 503, allow + b"\r\nContent-Length: 0\r\n")
        else:
            exchange.fail(405, f"{method} is not allowed here, but {names}", None, allow)
        return False

    def _check_control(self, exchange: Exchange) -> None:
        if not self._service.remote_control and not exchange.is_local():
            raise ServeError(403, "models and settings can be changed from this host only")

    def _later(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Wait for the engine, then answer."""

        async def run() -> None:
            try:
                await work
            except ServeError as error:
                exchange.fail(error.status, error.message, error.retry_after)
            except Exception:
                exchange.fail(500, "internal error")
                raise
            else:
                exchange.respond_json({})

        task = self._state.loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

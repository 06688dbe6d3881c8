"""Gives work whose size the client chooses, such as reading its JSON, to other threads and processes.

Large pieces of it would hold up the event loop, and with it everybody else.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial
from typing import Any, Callable

from torchpar.contract.journal import Priority, say
from torchpar.serve.errors import ServeError
from torchpar.serve.http.exchange import Exchange
from torchpar.serve.protocol.apart import LEAST
from torchpar.serve.protocol.service import INLINE, Service

Work = Callable[[], Any]
Then = Callable[[Any], None]
Fail = Callable[[ServeError], None]


def offload_large(
    threads: Executor, exchange: Exchange, size: int, work: Work, then: Then, fail: Fail | None = None
) -> None:
    """Does some work on so many bytes here if they are few, else on another thread, and goes on with what comes of it.

    then, fail: called on the event loop with the work's result, or the ServeError that it raises; without fail the
    error is the answer.
    """
    if size > INLINE:
        offload(threads, exchange, work, then, fail)
        return
    try:
        result = work()
    except ServeError as error:
        _fail(exchange, error, fail)
    else:
        then(result)


def offload_json(
    service: Service, exchange: Exchange, size: int, work: partial[Any], then: Then, fail: Fail | None = None
) -> None:
    """Does as `offload_large`, and much of it in another process: to read or write JSON is to hold Python's lock."""
    if size > LEAST:
        offload(service.threads, exchange, partial(service.apart.call, work.func, *work.args), then, fail)
    else:
        offload_large(service.threads, exchange, size, work, then, fail)


def offload(threads: Executor, exchange: Exchange, work: Work, then: Then, fail: Fail | None = None) -> None:
    """Does as `offload_large`, and always on another thread."""

    def ended(future: asyncio.Future[Any]) -> None:
        try:
            result = future.result()
        except ServeError as error:
            _fail(exchange, error, fail)
        except Exception as error:  # a bug, but the client waits for an answer
            say("a request was not understood", Priority.ERROR, error=error)
            _fail(exchange, ServeError(500, f"the server failed: {type(error).__name__}"), fail)
        else:
            then(result)

    def work_if_awaited() -> Any:
        if exchange.answer is not None:
            raise ServeError(503, "the client has gone")  # and what is to be worked on need not be kept
        return work()

    exchange.connection.loop.run_in_executor(threads, work_if_awaited).add_done_callback(ended)


def _fail(exchange: Exchange, error: ServeError, fail: Fail | None) -> None:
    if fail is None:
        exchange.fail(error.status, error.message, error.retry_after)
    else:
        fail(error)

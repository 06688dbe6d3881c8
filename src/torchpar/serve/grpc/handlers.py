"""Answers calls: of one message, or of a stream of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Callable

from torchpar.serve.engine.requests import Response, Ticket
from torchpar.serve.errors import ServeError
from torchpar.serve.grpc import arriving as status
from torchpar.serve.grpc.arriving import MARGIN
from torchpar.serve.grpc.call import Call
from torchpar.serve.grpc.inference import Inference
from torchpar.serve.http.coding import decompress
from torchpar.serve.limits import NOT_TAKEN
from torchpar.serve.protocol.service import Service

# Of one message: its answer. Raises ServeError.
Answer = Callable[["bytes | memoryview", Call], Awaitable[bytes]]

CODES = {
    400: status.INVALID_ARGUMENT,
    403: status.PERMISSION_DENIED,
    404: status.NOT_FOUND,
    413: status.INVALID_ARGUMENT,
    415: status.UNIMPLEMENTED,
    499: status.CANCELLED,
    501: status.UNIMPLEMENTED,
    503: status.UNAVAILABLE,
    504: status.DEADLINE_EXCEEDED,
}


def fail(call: Call, error: ServeError) -> None:
    """Ends a call with an error."""
    call.fail(CODES.get(error.status, status.INTERNAL), error.message, error.retry_after)


@contextmanager
def _told(call: Call) -> Iterator[None]:
    """Ends the call with what goes wrong meanwhile."""
    try:
        yield
    except ServeError as error:
        fail(call, error)
    except Exception as error:  # a bug of ours: the client is told, and the journal has the traceback
        call.fail(status.INTERNAL, f"the server failed: {type(error).__name__}")
        raise


async def _plain(service: Service, call: Call, data: bytes | memoryview, compressed: bool) -> bytes | memoryview:
    if not compressed:
        return data
    limit = call.connection.limits.body + MARGIN
    if call.encoding == "identity":
        raise ServeError(500, "a message is compressed, and grpc-encoding does not say how")
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.threads, decompress, bytes(data), call.encoding, limit)


class Unary:
    """Takes one message and gives one."""

    streams = False

    def __init__(self, call: Call, service: Service, answer: Answer) -> None:
        self._call = call
        self._service = service
        self._answer = answer
        self._asked: tuple[bytes | memoryview, bool] | None = None
        self._busy = False
        self._task: asyncio.Task[None] | None = None

    def wants(self) -> bool:
        """Says yes: of two messages the second is a mistake."""
        return True

    def message(self, data: bytes | memoryview, compressed: bool) -> None:
        """Takes the request."""
        if self._asked is not None:
            self._call.fail(status.UNIMPLEMENTED, "the call takes one message, and there are two")
        self._asked = data, compressed

    def ended(self) -> None:
        """Computes the answer: the request is whole."""
        if self._asked is None:
            self._call.fail(status.INVALID_ARGUMENT, "the call has no message")
        elif not self._busy:
            self._busy = True
            asked, self._asked = self._asked, (b"", False)
            self._begin(*asked)

    def _begin(self, data: bytes | memoryview, compressed: bool) -> None:
        self._task = self._call.connection.loop.create_task(self._run(data, compressed))

    async def _run(self, data: bytes | memoryview, compressed: bool) -> None:
        with _told(self._call):
            self._respond([await self._answer(await _plain(self._service, self._call, data, compressed), self._call)])

    def _respond(self, pieces: Sequence[bytes]) -> None:
        call = self._call
        if call.owe(sum(map(len, pieces))):
            call.respond(pieces)
        else:
            call.fail(status.UNAVAILABLE, NOT_TAKEN, 1.0)

    def sent(self) -> None:
        """Does nothing: the end of the call follows."""

    def drain(self) -> None:
        """Does nothing: the call ends with its answer."""

    def is_busy(self) -> bool:
        """Says whether the answer is being made."""
        return self._busy

    def cancelled(self) -> None:
        """Computes no more."""
        if self._task is not None:
            self._task.cancel()


class Infer(Unary):
    """Answers ModelInfer. Most messages have a form that is known: of these, nothing is awaited but the engine."""

    def __init__(self, call: Call, service: Service, inference: Inference) -> None:
        super().__init__(call, service, self._read_and_compute)
        self._inference = inference
        self._classes: Mapping[str, int] = {}
        self._ticket: Ticket | None = None

    def _begin(self, data: bytes | memoryview, compressed: bool) -> None:
        call = self._call
        try:
            known = None if compressed else self._inference.read_known(data, call.remaining())
            if known is None:
                super()._begin(data, compressed)
            else:
                request, self._classes = known
                self._ticket = self._service.submit(request, self._done)
        except ServeError as error:
            fail(call, error)

    def _done(self, outcome: Response | ServeError) -> None:
        """Takes the engine's answer."""
        self._ticket = None
        if not self._call.over:
            with _told(self._call):
                if isinstance(outcome, ServeError):
                    raise outcome
                self._respond(self._inference.write(outcome, self._classes))

    async def _read_and_compute(self, data: bytes | memoryview, call: Call) -> bytes:
        request, classes = await self._inference.read(data, call.remaining())
        return b"".join(self._inference.write(await self._inference.compute(request), classes))

    def cancelled(self) -> None:
        """Takes the request out of the queue."""
        super().cancelled()
        if self._ticket is not None:
            self._ticket.cancel()


class Stream:
    """Gives one message for each that it takes, in their order; some are computed at the same time.

    During a drain it ends when it has answered all that it has read. `Error`: an answer that says what is wrong.
    """

    streams = True

    def __init__(
        self, call: Call, service: Service, answer: Callable[[bytes | memoryview, Call], Coroutine[Any, Any, bytes]],
        refusal: Callable[[str], bytes],
    ) -> None:  # fmt: skip
        """answer has no errors; refusal makes a message of one."""
        self._call = call
        self._service = service
        self._answer = answer
        self._refusal = refusal
        self._waiting: list[asyncio.Task[tuple[bytes, int]]] = []
        self._owed: list[int] = []  # of answers that were given, and wait to be sent
        self._ended = False
        self._over = False
        self._going_on = False

    def wants(self) -> bool:
        """Says no while as many wait to be computed or taken as may; one always may, else it would never go on."""
        mine, connection = len(self._waiting) + len(self._owed), self._call.connection
        limits = connection.limits
        return mine < limits.pipeline and not self._over and (not mine or connection.working < limits.calls)

    def message(self, data: bytes | memoryview, compressed: bool) -> None:
        """Takes a request, and begins to compute it."""
        connection = self._call.connection
        task = connection.loop.create_task(self._run(data, compressed))
        connection.working += 1
        self._waiting.append(task)
        task.add_done_callback(self._next)

    async def _run(self, data: bytes | memoryview, compressed: bool) -> tuple[bytes, int]:
        call, size = self._call, len(data)
        try:
            answer = await self._answer(await _plain(self._service, call, data, compressed), call)
        except ServeError as error:
            answer = self._refusal(error.message)
        if not call.over:
            call.hold(-size)
        if call.owe(len(answer)):
            return answer, len(answer)
        return self._refusal(NOT_TAKEN), 0

    def _next(self, _: Any) -> None:
        """Gives the answers whose turn it is."""
        call = self._call
        call.connection.working -= 1
        while self._waiting and self._waiting[0].done() and not self._over:
            task = self._waiting.pop(0)
            if task.cancelled():
                continue
            if task.exception() is not None:
                call.fail(status.INTERNAL, f"the server failed: {type(task.exception()).__name__}")
                return
            answer, owed = task.result()
            self._owed.append(owed)
            call.send(answer)
        self._go_on()

    def _go_on(self) -> None:
        if self._over or self._going_on:
            return
        self._going_on = True
        call = self._call
        call.read_on()
        self._going_on = False
        if not self._waiting and (self._ended or call.connection.draining):
            self._over = True
            call.finish(status.OK)

    def ended(self) -> None:
        """Takes note that the client asks for nothing more."""
        self._ended = True
        self._go_on()

    def drain(self) -> None:
        """Ends, where nothing is due."""
        self._go_on()

    def sent(self) -> None:
        """Goes on with the next message: the answers that were given to the call are on their way."""
        while self._owed:
            self._call.settle(self._owed.pop(0))
        self._go_on()

    def is_busy(self) -> bool:
        """Says whether answers are being made."""
        return bool(self._waiting)

    def cancelled(self) -> None:
        """Computes no more."""
        self._over = True
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            task.cancel()

"""One client's connection: requests in, answers out in their order, and everything a client may do wrong.

Requests of one connection are handed on as they come, also while earlier ones wait for their answers (pipelining); the
answers leave in the order of the requests. It knows nothing of models.

    IDLE ──first byte──> HEADER ──> BODY ──whole──> IDLE, or ENDING where the request is the connection's last
    any of them ──a refusal, a drain──> ENDING ──all is taken──> LINGERING or CLOSED

The module is long, for it is this one machine: parser, answers, clock and memory all move it, and each of them asks in
which phase it is.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Any

from torchpar.serve.http.exchange import Exchange
from torchpar.serve.http.parser import BLANK_LINE, Head, Malformed, Parser
from torchpar.serve.http.peer import Peer
from torchpar.serve.http.state import ServerState
from torchpar.serve.http.writing import write_pieces
from torchpar.serve.limits import NOT_HELD, SMALL

# In place of an answer that is written, or that nobody waits for.
GONE: list[Any] = []

# What comes at once is parsed in pieces, for thousands of requests fit what the kernel hands over: up to the end of a
# header, or so many bytes where there is none.
PIECE = 2048

# A chunk of fewer bytes costs more than its bytes do, and several of them as much of a turn as a request.
TINY, OF_A_TURN = 64, 1 / 16


class Phase(enum.Enum):
    """The states of a connection, each by the bytes that it waits for."""

    IDLE = 0  # a request to begin
    HEADER = 1  # the rest of a header
    BODY = 2  # the rest of a body
    ENDING = 3  # nothing more is read; answers that are due are still written
    LINGERING = 4  # all is written; what the client still sends is thrown away
    CLOSED = 5  # over


class Connection(Peer):
    """The asyncio protocol, and what the HTTP parser calls (`on_…`).

    `peer` is the other end's address as accept(2) gave it: a tuple for IP, text or bytes for a Unix socket. The
    transport does not know it of a client that reset its connection before it was accepted. `owed` is how many bytes of
    answers the client has not taken, where they are many.
    """

    __slots__ = (
        "_body_mark",
        "_body_rate",
        "_chunks",
        "_feed_due",
        "_held",
        "_kept",
        "_paused",
        "_paused_at",
        "_phase",
        "_parser",
        "_reading",
        "_rest",
        "_transport",
        "_since",
        "_turn",
        "_unread",
        "_waiting",
        "_write_due",
        "_write_left",
        "deadline",
        "loop",
        "owed",
        "state",
    )

    def __init__(self, state: ServerState, peer: Any) -> None:
        self.state = state
        self.peer = peer
        self.deadline: float | None = None
        self.loop = state.loop
        self._transport: Any = None
        self._parser: Any = None
        self._phase = Phase.IDLE
        self._reading: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._chunks: bytearray | None = None
        self._held = 0
        self._body_mark = 0  # how much of the body there was when it was last looked at
        self._body_rate = 0.0  # what had come in a second until then
        self._paused = False
        self._paused_at = 0.0
        self._unread = False
        self._rest = b""  # what came, and is not parsed yet
        self._feed_due = False
        self._since = 0.0  # when what is waited for began, or came on
        self._turn = 0.0  # requests that were handed on without a pause
        self._write_due: float | None = None
        self._write_left = 0
        self._kept = 0  # bytes of answers whose turn has not come
        self.owed = 0

    # ---- from asyncio ----

    def connection_made(self, transport: Any) -> None:
        """Begins, when a client has connected."""
        self._transport = transport
        self._parser = Parser(self, self.state.limits.header, self.state.heads)
        if not self.state.opened(self):
            transport.abort()
        elif self.state.is_full(self):
            self._refuse(503, f"there are {self.state.limits.connections} connections already", retry_after=1.0)
        else:
            self._since = self.loop.time()
            self.deadline = self._since + self.state.limits.header_seconds

    def data_received(self, data: bytes) -> None:
        """Takes bytes from the client."""
        if self._phase.value >= Phase.ENDING.value:
            self._unread = True
        elif self._rest:
            self._rest += data  # TLS has some more at times, though reading is paused
        else:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        """Parses, until as many requests wait as may, or as many were handed on while others had no turn."""
        limit, size, offset = self.state.limits.pipeline, len(data), 0
        whole = size <= PIECE and data.count(BLANK_LINE) < 2  # one request, as most of the time
        self._turn = 0.0
        try:
            while offset < size and self._turn < limit and not self._is_full():
                end = size if whole else self._piece_end(data, offset)
                self._parser.feed_data(data[offset:end])
                offset = end
                if self._phase.value >= Phase.ENDING.value:
                    break
        except Malformed as error:
            self._refuse(error.status, str(error))
        else:
            self._rest = data[offset:]
        if self._rest or self._is_full():
            self._update_reading()

    def _piece_end(self, data: bytes, offset: int) -> int:
        """Returns the index where parsing stops, to see whether more is wanted: the end of a header, or of a body."""
        exchange = self._reading
        if self._phase is Phase.BODY and exchange is not None:
            # Whole, for what comes in one piece need not be put together.
            due = int(exchange.headers.get(b"content-length", b"0")) - len(exchange.body)
            return min(len(data), offset + (due if due > 0 else PIECE))
        end = data.find(BLANK_LINE, offset, offset + PIECE)
        return end + 4 if end >= 0 else min(len(data), offset + PIECE)

    def _feed_rest(self) -> None:
        self._feed_due = False
        if self._rest and self._phase.value < Phase.ENDING.value and not self._is_full():
            rest, self._rest = self._rest, b""
            self._feed(rest)
            self._update_reading()

    def eof_received(self) -> None:
        """Ends: to HTTP clients the end of input means gone, and their queued requests are not computed."""

    def connection_lost(self, error: Exception | None) -> None:
        """Ends, when the client has gone, or we have closed."""
        self._phase = Phase.CLOSED
        self.deadline = None
        self._release()
        self._reading = None
        self._rest = b""
        self._forget_waiting()
        self._count_owed()
        self.state.closed(self)
        self._parser = None

    def pause_writing(self) -> None:
        """Reads no further requests: the client takes its answers more slowly than they come."""
        self._write_left = self._transport.get_write_buffer_size()
        self._write_due = self.loop.time() + self.state.limits.write_seconds
        self._update_reading()

    def resume_writing(self) -> None:
        """Reads again: the client has caught up."""
        self._write_due = None
        self._count_owed()
        if self._phase is Phase.ENDING and not self._waiting:
            self.loop.call_soon(self._finish)  # not here: the transport is not done with what it has written
        self._update_reading()

    # ---- from the parser ----

    def on_message_begin(self) -> None:
        """Takes note of the first byte of a request."""
        if self._phase is not Phase.IDLE:
            return
        self._phase = Phase.HEADER
        self._reading = Exchange(self)
        self._since = self.loop.time()
        self.deadline = self._since + self.state.limits.header_seconds

    def on_head(self, head: Head) -> None:
        """Checks a whole header: may the body come?"""
        exchange = self._reading
        if self._phase is not Phase.HEADER or exchange is None:
            return
        exchange.method, exchange.target, exchange.version = head.method, head.target, head.version
        exchange.headers, exchange.keep_alive = head.fields, head.keep_alive
        self._phase = Phase.BODY
        self._chunks = None
        if head.length == 0 and b"expect" not in head.fields:
            return
        refusal = self._refusal(head)
        if refusal:
            self._refuse(*refusal)
            return
        self._since = self.loop.time()
        self.deadline = self._since + self.state.limits.body_seconds
        self._body_mark, self._body_rate = 0, float("inf")
        if b"expect" in head.fields and exchange.version == "1.1":
            exchange.continue_due = True
            self._send_continue()

    def _refusal(self, head: Head) -> tuple[int, str] | None:
        """Returns the status and the reason for which a body is refused; None if it is wanted."""
        limits = self.state.limits
        if head.length is not None:
            if head.length > limits.body:
                return 413, f"the body has {head.length} bytes; the limit is {limits.body}"
            if head.length > SMALL and not self.state.may_hold(head.length, self):
                return 503, NOT_HELD
        if head.fields.get(b"expect", b"100-continue").lower() != b"100-continue":
            return 417, "the only Expect here is 100-continue"
        return None

    def on_body(self, body: bytes) -> None:
        """Takes a piece of the body."""
        exchange, state = self._reading, self.state
        if self._phase is not Phase.BODY or exchange is None:
            return
        if self._chunks is None:
            if not exchange.body:
                exchange.body = body
                if len(body) > SMALL:
                    self._hold(len(body))
                return
            # Most bodies come in one piece, which is then the body itself; from the second piece on they are put
            # together.
            self._chunks = exchange.body = bytearray(exchange.body)
            self._hold(len(self._chunks) - self._held)
        self._chunks += body
        self._since = self.loop.time()
        self._hold(len(body))
        if len(body) < TINY:
            self._turn += OF_A_TURN
        size = len(self._chunks)
        if size > state.limits.body:
            self._refuse(413, f"the body is larger than {state.limits.body} bytes")
        elif size > SMALL and not state.may_hold(0, self):
            self._refuse(503, NOT_HELD, retry_after=1.0)

    def on_message_complete(self) -> None:
        """Hands on a request that has come whole."""
        exchange = self._reading
        if self._phase is not Phase.BODY or exchange is None:
            return
        self._reading = None
        self._release()
        if (size := len(exchange.body)) > SMALL:
            exchange.held = size  # it takes memory as long as it is in work, in more forms than one
            self.state.held += size
        exchange.received = self.loop.time()
        exchange.continue_due = False
        self._waiting.append(exchange)
        self._turn += 1
        self.deadline = None
        self._phase = Phase.IDLE if exchange.keep_alive else Phase.ENDING
        try:
            self.state.application(exchange)
        except Exception as error:
            # A bug of ours: the client is told, the journal has the traceback, and the service goes on.
            exchange.fail(500, f"internal error: {type(error).__name__}")
            self.loop.call_exception_handler({"message": "answering a request failed", "exception": error})

    # ---- answers ----

    def answered(self, exchange: Exchange) -> None:
        """Writes what is due: an exchange has its answer."""
        waiting = self._waiting
        if not waiting or waiting[0] is not exchange:
            if waiting and exchange.answer is not None:
                self.keep(exchange, sum(map(len, exchange.answer)))
            return
        while waiting and waiting[0].answer is not None:
            exchange = waiting.popleft()
            if exchange.kept:
                self.keep(exchange, 0)
            write_pieces(self._transport, exchange.answer)
            self.state.finished(exchange)
            if exchange.held:
                self._let_go(exchange)
            # It may be large, and would wait for the garbage collector: `cancel` leads back to the exchange.
            exchange.answer, exchange.cancel = GONE, None
            if not exchange.keep_alive:
                self._phase = Phase.ENDING
                self._forget_waiting()
                waiting = self._waiting
        if self._reading is not None and self._reading.continue_due:
            self._send_continue()
        if self._paused:
            self._count_owed()
            self._update_reading()
        if not waiting:
            if self._phase is Phase.IDLE:
                self._since = self.loop.time()
                self.deadline = self._since + self.state.limits.idle_seconds
            elif self._phase is Phase.ENDING:
                self._finish()

    def is_last(self, exchange: Exchange) -> bool:
        """Says whether the server is stopping and no later request has come or begun; if so, none is read any more."""
        if not self.state.draining:
            return False
        if self._phase is Phase.IDLE and self._waiting and self._waiting[-1] is exchange and not self._rest:
            self._phase = Phase.ENDING
        return self._phase is Phase.ENDING and bool(self._waiting) and self._waiting[-1] is exchange

    def _send_continue(self) -> None:
        """Asks for the body, once every earlier request is answered: it would be taken for one of theirs."""
        if self._reading is not None and not self._waiting:
            self._reading.continue_due = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _end(self) -> None:
        """Reads no more; what is due is still answered."""
        if self._phase.value < Phase.ENDING.value:
            self._phase = Phase.ENDING
            self._release()
            self._reading = None
            self.deadline = None
            if not self._waiting:
                self._finish()

    def _refuse(self, status: int, message: str, retry_after: float | None = None) -> None:
        """Answers what is being read with an error, in its turn, and reads no more."""
        if self._phase.value >= Phase.ENDING.value:
            return
        exchange = self._reading or Exchange(self)
        exchange.keep_alive = False
        exchange.continue_due = False
        exchange.body = b""
        exchange.received = self.loop.time()
        self._release()
        self._reading = None
        self._phase = Phase.ENDING
        self._unread = True
        self.deadline = None
        self._waiting.append(exchange)
        self.state.refused += 1
        exchange.fail(status, message, 1.0 if status == 503 and retry_after is None else retry_after)

    def _finish(self) -> None:
        """Closes, once the client has taken all answers.

        asyncio's own `close` waits for that too, and for ever: here the time to write runs, until nothing is left.

        Closing a socket with unread bytes resets it, and the client then loses the answer that says why: so those
        bytes are read for a while, and thrown away.
        """
        if self._phase is not Phase.ENDING:
            return
        if self._transport.get_write_buffer_size():
            self._transport.set_write_buffer_limits(0)  # pauses writing now, and resumes it when nothing is left
            return
        if not self._unread or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._phase = Phase.LINGERING
        self.deadline = self.loop.time() + self.state.limits.linger_seconds
        self._transport.write_eof()
        self._update_reading()

    def _forget_waiting(self) -> None:
        """Cancels the requests that are not computed yet: no answer is due any more."""
        # Some are answered by their cancellation, at once.
        forgotten, self._waiting = self._waiting, deque()
        self._kept = 0
        for exchange in forgotten:
            exchange.kept = 0
            self._let_go(exchange)
            if exchange.answer is None and exchange.cancel is not None:
                exchange.cancel()
            exchange.answer, exchange.cancel = GONE, None

    # ---- time and memory ----

    def expire(self, now: float) -> None:
        """Closes if the client has been too slow; the server calls it now and then."""
        if self.owed:
            before = self.owed
            self._count_owed()
            if self.owed < before:
                self._since = now
        if self._write_due is not None and now > self._write_due:
            left = self._transport.get_write_buffer_size()
            if left >= self._write_left:
                self._transport.abort()
                return
            self._write_left = left
            self._write_due = now + self.state.limits.write_seconds
        if self.deadline is None or now <= self.deadline or self._paused:
            return
        if self._phase is Phase.BODY and self._reading is not None:
            size, limits = len(self._reading.body), self.state.limits
            if size - self._body_mark >= limits.body_rate * limits.body_seconds:
                self._body_rate = (size - self._body_mark) / limits.body_seconds
                self._body_mark, self.deadline = size, now + limits.body_seconds
                return
        if self._phase is Phase.HEADER or self._phase is Phase.BODY:
            what = "header" if self._phase is Phase.HEADER else "body"
            self._refuse(408, f"the request's {what} did not come in time")
        else:
            self._close()

    def _close(self) -> None:
        """Closes at once, whatever is left to read or to be taken: asyncio's own `close` would wait for that."""
        if self._phase is not Phase.IDLE or self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def waits_since(self) -> float | None:
        """Returns since when the client has owed a request, more of one, or the taking of an answer."""
        return None if self._waiting or self.deadline is None or self._phase.value > Phase.BODY.value else self._since

    def arriving(self, now: float) -> tuple[int, float] | None:
        """Returns the bytes of a large unfinished body so far, and lately in a second; None if there is none."""
        if self._phase is not Phase.BODY or self._reading is None or self.deadline is None or self._held <= SMALL:
            return None
        looked = self.deadline - self.state.limits.body_seconds
        if now - looked < self.state.limits.body_seconds / 10:
            return self._held, self._body_rate
        return self._held, (len(self._reading.body) - self._body_mark) / (now - looked)

    def give_up(self) -> None:
        """Refuses the body that is not whole, for its memory is wanted."""
        self._refuse(503, NOT_HELD)

    def make_way(self) -> None:
        """Closes, for another client has no room."""
        self.deadline = None
        self._close()

    def abort(self) -> None:
        """Cuts it off."""
        self._transport.abort()

    def drain(self) -> None:
        """Closes if nothing is being read or waits; otherwise the next answer is the last."""
        if self._phase is Phase.IDLE and not self._waiting and not self._rest:
            self._end()

    def _is_full(self) -> bool:
        """Says whether to read no more requests: as many wait as may, or the client does not read."""
        return self._write_due is not None or len(self._waiting) >= self.state.limits.pipeline

    def _update_reading(self) -> None:
        """Reads on or not: neither more requests than may wait, nor any while the client does not read."""
        if self._phase.value >= Phase.ENDING.value:
            self._rest = b""
        pause = self._is_full()
        if self._rest:
            if not pause and not self._feed_due:
                # Not here: this is called while answers are written, and others want their turn.
                self._feed_due = True
                self.loop.call_soon(self._feed_rest)
            pause = True
        if pause == self._paused or self._phase is Phase.CLOSED:
            return
        self._paused = pause
        if pause:
            self._paused_at = self.loop.time()
            self._transport.pause_reading()
        else:
            if self.deadline is not None:  # what was not read could not come in time
                self.deadline += self.loop.time() - self._paused_at
            self._transport.resume_reading()

    def keep(self, exchange: Exchange, size: int) -> None:
        """Counts bytes that wait for this answer's turn, or to be written as JSON."""
        self._kept += size - exchange.kept
        exchange.kept = size
        self._count_owed()

    def may_owe(self, size: int) -> bool:
        """Says whether an answer of `size` bytes may wait until the client takes it."""
        return not self.state.owed or self.state.may_owe(size, self.owed)

    def status_line(self, status: int) -> bytes:
        """See ServerState.status_line."""
        return self.state.status_line(status)

    def _count_owed(self) -> None:
        owed = 0
        if self._phase is not Phase.CLOSED:
            owed = self._kept + int(self._transport.get_write_buffer_size())
        self.state.owed += owed - self.owed
        self.owed = owed

    def _let_go(self, exchange: Exchange) -> None:
        self.state.held -= exchange.held
        exchange.held, exchange.body = 0, b""

    def _hold(self, size: int) -> None:
        self._held += size
        self.state.held += size

    def _release(self) -> None:
        self.state.held -= self._held
        self._held = 0
        self._chunks = None

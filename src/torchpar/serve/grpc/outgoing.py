"""Sends what a connection has to send: answers in turn, within the client's windows, and no more than it takes."""

from __future__ import annotations

from collections import deque
from typing import Any

from torchpar.serve.grpc import frames, hpack
from torchpar.serve.grpc.call import Call
from torchpar.serve.http.peer import Peer
from torchpar.serve.http.state import ServerState
from torchpar.serve.limits import ALLOWANCE, SMALL

# Bytes of one frame at the most.
FRAME = 128 * 1024

# What a connection gains of its allowance by a call that has ended, or a message, and by how many bytes that it takes.
PER_ANSWER = 64
PER_BYTES = 2048


class Outgoing(Peer):
    """`window` and those of calls are what the client allows to be sent; `owed` and `held` the bytes of answers
    and of requests that wait."""

    def __init__(self, state: ServerState, peer: Any) -> None:
        self.state = state
        self.peer = peer
        self.limits = state.limits
        self.loop = state.loop
        self.calls: dict[int, Call] = {}
        self.newest = 0  # the last call that was begun
        self.owed = 0
        self.held = 0
        self.working = 0  # messages of streams that are being computed
        self.closed = False
        self.draining = False
        self.window = frames.FIRST_WINDOW
        self.first_window = frames.FIRST_WINDOW
        self.frame_size = frames.FIRST_FRAME
        self.write_paused = False
        self.reading_paused = False
        self._has_table = True  # for headers; nothing is ever in it
        self._block_begin = b""
        self.allowance = float(ALLOWANCE)
        self.last_active = self.loop.time()
        self._transport: Any = None
        self._ready: deque[Call] = deque()
        self._corked: list[bytes] | None = None
        self._gathered = 0  # bytes of answers in it
        self._sent = 0  # bytes, to the transport
        self._taken_before = 0
        self._slow: float | None = None  # since when something waits, and how much was taken is looked at

    # ---- bytes ----

    def write(self, data: bytes) -> None:
        """Sends some bytes, now or with others."""
        if self._corked is not None:
            self._corked.append(data)
        elif not self.is_gone():
            self._sent += len(data)
            self._transport.write(data)

    def _write(self, data: bytes) -> None:
        self._sent += len(data)
        self._transport.write(data)

    def is_gone(self) -> bool:
        """Says whether the connection is closed: asyncio writes a line to the journal for each write tried then."""
        return self.closed or self._transport.is_closing()

    def cork(self) -> None:
        """Keeps what is written, until `uncork`."""
        if self._corked is None:
            self._corked, self._gathered = [], 0

    def gather(self, size: int) -> None:
        """Keeps what is written until the turn of the loop is over, where more answers may be on their way.

        A batch is answered in one turn: what there is of its answers leaves together, at the cost of one. No more is
        kept than the transport would keep, for only that says when the client must be waited for.
        """
        if self._corked is not None and self._gathered + size > SMALL:
            self.uncork()
        if self._corked is None and len(self.calls) > 1:
            self.cork()
            self.loop.call_soon(self.uncork)
        self._gathered += size

    def uncork(self) -> None:
        """Sends what was kept, and what is ready."""
        kept, self._corked = self._corked, None
        if kept and not self._transport.is_closing():
            self._write(b"".join(kept))
        if self._ready:
            self.pump()

    def give_up_table(self) -> None:
        """Says in the next header that our table is empty: the client has room for a smaller one only."""
        if self._has_table:
            self._has_table, self._block_begin = False, hpack.NO_TABLE

    def block(self, block: bytes) -> bytes:
        """Returns a header block as it is to be sent next."""
        if self._block_begin:
            block, self._block_begin = self._block_begin + block, b""
        return block

    # ---- answers ----

    def may_send(self, call: Call, size: int) -> bool:
        """Says whether `size` bytes of a call can go at once, before those of others."""
        return size <= self.window and size <= call.window and not self.write_paused

    def may_owe(self, size: int) -> bool:
        """Says whether an answer of `size` bytes may wait to be taken: a small one, unless there are very many."""
        if size <= SMALL and self.owed <= self.state.small_each():
            return True
        return self.state.may_owe(max(size, SMALL + 1), self.owed)

    def count_owed(self, size: int) -> None:
        """Counts `size` bytes of answers that wait more, or less."""
        self.owed += size
        self.state.owed += size

    def may_hold(self, missing: int, whole: int) -> bool:
        """Says whether the other `missing` bytes of a message of `whole` bytes may come."""
        if whole <= SMALL and self.held <= self.state.small_each():
            return True
        return self.state.may_hold(missing)

    def hold(self, size: int) -> None:
        """Counts `size` bytes of requests that are kept more, or less."""
        self.held += size
        self.state.held += size

    def sends(self, call: Call) -> None:
        """Gives a call its turn: it has something to send, or its end."""
        if call.blocked is None:
            self.queue(call)
        self.pump()

    def queue(self, call: Call) -> None:
        """Gives a call its turn."""
        if not call.queued:
            call.queued = True
            self._ready.append(call)

    def pump(self) -> None:
        """Sends what may be sent, a frame of each call in turn."""
        if self._corked is not None:
            return
        while self._ready and not self.write_paused and not self.is_gone():
            call = self._ready.popleft()
            left = call.unsent()
            if left:
                size = min(left, self.window, call.window, self.frame_size)
                if self.window <= 0:
                    self._ready.appendleft(call)
                    return
                if size <= 0:
                    call.queued, call.blocked = False, self.loop.time()
                    continue
                self.window -= size
                call.window -= size
                left -= size
                self.earn(size / PER_BYTES)
                self._write(frames.head(frames.DATA, 0, call.number, size) + call.take(size))
            if left:
                self._ready.append(call)
                continue
            call.queued = False
            if call.last is not None:
                flags = frames.END_HEADERS | frames.END_STREAM
                self._write(frames.frame(frames.HEADERS, flags, call.number, self.block(call.last)))
                self.forget(call)
            else:
                self.earn(PER_ANSWER)
                call.sent()

    def forget(self, call: Call) -> None:
        """Forgets a call that has its answer."""
        self.calls.pop(call.number, None)
        call.handler = None  # it has done its part
        if not call.drop():
            self.write(frames.reset(call.number, frames.NO_ERROR))
        self.earn(PER_ANSWER)

    def earn(self, size: float) -> None:
        """Lets the client ask for more that costs work: it has taken an answer, or a part of one."""
        self.allowance = min(self.allowance + size, ALLOWANCE)
        self.last_active = self.loop.time()

    def reset(self, call: Call, code: int) -> None:
        """Ends a call without an answer."""
        self.calls.pop(call.number, None)
        call.drop()
        self.write(frames.reset(call.number, code))

    # ---- the end ----

    def expire(self, now: float) -> None:
        """Ends calls, or the connection, if the client does not take what there is for it; called now and then."""
        for call in tuple(self.calls.values()):
            call.expire(now)
        left = self._transport.get_write_buffer_size()
        if not (left or self._ready or any(call.blocked is not None for call in self.calls.values())):
            self._slow = None
            return
        taken = self._sent - left
        if self._slow is None:
            self._slow, self._taken_before = now, taken
        elif now > self._slow + self.limits.write_seconds:
            if taken - self._taken_before < self.limits.body_rate * self.limits.body_seconds:
                self._cut_off(self._slow, left)
            self._slow, self._taken_before = now, taken

    def _cut_off(self, since: float, left: int) -> None:
        """Ends what has waited since then, for too little was taken: the connection, or calls it has no window for."""
        if left or self._ready:
            self.abort()
            return
        for call in tuple(self.calls.values()):
            if call.blocked is not None and call.unsent_since is not None and call.unsent_since <= since:
                self.reset(call, frames.CANCEL)

    def start_drain(self) -> None:
        """Tells the client to make its further calls elsewhere; those that are on their way are still answered."""
        if not self.draining and not self.closed:
            self.draining = True
            self.write(frames.goaway(frames.LARGEST, frames.NO_ERROR))
            for call in tuple(self.calls.values()):
                call.drain()

    def drain(self) -> None:
        """Closes, once nothing is due."""
        self.start_drain()
        for call in tuple(self.calls.values()):
            call.drain()  # it may have been begun since
        if not self.calls:
            self.close(frames.NO_ERROR)

    def close(self, code: int, message: str = "") -> None:
        """Says why, and ends the connection; what was sent is still taken."""
        if not self.closed:
            self.write(frames.goaway(self.newest, code, message))
            if self._corked is not None:
                kept, self._corked = self._corked, []
                self._transport.write(b"".join(kept))
            self.drop_calls()
            self._transport.close()
            # A client that takes nothing of it would keep the connection.
            self.loop.call_later(self.limits.linger_seconds, self._transport.abort)

    def abort(self) -> None:
        """Cuts it off."""
        self.drop_calls()
        self._transport.abort()

    def drop_calls(self) -> None:
        """Answers nothing any more."""
        self.closed = True
        self._ready.clear()
        for call in tuple(self.calls.values()):
            call.drop()
        self.calls.clear()

"""The lines about requests: slow ones always, all of them if asked for."""

from __future__ import annotations

from typing import Callable

from torchpar.contract.journal import say
from torchpar.serve.http.exchange import Exchange

# A service that is slow is slow for every request; its journal must not become the next problem.
SLOW_LINES_PER_SECOND = 5


class RequestLog:
    """Writes lines about requests: slow ones, or all of them where `every` is set (the access log).

    `slow_seconds` count from the whole request to its answer.
    """

    def __init__(self, slow_seconds: float, every: bool = False, write: Callable[[str], None] = say) -> None:
        self.slow_seconds = slow_seconds
        self.every = every
        self._write = write
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def set_every(self, every: bool) -> None:
        """Switches the access log."""
        self.every = every

    def finished(self, exchange: Exchange, seconds: float) -> None:
        """Notes that a request has its answer, `seconds` after it came."""
        if seconds < self.slow_seconds and not self.every:
            return
        if not self.every and not self._may_write(int(exchange.received)):
            self._left_out += 1
            return
        slow = "slow: " if seconds >= self.slow_seconds else ""
        more = f"; {self._left_out} more were slow" if self._left_out else ""
        self._left_out = 0
        self._write(f"{slow}{describe(exchange)} {seconds * 1000:.1f} ms{more}")

    def _may_write(self, second: int) -> bool:
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= SLOW_LINES_PER_SECOND


def describe(exchange: Exchange) -> str:
    """Describes a request by method, target and sizes.

    A client's bytes never reach the journal as they are: they could forge lines.
    """
    method = exchange.method.decode("ascii", "replace") or "-"
    target = exchange.target[:200].decode("ascii", "backslashreplace")
    target = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in target) or "-"
    size = sum(map(len, exchange.answer or ()))
    return f"{method} {target} {exchange.status}, {len(exchange.body)} bytes in, {size} out,"

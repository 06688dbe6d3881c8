"""One request and its answer."""

from __future__ import annotations

import json
import math
from asyncio import AbstractEventLoop
from typing import Any, Callable, Protocol, Union

from torchpar.serve.http.local import is_local
from torchpar.serve.limits import NOT_TAKEN

Body = Union[bytes, bytearray]

REASONS = {
    200: b"OK",
    303: b"See Other",
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}

JSON = b"application/json"
BINARY = b"application/octet-stream"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
HTML = b"text/html; charset=utf-8"


class Client(Protocol):
    """The connection that a request came by, and that its answer leaves by.

    `peer` is the other end's address as accept(2) gave it.
    """

    peer: Any
    loop: AbstractEventLoop

    def answered(self, exchange: Exchange) -> None:
        """Writes what is due: an exchange has its answer."""

    def is_last(self, exchange: Exchange) -> bool:
        """Says whether the connection ends with this answer, for the server is stopping."""

    def keep(self, exchange: Exchange, size: int) -> None:
        """Counts so many bytes that wait for this answer's turn, or to be written as JSON."""

    def may_owe(self, size: int) -> bool:
        """Says whether an answer of `size` bytes may wait until the client takes it."""

    def status_line(self, status: int) -> bytes:
        """Returns the status line and the Date field."""


class Exchange:
    """A request that has come whole, and where its answer goes.

    `target` is as the client sent it; `headers` has lower-case names, the last of several with one name. `held` is how
    many bytes of its body count as held until it is answered. `received` is
    the event loop's time in seconds. `answer` is None until there is one, then the pieces to write. `cancel` is called
    when the client has gone before its answer. `traced` is set for requests that trace settings choose: model, id, and
    when the engine had it.
    """

    __slots__ = (
        "answer",
        "body",
        "cancel",
        "connection",
        "continue_due",
        "headers",
        "held",
        "keep_alive",
        "kept",
        "method",
        "received",
        "status",
        "target",
        "traced",
        "version",
    )

    def __init__(self, connection: Client) -> None:
        self.connection = connection
        self.target = b""
        self.method = b""
        self.version = "1.1"
        self.headers: dict[bytes, bytes] = {}
        self.body: Body = b""
        self.keep_alive = True
        self.continue_due = False
        self.received = 0.0
        self.status = 0
        self.answer: list[Any] | None = None
        self.held = 0
        self.kept = 0
        self.traced: tuple[str, str, float] | None = None
        self.cancel: Callable[[], None] | None = None

    @property
    def path(self) -> str:
        """Returns the target without its query, percent signs still in it."""
        path = self.target.partition(b"?")[0]
        if not path.startswith(b"/") and path[:8].lower().startswith((b"http://", b"https://")):
            # The absolute form, which a server must accept: RFC 9112, 3.2.2.
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        return path.decode("ascii", "backslashreplace")

    def is_local(self) -> bool:
        """Says whether it comes from this host, by loopback or a Unix socket, not through a proxy or a web page."""
        return is_local(self.connection.peer, self.headers)

    def send(self, status: int, head: bytes, *body: Any) -> None:
        """Answer. `head` holds the header fields, each with its line end, Content-Length among them; the pieces of the
        body are bytes-like."""
        if self.answer is not None:
            return
        if self.kept:
            self.connection.keep(self, 0)
        if self.method == b"HEAD":
            body = ()
        if not self.may_wait(sum(map(len, body))):
            return
        self.status = status
        self.answer = [self.connection.status_line(status), head, self.connection_field(), b"\r\n", *body]
        self.connection.answered(self)

    def expect(self, size: int) -> bool:
        """Says whether an answer of `size` bytes may wait to be written as JSON, or compressed; if not, answers 503."""
        if self.answer is not None or not self.may_wait(size):
            return False
        self.connection.keep(self, size)
        return True

    def may_wait(self, size: int) -> bool:
        """Says whether an answer of `size` bytes may wait until the client takes it; if not, answers 503."""
        if not self.connection.may_owe(size):
            self.fail(503, NOT_TAKEN, 1.0)
            return False
        return True

    def connection_field(self) -> bytes:
        """Returns the Connection field, "" where it would say nothing."""
        if self.connection.is_last(self):
            self.keep_alive = False
        if not self.keep_alive:
            return b"Connection: close\r\n"
        return b"" if self.version == "1.1" else b"Connection: keep-alive\r\n"

    def respond(self, status: int, kind: bytes, body: bytes, *fields: bytes) -> None:
        """Answers with a body of one piece; `fields` are further header fields without line ends."""
        more = b"".join(field + b"\r\n" for field in fields)
        head = b"Content-Type: %b\r\nContent-Length: %d\r\n%b" % (kind, len(body), more)
        self.send(status, head, body)

    def respond_json(self, value: Any, status: int = 200, *fields: bytes) -> None:
        """Answers with JSON."""
        self.respond(status, JSON, json.dumps(value).encode(), *fields)

    def fail(self, status: int, message: str, retry_after: float | None = None, *fields: bytes) -> None:
        """Answers with an error as clients of the protocol read it; `retry_after` is in seconds."""
        if retry_after is not None:
            # Whole seconds is all that the field can say (RFC 9110, 10.2.3); never 0, which invites a storm.
            fields = (b"Retry-After: %d" % max(1, math.ceil(retry_after)), *fields)
        self.respond_json({"error": message}, status, *fields)

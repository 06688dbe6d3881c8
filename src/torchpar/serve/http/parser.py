"""The HTTP/1 parser: httptools where the interpreter has it, else h11. Neither is written by us.

Both are driven through the callbacks of httptools (`on_url`, `on_header`, …), of which 0.1.1, Debian's, and the newest
release have the same set. h11, pure Python, takes three times as long for a request and is complete.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any, Callable, Protocol

try:
    import httptools
except ImportError:
    httptools = None

# python3-h11 puts it there. It is pure Python, of one package, and needs nothing.
DEBIAN_H11 = "/usr/lib/python3/dist-packages/h11"


def import_h11(directory: str = DEBIAN_H11) -> Any:
    """h11 of this interpreter, else Debian's, None where neither is.

    A virtual environment does not see Debian's packages, and must not see all of them for the sake of one: only this
    one is taken from there.
    """
    try:
        return importlib.import_module("h11")
    except ImportError:
        pass
    path = os.path.join(directory, "__init__.py")
    spec = importlib.util.spec_from_file_location("h11", path, submodule_search_locations=[directory])
    if spec is None or spec.loader is None or not os.path.exists(path):
        return None
    module = importlib.util.module_from_spec(spec)
    # Its parts import each other by this name.
    sys.modules["h11"] = module
    spec.loader.exec_module(module)
    return module


h11 = None if httptools is not None else import_h11()


class Malformed(Exception):
    """What came is not HTTP/1. `status` is what to answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Upgraded(Exception):
    """The parser takes what follows for another protocol: `read` bytes were HTTP.

    Either the request's header offers one (`should_upgrade`), and a body was not looked for, or it is a CONNECT.
    """

    def __init__(self, read: int) -> None:
        super().__init__(read)
        self.read = read


class Events(Protocol):
    """What a parser calls, in this order, for each request."""

    def on_message_begin(self) -> None:
        """The first byte of a request."""

    def on_url(self, url: bytes) -> None:
        """A piece of the request target; the whole of it in most cases."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""

    def on_headers_complete(self) -> None:
        """The end of the header."""

    def on_body(self, body: bytes) -> None:
        """A piece of the body, without the framing of chunks."""

    def on_message_complete(self) -> None:
        """The end of the request."""


class Parser(Protocol):
    """One connection's parser."""

    def feed_data(self, data: bytes) -> None:
        """Parse what came; raises Malformed or Upgraded."""

    def get_method(self) -> bytes:
        """The method of the request that is being parsed."""

    def get_http_version(self) -> str:
        """ "1.0" or "1.1"."""

    def should_keep_alive(self) -> bool:
        """Whether the client allows another request on this connection."""

    def should_upgrade(self) -> bool:
        """Whether the parser gives up at the end of this header, for it offers another protocol."""


class H11Parser:
    """h11 with the face of httptools."""

    def __init__(self, events: Events, header_limit: int) -> None:
        self._h11 = h11 or import_h11()
        self._events = events
        self._limit = header_limit
        self._method = b""
        self._version = "1.1"
        self._keep_alive = True
        self._connection = self._new()
        self._begun = False
        self._ended = False

    def _new(self) -> Any:
        return self._h11.Connection(self._h11.SERVER, max_incomplete_event_size=self._limit)

    def get_method(self) -> bytes:
        """The method of the request that is being parsed."""
        return self._method

    def get_http_version(self) -> str:
        """ "1.0" or "1.1"."""
        return self._version

    def should_keep_alive(self) -> bool:
        """Whether the client allows another request on this connection."""
        return self._keep_alive

    def should_upgrade(self) -> bool:
        """Never: h11 reads the body of a request that offers another protocol."""
        return False

    def feed_data(self, data: bytes) -> None:
        """Parse what came; raises Malformed."""
        if self._ended:
            return
        try:
            self._connection.receive_data(data)
            if not self._begun and data.strip(b"\r\n"):
                self._begun = True
                self._events.on_message_begin()
            while self._next():
                pass
        except self._h11.RemoteProtocolError as error:
            raise Malformed(str(error), error.error_status_hint) from None

    def _next(self) -> bool:
        """One event; False when more bytes are needed."""
        event = self._connection.next_event()
        if event is self._h11.NEED_DATA or event is self._h11.PAUSED:
            return False
        if isinstance(event, self._h11.Request):
            self._start(event)
        elif isinstance(event, self._h11.Data):
            self._events.on_body(bytes(event.data))
        elif isinstance(event, self._h11.EndOfMessage):
            self._events.on_message_complete()
            # A connection object that was never told of an answer reads no second request: take a new one for it.
            rest = self._connection.trailing_data[0]
            self._connection, self._begun = self._new(), False
            if not self._keep_alive:
                self._ended = True
                return False
            if rest:
                self._connection.receive_data(rest)
                if rest.strip(b"\r\n"):
                    self._begun = True
                    self._events.on_message_begin()
            return bool(rest)
        return True

    def _start(self, request: Any) -> None:
        self._method = bytes(request.method)
        self._version = request.http_version.decode("ascii")
        options = {
            option.strip().lower()
            for name, value in request.headers
            if name == b"connection"
            for option in value.split(b",")
        }
        self._keep_alive = b"close" not in options and (self._version != "1.0" or b"keep-alive" in options)
        if self._method == b"CONNECT":
            self._keep_alive = False  # what follows is not HTTP, whatever the answer
        self._events.on_url(bytes(request.target))
        for name, value in request.headers:
            self._events.on_header(bytes(name), bytes(value))
        self._events.on_headers_complete()


class HttptoolsParser:
    """httptools, with its exceptions turned into ours."""

    def __init__(self, events: Events, header_limit: int) -> None:
        parser = httptools.HttpRequestParser(events)
        self._feed = parser.feed_data
        self.get_method = parser.get_method
        self.get_http_version = parser.get_http_version
        self.should_keep_alive = parser.should_keep_alive
        self.should_upgrade = parser.should_upgrade

    def feed_data(self, data: bytes) -> None:
        """Parse what came; raises Malformed or Upgraded."""
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade as offer:
            raise Upgraded(offer.args[0]) from None
        except httptools.HttpParserCallbackError as error:
            # A mistake of ours in a callback, not the client's.
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            raise Malformed(str(error) or "not a valid HTTP request") from None


def choose_parser() -> Callable[[Events, int], Parser]:
    """The parser that this interpreter has; raises ImportError where it has none."""
    if httptools is not None:
        return HttptoolsParser
    if h11 is not None:
        return H11Parser
    raise ImportError("there is neither httptools nor h11 to read HTTP with; install one: apt install python3-h11")

"""Serves metrics over HTTP to Prometheus: one page, few connections, each for a short time."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

# A limit for each read alone would let a client that says a letter now and then stay for ever.
_SECONDS = 10.0
# At a time; Prometheus needs one.
CONNECTIONS = 16
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer(socketserver.ThreadingTCPServer):
    """Answers GET /metrics with what `render` returns. Raises OSError where the address cannot be had.

    A connection is cut after so many `seconds`, whatever it still says.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], render: Callable[[], str], seconds: float = _SECONDS) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.render = render
        self._seconds = seconds
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: object, client_address: object) -> None:
        """Takes a connection, or closes it where as many are open as may be."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)  # type: ignore[arg-type]
        else:
            self.shutdown_request(request)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Serves a connection, and makes room for the next."""
        end = threading.Timer(self._seconds, _cut, (request,))
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of a client that has gone or been too slow."""


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    server_version, sys_version = "torchpar", ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path != "/metrics":
            self.send_error(404, "see /metrics")
            return
        body = self.server.render().encode()
        self.send_response(200)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Writes no line for a request."""

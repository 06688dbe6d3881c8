"""Bounds what one client, and all of them together, may take of the server."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace

KIB = 1024
MIB = 1024 * KIB

# Requests and answers up to this size are always taken and given: a connection's socket holds as much.
SMALL = 64 * KIB

# Messages of a connection of gRPC, however small each is, that are held without a look at what all hold; and of all
# connections of a process together.
MANY_SMALL, ALL_SMALL = 4 * SMALL, 256 * MIB

# JSON that loads a model or sets something.
ORDER = 128 * KIB

# Inputs and outputs of a request, parameters of it or of one tensor, and characters of one of their names or of its id:
# more is read for nothing, and goes through the process that serves.
MAX_NAMES = 4096
MAX_TEXT = 64 * KIB

# JSON that other processes read or write at the same time, beside one piece of any size: as values it takes up to 24
# times as many bytes.
ROOM = 16 * MIB

# Chunks of a body may be small as long as they are few: so many bytes of framing, and then a share of the body's.
FRAMING = 64 * KIB
FRAMING_SHARE = 4

# What a connection of gRPC may ask for that is no call: it begins with so much and never has more.
ALLOWANCE = 500

# Of one of very many processes.
LEAST_CONNECTIONS = 256

NOT_HELD = "the server holds as many requests as it may; try again"
NOT_TAKEN = "clients have not taken as many bytes of their answers as may wait; try again"


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds.

    A request that is over one of them is answered (408, 413, 431, 503) and costs its connection, not the service.
    The first, `held` and `owed` are of all processes of the service together, see `part`.
    """

    # Open at the same time; one more gets 503. As many as requests may wait for a model: most clients have a connection
    # for each that waits, and a burst of them is no fault.
    connections: int = 8192
    files: int | None = None  # that each process may open; None: any number
    header: int = 32 * KIB  # request line and all header fields of one request
    body: int = 64 * MIB  # one request's body, as sent and after decompression
    json: int = 16 * MIB  # JSON in a body: parsed, it takes up to 24 times its size
    held: int = 512 * MIB  # bodies of all connections together, while they arrive
    owed: int = 512 * MIB  # answers of all connections together that wait to be taken; a large one more is 503 instead
    owed_each: int = 64 * MIB  # and of one connection, beside a single answer of any size
    calls: int = 128  # of gRPC on one connection at the same time; clients wait with further ones
    call_window: int = 4 * MIB  # of one call that may be on its way to us
    connection_window: int = 16 * MIB  # and of all calls of a connection
    pipeline: int = 32  # requests of one connection that wait for their answers; further ones are not read
    header_seconds: float = 10.0  # from the first byte of a request to the end of its header
    body_seconds: float = 10.0  # for a body to come, or to come on
    body_rate: int = 16 * KIB  # bytes per second at the least, over each of these times
    quick_rate: int = MIB  # bytes per second; slower bodies are given up where no more may be held
    idle_seconds: float = 75.0  # between two requests of a connection
    write_seconds: float = 30.0  # a client that takes nothing of its answer for so long is gone
    linger_seconds: float = 2.0  # to read what a refused client still sends, so that it can read why

    def part(self, processes: int) -> Limits:
        """Returns what one of so many processes may take: its part, but of bytes at least a single body or answer.

        Half of the files that it may open are for connections: those who are told to go have as many again.
        """
        connections = max(self.connections // processes, min(self.connections, LEAST_CONNECTIONS))
        return replace(
            self,
            connections=connections if self.files is None else max(1, min(connections, self.files // 2)),
            held=max(self.held // processes, min(self.held, self.body)),
            owed=max(self.owed // processes, min(self.owed, self.owed_each)),
        )


def own_limits() -> Limits:
    """Returns the limits that hold where a process may open as many files as this one."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits(files=None if files == resource.RLIM_INFINITY else files)

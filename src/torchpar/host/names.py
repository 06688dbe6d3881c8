"""Asks the resolver for the addresses of a host's name, for a moment."""

from __future__ import annotations

import socket

from torchpar.host.reading import NotReadableError, Reader

# A name server that is there answers sooner; the resolver itself would wait for ten seconds.
_SECONDS = 0.5


def resolve(name: str) -> tuple[str, ...] | None:
    """Returns the addresses of a name, none where it has none; None where nobody answers in time."""
    try:
        found = Reader(_SECONDS).do(lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
    except socket.gaierror as error:
        return None if error.errno == socket.EAI_AGAIN else ()
    except (OSError, UnicodeError, NotReadableError):
        return None
    return tuple(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))

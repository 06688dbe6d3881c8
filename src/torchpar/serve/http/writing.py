"""An answer's pieces, as they are handed to the transport."""

from __future__ import annotations

from typing import Any

# Joined, small pieces cost one system call and one copy; a large one is written by itself, without the copy.
JOIN_LIMIT = 64 * 1024


def write_pieces(transport: Any, pieces: Any) -> None:
    """Writes them; of the last one it is seen whether they are small, for that is the body."""
    if len(pieces[-1]) <= JOIN_LIMIT:
        transport.write(b"".join(pieces))
        return
    small: list[Any] = []
    for piece in pieces:
        if len(piece) <= JOIN_LIMIT:
            small.append(piece)
            continue
        if small:
            transport.write(b"".join(small))
            small = []
        transport.write(memoryview(piece))  # of bytes the transport would copy what the kernel does not take
    if small:
        transport.write(b"".join(small))

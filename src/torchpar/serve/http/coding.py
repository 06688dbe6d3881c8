"""Compressed bodies: gzip and deflate, in both directions. Bounded, and never on the event loop's thread."""

from __future__ import annotations

import gzip
import zlib

from torchpar.serve.errors import ServeError

# Below this, compressed answers are hardly smaller and cost more than they save.
LEAST = 1024


def decompress(body: bytes | bytearray, coding: str, limit: int) -> bytes:
    """Decompresses a body. Raises ServeError: 413 above `limit` bytes, 400 if it is damaged."""
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ServeError(415, f"Content-Encoding {coding[:40]!r} is not gzip, deflate or identity")
    # 32: zlib's or gzip's header, whichever is there. Some clients leave zlib's away, against RFC 9110.
    raw = coding == "deflate" and (not body or body[0] & 0x0F != 8 or int.from_bytes(body[:2], "big") % 31 != 0)
    decoder = zlib.decompressobj(-zlib.MAX_WBITS if raw else 32 + zlib.MAX_WBITS)
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error:
        raise ServeError(400, f"the body is not valid {coding}") from None
    if len(plain) > limit:
        raise ServeError(413, f"the body is larger than {limit} bytes after decompression")
    if not decoder.eof or decoder.unused_data:
        raise ServeError(400, f"the body is not valid {coding}: it ends too early, or too late")
    return plain


def wanted_coding(accepted: bytes) -> str:
    """Returns the coding that an Accept-Encoding asks for, "" for none.

    Some HTTP libraries name all that they understand in every request; compressing every answer for them would cost
    more than it saves on most networks. A client that names one only means it.
    """
    text = accepted.strip().lower()
    return text.decode() if text in (b"gzip", b"deflate") else ""


def compress(body: bytes, coding: str) -> bytes:
    """Compresses a body in a coding that `wanted_coding` has named."""
    return gzip.compress(body, 1) if coding == "gzip" else zlib.compress(body, 1)

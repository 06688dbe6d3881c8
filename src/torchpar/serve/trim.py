"""Memory that was needed once, given back to the system."""

from __future__ import annotations

import ctypes

# glibc keeps what it once had for large blocks: after so many bytes it is told to give it back. Other allocators do so
# by themselves, and where one of those is preloaded, glibc's has nothing.
TRIM_FROM = 64 << 20
trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)  # other C libraries have none

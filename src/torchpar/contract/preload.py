"""Names what a unit, its job and torchpard tell each other about the malloc that torchpar preloads.

A preloaded malloc can kill a job by what nobody sees before: a handle of libc itself whose free() is glibc's, or a
library that needs a newer libstdc++ than the one that came with it. Such a job is started once more without it.
"""

from __future__ import annotations

from collections.abc import Mapping

# Beside LD_PRELOAD in a unit, with the same text: that one is torchpar's, and not set by Environment=.
VARIABLE = "TORCHPAR_PRELOAD"

# In a job that runs without it: why.
WITHOUT = "TORCHPAR_WITHOUT_PRELOAD"

# mallopt(3): keep blocks below 1 GiB on the heap and do not trim it; no page faults in a steady state.
GLIBC_THRESHOLDS = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
    "MALLOC_TOP_PAD_": "67108864",
}


def preloaded(environ: Mapping[str, str]) -> str:
    """Returns the library that torchpar preloads in a process with these variables; "" for none."""
    preload = environ.get("LD_PRELOAD", "")
    return preload if preload == environ.get(VARIABLE) else ""

"""Which malloc a service runs with, and the environment that makes it so.

The settings are measured: with the values that are copied everywhere, jemalloc 5.3 gives every freed block of 8 MiB and
more back to the kernel at once, so a training step faults its memory in again; `muzzy_decay_ms:-1` is what stops that.
"""

from __future__ import annotations

from torchpar.claims import Reason
from torchpar.config import Service
from torchpar.topology import HostFacts, Library
from torchpar.values import AllocatorChoice

JEMALLOC_CONF = "oversize_threshold:1,background_thread:true,metadata_thp:auto,dirty_decay_ms:30000,muzzy_decay_ms:-1"
# mallopt(3): keep blocks below 1 GiB on the heap and do not trim it; no page faults in a steady state.
GLIBC_THRESHOLDS = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
    "MALLOC_TOP_PAD_": "67108864",
}
# tcmalloc reports blocks above 1 GiB on stderr, which are ordinary here.
TCMALLOC_REPORT_BYTES = str(2**40)

_ORDER = (AllocatorChoice.JEMALLOC, AllocatorChoice.TCMALLOC)


def choose_allocator(service: Service, facts: HostFacts) -> tuple[str, dict[str, str], Reason, tuple[str, ...]]:
    """The allocator's name ("jemalloc", "tcmalloc", "glibc", "none"), its environment, why, and warnings.

    A library must be of the interpreter's architecture; else the dynamic loader skips it with a line on stderr, and
    the service runs without anybody noticing.
    """
    settings = service.settings
    choice = settings.allocator
    if choice is AllocatorChoice.NONE:
        return "none", {}, Reason("Allocator", "none", "as asked for: glibc's malloc, untouched"), ()
    if choice is AllocatorChoice.GLIBC:
        return "glibc", dict(GLIBC_THRESHOLDS), Reason("Allocator", "glibc", "as asked for, with larger thresholds"), ()
    machine = facts.interpreters.get(settings.python) or facts.interpreters.get("/usr/bin/python3")
    for wanted in _ORDER if choice is AllocatorChoice.AUTO else (choice,):
        for library in facts.libraries:
            if library.name == wanted.value and machine in (None, library.elf_machine):
                why = "as asked for" if choice is wanted else "the first that is installed"
                reason = Reason("Allocator", wanted.value, f"{why}: {library.path}")
                return wanted.value, _environment(library, settings.allocator_conf), reason, ()
    what = "jemalloc nor tcmalloc" if choice is AllocatorChoice.AUTO else choice.value
    foreign = any(library.elf_machine != machine for library in facts.libraries)
    for_whom = f" for the architecture of {settings.python}" if foreign else ""
    why = f"no {what} is installed{for_whom}; glibc with larger thresholds instead"
    warning = f"{service.section}: {why}; apt install libjemalloc2"
    return "glibc", dict(GLIBC_THRESHOLDS), Reason("Allocator", "glibc", why), (warning,)


def _environment(library: Library, conf: str | None) -> dict[str, str]:
    if library.name == "jemalloc":
        return {"LD_PRELOAD": library.path, "MALLOC_CONF": conf or JEMALLOC_CONF}
    return {"LD_PRELOAD": library.path, "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": TCMALLOC_REPORT_BYTES}

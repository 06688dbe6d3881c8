"""Chooses the malloc that a service runs with, and the environment that makes it so.

The order and the settings are measured. tcmalloc takes about 0.9 of jemalloc's CPU time for a step of a job that
allocates much (a loader in the training process), and has a few per cent of glibc's page faults: once in a while it
gives a large free span back, which the next step faults in again. jemalloc 5.3 needs `muzzy_decay_ms:-1`: with the
values that are copied everywhere it gives every freed block of 8 MiB and more back at once.

Of several files that have the name of one library the dynamic loader takes the first for the whole process. Debian's
tcmalloc and jemalloc are linked to Debian's libstdc++, so preloaded they bring it before an interpreter's own, which is
newer with conda: what needs that one cannot be loaded ("version `GLIBCXX_3.4.32' not found").
"""

from __future__ import annotations

from torchpar.conf.services import Kind, Service
from torchpar.conf.values import AllocatorChoice
from torchpar.contract.preload import GLIBC_THRESHOLDS, VARIABLE
from torchpar.facts.topology import HostFacts, Library
from torchpar.placement.claims import Reason

JEMALLOC_CONF = "oversize_threshold:1,background_thread:true,metadata_thp:auto,dirty_decay_ms:30000,muzzy_decay_ms:-1"
# tcmalloc reports blocks above 1 GiB on stderr, which are ordinary here.
TCMALLOC_REPORT_BYTES = str(2**40)

_PACKAGES = {"jemalloc": "libjemalloc2", "tcmalloc": "libtcmalloc-minimal4"}
_ORDER = (AllocatorChoice.TCMALLOC, AllocatorChoice.JEMALLOC)


def choose_allocator(service: Service, facts: HostFacts) -> tuple[str, dict[str, str], Reason, tuple[str, ...]]:
    """Chooses the allocator: its name ("jemalloc", "tcmalloc", "glibc", "none"), its environment, why, and warnings.

    A library must be of the interpreter's architecture; else the dynamic loader skips it with a line on stderr, and
    the service runs without anybody noticing. Where Environment= preloads something itself, that is what is expected.
    """
    settings = service.settings
    choice = settings.allocator
    preload = [text.partition("=")[2] for text in settings.environment if text.startswith("LD_PRELOAD=")]
    if preload:
        name = _name_of(preload[-1])
        return name, {}, Reason("Allocator", name, f"set by Environment=LD_PRELOAD={preload[-1]}"), ()
    name, environment, reason, warnings = _choose(service, choice, facts)
    if settings.allocator_conf and name != "jemalloc":
        warnings += (
            f"{service.origin('AllocatorConf')}: {service.section} AllocatorConf= has no effect: it is for jemalloc,"
            f" and this service has {name}",
        )
    return name, environment, reason, warnings


def _name_of(preload: str) -> str:
    """Finds the allocator among the libraries of a LD_PRELOAD, which spaces or colons separate; else it is glibc."""
    files = [path.rpartition("/")[2] for path in preload.replace(":", " ").split()]
    for name in ("jemalloc", "tcmalloc"):
        if any(file.startswith(f"lib{name}") for file in files):
            return name
    return "glibc"


def _choose(
    service: Service, choice: AllocatorChoice, facts: HostFacts
) -> tuple[str, dict[str, str], Reason, tuple[str, ...]]:
    settings = service.settings
    if choice is AllocatorChoice.NONE:
        return "none", {}, Reason("Allocator", "none", "as asked for: glibc's malloc, untouched"), ()
    if choice is AllocatorChoice.GLIBC:
        return "glibc", dict(GLIBC_THRESHOLDS), Reason("Allocator", "glibc", "as asked for, with larger thresholds"), ()
    if choice is AllocatorChoice.AUTO and facts.interpreters.get(settings.python, 0) is None:
        # A script, as pyenv's and asdf's shims are, starts another interpreter, which may be conda's.
        why = f"{settings.python} is a script or not there, so what will run may bring a libstdc++ of its own"
        why += "; glibc with larger thresholds, as no allocator of Debian's is sure to fit"
        return "glibc", dict(GLIBC_THRESHOLDS), Reason("Allocator", "glibc", why), ()
    machine = facts.interpreters.get(settings.python) or facts.interpreters.get("/usr/bin/python3")
    own, *beside = facts.interpreter_libraries.get(settings.python) or (None,)
    order = _wanted(choice, settings.allocator_conf)
    installed = [
        library
        for wanted in order
        for library in (*beside, *facts.libraries)
        if library.name == wanted and machine in (None, library.elf_machine)
    ]
    fitting = [library for library in installed if not own or library in beside or not library.needs_libstdcxx]
    if choice is AllocatorChoice.AUTO and own and installed and not fitting:
        why = (
            f"{settings.python} has a libstdc++ of its own, {own.path}, and {installed[0].path} would bring Debian's"
            f" before it; glibc with larger thresholds instead, or an allocator in {own.path.rpartition('/')[0]}"
        )
        return "glibc", dict(GLIBC_THRESHOLDS), Reason("Allocator", "glibc", why), ()
    if installed:
        library = (fitting or installed)[0]
        why = "the first that is installed" if choice is AllocatorChoice.AUTO else "as asked for"
        why += f" and fits {own.path}" if own and fitting else ""
        reason = Reason("Allocator", library.name, f"{why}: {library.path}")
        warnings: tuple[str, ...] = ()
        if own and not fitting:
            warnings = (
                f"{service.origin('Allocator')}: {service.section} Allocator={choice.value}: {library.path} brings"
                f" Debian's libstdc++ before {own.path}, and what needs the newer one cannot be loaded; see"
                " Allocator=auto",
            )
        return library.name, _environment(library, service), reason, warnings
    what = "tcmalloc nor jemalloc" if choice is AllocatorChoice.AUTO else choice.value
    foreign = [library.path for library in facts.libraries if library.name in order]
    for_whom = f" for the architecture of {settings.python}, only {', '.join(foreign)}" if foreign else ""
    why = f"no {what} is installed{for_whom}; glibc with larger thresholds instead"
    warning = f"{service.section}: {why}; apt install {_PACKAGES[order[0]]}"
    return "glibc", dict(GLIBC_THRESHOLDS), Reason("Allocator", "glibc", why), (warning,)


def _wanted(choice: AllocatorChoice, conf: str | None) -> tuple[str, ...]:
    """Returns names of libraries, the best first; settings for jemalloc put it first."""
    if choice is not AllocatorChoice.AUTO:
        return (choice.value,)
    return tuple(wanted.value for wanted in (reversed(_ORDER) if conf else _ORDER))


def _environment(library: Library, service: Service) -> dict[str, str]:
    environment = {"LD_PRELOAD": library.path}
    if service.kind is Kind.TRAIN:
        environment[VARIABLE] = library.path
    if library.name == "jemalloc":
        return environment | {"MALLOC_CONF": service.settings.allocator_conf or JEMALLOC_CONF}
    environment["TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD"] = TCMALLOC_REPORT_BYTES
    if service.kind is Kind.TRAIN:
        # It needs in its next step what it has freed in this one; a server gives back what an unloaded model had.
        environment["TCMALLOC_RELEASE_RATE"] = "0"
    return environment

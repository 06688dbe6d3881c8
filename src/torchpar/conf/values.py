"""Parses the values of settings: small types, and one `parse_*` for each, text in and value out.

Every parser raises ValueError with a clause that says what is wrong; the reader of the conf adds file, line and key.
The module is long as a list is: no parser needs to be read for another.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from torchpar.conf.characters import BLANKS, NOT_PLAIN
from torchpar.conf.words import MisreadError, split_words
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import printable
from torchpar.contract.job import VARIABLE

E = TypeVar("E", bound=enum.Enum)


class UselessError(ValueError):
    """A value that parses and does nothing good; one that is in force stays as `value`, which is what came of it."""

    def __init__(self, why: str, value: str | tuple[str, ...] | None) -> None:
        super().__init__(why)
        self.value = value


class CpuRequestKind(enum.Enum):
    """The ways in which a service asks for CPUs."""

    AUTO = "auto"  # CPUs=auto: a share of what is left, by Weight=
    COUNT = "count"  # CPUs=4: four whole cores
    LIST = "list"  # CPUs=0-3,8: these CPUs
    NODES = "node"  # CPUs=node:0,1: all cores of these NUMA nodes
    PACKAGES = "package"  # CPUs=package:0: all cores of these packages
    SHARED = "shared"  # CPUs=shared: whatever no other service holds for itself


@dataclass(frozen=True)
class CpuRequest:
    """The value of a service's CPUs=: `count` cores, or the CPUs, nodes or packages in `numbers`."""

    kind: CpuRequestKind
    count: int = 0
    numbers: CpuSet = CpuSet()

    def is_explicit(self) -> bool:
        """Says whether it names CPUs, NUMA nodes or packages rather than a number of cores."""
        return self.kind in (CpuRequestKind.LIST, CpuRequestKind.NODES, CpuRequestKind.PACKAGES)


@dataclass(frozen=True)
class GpuRequest:
    """The value of GPUs=: None for auto, `count` devices, or the `names` (PCI addresses, UUIDs, MIG instances)."""

    count: int | None = None
    names: tuple[str, ...] = ()


class Binding(enum.Enum):
    """The CPUs that one rank is bound to, in PyTorch's words (torch.numa.binding.AffinityMode)."""

    AUTO = "auto"  # Binding=auto: exclusive
    NODE = "node"  # the service's CPUs on the NUMA node of the rank's share
    SOCKET = "socket"  # the service's CPUs in the package of the rank's share
    EXCLUSIVE = "exclusive"  # a share of its own
    CORE_COMPLEX = "core-complex"  # the service's CPUs in the L3 group of the rank's share
    NONE = "none"  # all of the service's CPUs


class MemoryPolicy(enum.Enum):
    """systemd's words for set_mempolicy(2), see NUMAPolicy= in systemd.exec(5)."""

    AUTO = "auto"  # NUMAPolicy=auto: see `torchpar explain NAME`
    DEFAULT = "default"  # none is set
    PREFERRED = "preferred"  # this node first, others when it is full
    BIND = "bind"  # these nodes only
    INTERLEAVE = "interleave"  # round robin over the nodes
    LOCAL = "local"  # the node of the CPU that touches first


class AllocatorChoice(enum.Enum):
    """The malloc that a service runs with."""

    AUTO = "auto"  # what is installed, tcmalloc first
    TCMALLOC = "tcmalloc"
    JEMALLOC = "jemalloc"
    GLIBC = "glibc"  # glibc's own, with thresholds that keep large blocks
    NONE = "none"  # glibc's own, untouched


class WaitPolicy(enum.Enum):
    """The behaviour of OpenMP threads between parallel regions (OMP_WAIT_POLICY)."""

    AUTO = "auto"  # active where the CPUs are the service's own
    ACTIVE = "active"  # spin
    PASSIVE = "passive"  # sleep


class Hotplug(enum.Enum):
    """The answer of torchpard to CPUs and memory nodes that come and go."""

    ADVISE = "advise"  # says so
    FOLLOW = "follow"  # has a new generation made and moves what runs


class Backend(enum.Enum):
    """The kind of a worker of an inference service."""

    AUTO = "auto"  # threads for TorchScript, processes for Python handlers
    THREAD = "thread"
    PROCESS = "process"


class Tune(enum.Enum):
    """The tuning of a running service."""

    OFF = "off"
    ONLINE = "online"  # threads, at step boundaries


class Restart(enum.Enum):
    """The exits after which systemd starts a service again, see Restart= in systemd.service(5)."""

    NO = "no"
    ON_SUCCESS = "on-success"
    ON_FAILURE = "on-failure"
    ON_ABNORMAL = "on-abnormal"
    ON_WATCHDOG = "on-watchdog"
    ON_ABORT = "on-abort"
    ALWAYS = "always"


@dataclass(frozen=True)
class Comparison:
    """A condition of [Match] such as ">= 64": an operator and a number."""

    operator: Literal["=", "!=", "<", "<=", ">", ">="]
    number: int

    def holds(self, value: int) -> bool:
        """Says whether `value OPERATOR number` is true."""
        return {
            "=": value == self.number,
            "!=": value != self.number,
            "<": value < self.number,
            "<=": value <= self.number,
            ">": value > self.number,
            ">=": value >= self.number,
        }[self.operator]


def parse_boolean(text: str) -> bool:
    """Parses systemd's booleans: yes, no, true, false, on, off, 1, 0."""
    if text.lower() in ("yes", "true", "on", "1", "y", "t"):
        return True
    if text.lower() in ("no", "false", "off", "0", "n", "f"):
        return False
    raise ValueError("is neither yes nor no")


def parse_positive(text: str) -> int:
    """Parses a whole number from 1."""
    return _whole_number(text, least=1)


def parse_count(text: str) -> int:
    """Parses a whole number from 0."""
    return _whole_number(text, least=0)


def parse_weight(text: str) -> int:
    """Parses a weight from 1 to 10000, as CPUWeight= in systemd.resource-control(5)."""
    weight = _whole_number(text, least=1)
    if weight > 10000:
        raise ValueError("is above 10000")
    return weight


def auto_or(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    """Makes a parser that also takes "auto", which becomes None."""
    return lambda text: None if text == "auto" else parse(text)


def parse_auto_boolean(text: str) -> bool | None:
    """Parses yes, no, or auto (None)."""
    return None if text == "auto" else parse_boolean(text)


def one_of(kind: type[E]) -> Callable[[str], E]:
    """Makes a parser for the values of an enum."""

    def parse(text: str) -> E:
        try:
            return kind(text)
        except ValueError:
            raise ValueError("is not one of them") from None

    return parse


def parse_text(text: str) -> str:
    """Parses one line of any text."""
    return text


def parse_cpulist(text: str) -> CpuSet:
    """Parses a cpulist that is not empty."""
    cpus = CpuSet.parse(text)
    if not cpus:
        raise ValueError("names no CPU")
    return cpus


def parse_host_cpus(text: str) -> CpuSet | None:
    """Parses all (None) or a cpulist."""
    return None if text == "all" else parse_cpulist(text)


def parse_cpus(text: str) -> CpuRequest:
    """Parses the value of a service's CPUs=."""
    if text in ("auto", "shared"):
        return CpuRequest(CpuRequestKind(text))
    kind, colon, numbers = text.partition(":")
    if colon and kind in ("node", "package"):
        return CpuRequest(CpuRequestKind(kind), numbers=parse_cpulist(numbers))
    if _is_number(text):
        return CpuRequest(CpuRequestKind.COUNT, count=parse_positive(text))
    return CpuRequest(CpuRequestKind.LIST, numbers=parse_cpulist(text))


def parse_gpus(text: str) -> GpuRequest:
    """Parses the value of GPUs=."""
    if text == "auto":
        return GpuRequest()
    if text == "none":
        return GpuRequest(count=0)
    if _is_number(text):
        return GpuRequest(count=parse_count(text))
    names = tuple(text.replace(",", " ").split())
    if not names:
        raise ValueError("names no accelerator")
    for name in names:
        if not re.fullmatch(
            r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]|(GPU|MIG)-[0-9a-fA-F-]+|MIG-GPU-[0-9a-fA-F-]+/\d{1,3}/\d{1,3}",
            name,
        ):
            raise ValueError(
                f"has '{printable(name, 60)}', which is neither a PCI address such as 0000:17:00.0, nor a UUID, "
                "nor a MIG instance such as MIG-GPU-8a2f1c04-.../1/0"
            )
    return GpuRequest(count=len(names), names=names)


def parse_ranks(text: str) -> int | Literal["gpu", "numa"]:
    """Parses the value of Ranks=."""
    if text == "gpu" or text == "numa":
        return text  # type: ignore[return-value]  # mypy does not narrow str by `or`
    return parse_positive(text)


def parse_hosts(text: str) -> tuple[int, int]:
    """Parses a number of hosts, "4" or "2:4", as the least and the most."""
    least, colon, most = text.partition(":")
    numbers = parse_positive(least), parse_positive(most if colon else least)
    if numbers[0] > numbers[1]:
        raise ValueError("has a least number that is larger than the most")
    return numbers


def parse_endpoint(text: str) -> str:
    """Parses HOST or HOST:PORT, the host a name, an IPv4 address or an IPv6 address in brackets."""
    alone = len(text) <= _LONGEST_HOST and re.fullmatch(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+", text)
    address = text if alone or text.startswith("*") else parse_address(text).rpartition(":")[0]
    if address.startswith("*"):
        raise ValueError("is no host that others can reach")
    if not _can_be_reached(address):
        raise UselessError("is no host that others can reach", text)
    return text


def _can_be_reached(address: str) -> bool:
    """Says whether an address can be another host's: no name that DNS cannot have, and not that of all or of many."""
    try:
        number = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        # What is all numbers is no name, but an address that is wrong; /etc/hosts has names such as gpu.01.
        return re.fullmatch(rf"(?![0-9.]+$)(?:{_LABEL}\.)*{_LABEL}\.?", address) is not None
    return not number.is_unspecified and not number.is_multicast and number != _BROADCAST


def parse_loader_workers(text: str) -> int | Literal["off"] | None:
    """Parses a number of loader workers, off (leave every DataLoader alone), or auto (None)."""
    if text == "auto":
        return None
    return "off" if text == "off" else parse_count(text)


def parse_path(text: str) -> str:
    """Parses an absolute path without `..`."""
    if not text.startswith("/"):
        raise ValueError("is not an absolute path")
    if ".." in text.split("/"):
        raise ValueError("has '..' in it; write the path itself")
    if len(text.encode()) > _LONGEST_PATH:
        raise ValueError(f"is longer than the {_LONGEST_PATH} bytes that a path can have")
    if any(len(part.encode()) > _LONGEST_NAME for part in text.split("/")):
        raise ValueError(f"has a name of more than the {_LONGEST_NAME} bytes that a file's can have")
    if NOT_PLAIN.search(text):
        raise ValueError("has a control character")
    if simple_path(text).endswith((" ", "\t", "\\")):
        raise ValueError("names something that ends in a blank or a backslash, which a unit does not keep; rename it")
    return text


def parse_program(text: str) -> str:
    """Parses an absolute path of a file."""
    if text.endswith("/"):
        raise ValueError("names a folder, and a program is a file")
    return parse_path(text)


def parse_paths(text: str) -> tuple[str, ...]:
    """Parses absolute paths separated by blanks; `-` before one says that it may be missing."""
    words = parse_words(text)
    for word in words:
        try:
            parse_path(word.removeprefix("-"))
        except ValueError as error:
            raise ValueError(f"has '{printable(word, 60)}', which {error}") from None
    return tuple("-" * word.startswith("-") + simple_path(word.removeprefix("-")) for word in words)


def simple_path(path: str) -> str:
    """Writes an absolute path as systemd does: without `//`, `/./` and a slash at the end."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def parse_module(text: str) -> str:
    """Parses a dotted Python module name."""
    if not all(part.isidentifier() for part in text.split(".")):
        raise ValueError("is not the dotted name of a Python module")
    return text


def parse_identifier(text: str) -> str:
    """Parses a name of letters, digits, '-', '_' and '.'."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text):
        raise ValueError("has other characters than letters, digits, '-', '_' and '.'")
    if len(text) > _LONGEST_NAME:
        raise ValueError(f"is longer than {_LONGEST_NAME} characters")
    return text


def parse_account(text: str) -> str:
    """Parses the name or the number of a user or a group, as User= in systemd.exec(5)."""
    name = parse_identifier(text)
    if _is_number(text) and (text != str(int(text[:11])) or int(text) in _NO_ACCOUNTS or int(text) >= 2**32):
        raise UselessError("is a number that systemd takes for no user or group, and the unit would not start", name)
    return name


def parse_interface(text: str) -> str:
    """Parses the name of a network interface."""
    name = parse_identifier(text)
    if len(name) > _LONGEST_INTERFACE:
        why = f"is longer than the {_LONGEST_INTERFACE} characters that an interface's name can have"
        raise UselessError(why, name)
    return name


def parse_words(text: str) -> tuple[str, ...]:
    """Parses words separated by blanks, with quotes and escapes as in Environment= of systemd.exec(5)."""
    return split_words(text)


def parse_arguments(text: str) -> tuple[str, ...]:
    """Parses a command line, as ExecStart= in systemd.service(5) takes it, without specifiers and variables."""
    return split_words(text, relaxed=True)


# A host's name, hostname(7), with the signs of fnmatch(3).
_GLOB = re.compile(r"(?:[A-Za-z0-9._*?-]|\[!?[A-Za-z0-9._-]+\])+")


def parse_globs(text: str) -> tuple[str, ...]:
    """Parses names in which * and ? stand for others."""
    globs = split_words(text)
    for glob in globs:
        if not _GLOB.fullmatch(glob):
            shown = printable(glob, 60)
            raise ValueError(f"has '{shown}', which no host can be called; between names stand blanks, ! only after [")
    if is_glob(text) and sum(map(is_glob, globs)) > _MOST_GLOBS:
        raise ValueError(f"has more than {_MOST_GLOBS} patterns")
    if any(len(glob) > _LONGEST_HOST for glob in globs):
        raise ValueError(f"has a name of more than the {_LONGEST_HOST} characters that a host's can have")
    return globs


# What a host's architecture may be called: uname -m, systemd.unit(5) ConditionArchitecture=, dpkg.
ARCHITECTURES = {
    "x86_64": {"x86_64", "x86-64", "amd64"},
    "aarch64": {"aarch64", "arm64"},
    "ppc64le": {"ppc64le", "ppc64-le", "ppc64el"},
    "ppc64": {"ppc64"},
    "riscv64": {"riscv64"},
    "s390x": {"s390x"},
    "loongarch64": {"loongarch64", "loong64"},
    "armv7l": {"armv7l", "arm", "armhf"},
    "i686": {"i686", "x86", "i386"},
}


def parse_architectures(text: str) -> tuple[str, ...]:
    """Parses names of architectures."""
    words = split_words(text)
    for word in words:
        if not any(word in names for names in ARCHITECTURES.values()):
            raise ValueError(f"has '{printable(word, 60)}', which is no architecture that torchpar knows")
    return words


def is_glob(text: str) -> bool:
    """Says whether the text stands for other names than itself."""
    return any(sign in text for sign in "*?[")


def parse_environment(text: str) -> tuple[str, ...]:
    """Parses assignments NAME=VALUE, as Environment= in systemd.exec(5)."""
    words = split_words(text)
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            at = text.find(word)
            what = f"has '{printable(word, 60)}', which is not NAME=VALUE"
            raise MisreadError(what, at) if at >= 0 else ValueError(what)
        if name == VARIABLE:
            raise ValueError(f"sets {name}, in which torchpar tells the job its place")
    return words


def parse_nodelist(text: str) -> CpuSet | None:
    """Parses a list of NUMA nodes, or auto (None)."""
    return None if text == "auto" else parse_cpulist(text)


_TIME_UNITS = {
    "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hr": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
}  # fmt: skip
_SPAN = re.compile(rf"([0-9]+)[{BLANKS}]*([a-z]+)[{BLANKS}]*")


def parse_seconds(text: str) -> int:
    """Parses a time span of systemd.time(7), such as "120", "90s" or "1h 30min", into whole seconds."""
    if _is_number(text):
        return _whole_number(text, least=0)
    seconds, at = 0, 0
    while at < len(text):
        part = _SPAN.match(text, at)
        if part is None:
            raise ValueError("is not a time span such as 120s or 1h 30min")
        if part[2] not in _TIME_UNITS:
            raise ValueError(f"has the unit '{printable(part[2], 60)}'; use s, min, h or d")
        seconds += _whole_number(part[1], least=0) * _TIME_UNITS[part[2]]
        at = part.end()
    if seconds > _MOST:
        raise ValueError(f"is longer than {_MOST} seconds")
    return seconds


_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


def parse_memory(text: str) -> str:
    """Parses a size such as "8G", a percentage or "infinity", kept as written (systemd.resource-control(5))."""
    if text == "infinity":
        return text
    if not re.fullmatch(r"(100(\.00?)?|[1-9]?[0-9](\.[0-9]{1,2})?)%|[0-9]{1,19}(\.[0-9]{1,9})?[KMGTP]?", text):
        raise ValueError("is not a size such as 8G, 50% or infinity")
    size = memory_bytes(text, 10**6) or 0
    if not size:
        raise UselessError("is no limit for systemd, which ignores it", None)
    if size >= 2**63:
        raise ValueError("is no amount of memory that a host has")
    return text


def memory_bytes(text: str, total: int | None) -> int | None:
    """Returns the bytes of a parse_memory() value on a host with `total` bytes; None when unlimited or unknown."""
    if text == "infinity":
        return None
    if text.endswith("%"):
        return None if total is None else int(total * float(text[:-1]) / 100)
    unit = text[-1] if text[-1] in _SIZE_UNITS else ""
    return int(float(text.removesuffix(unit)) * _SIZE_UNITS[unit])


def parse_metrics(text: str) -> str:
    """Parses textfile, no, or ADDRESS:PORT."""
    if text in ("textfile", "no"):
        return text
    return parse_address(text)


def parse_address(text: str) -> str:
    """Parses ADDRESS:PORT, the address a name, an IPv4 address or an IPv6 address in brackets."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+|\*):([0-9]{1,5})", text)
    if not match or len(match[1]) > _LONGEST_HOST or not 0 < int(match[2]) < 65536:
        raise ValueError("is not ADDRESS:PORT")
    return text


LOOPBACK = "127.0.0.1"


def parse_listen(text: str) -> str:
    """Parses the address that an inference service listens on: ADDRESS:PORT for HTTP, grpc:ADDRESS:PORT for gRPC.

    The address is one of this host's as a number, localhost, or * for all; systemd's sockets know no other names.
    """
    protocol = "grpc:" if text.startswith("grpc:") else ""
    address, _, port = parse_address(text.removeprefix("grpc:")).rpartition(":")
    named = {"localhost": LOOPBACK, "*": "[::]"}.get(address)
    if named is None:
        try:
            number = ipaddress.ip_address(address.strip("[]"))
        except ValueError:
            why = f"has the name '{printable(address, 60)}'; write the address as a number, localhost, or * for all"
            raise ValueError(why) from None
        named = f"[{number}]" if number.version == 6 else str(number)
        if number.is_multicast or number == _BROADCAST:
            why = f"has {number}, which is the address of many and no host's own"
            raise UselessError(why, f"{protocol}{named}:{int(port)}")
    return f"{protocol}{named}:{int(port)}"


def parse_listens(text: str) -> tuple[str, ...]:
    """Parses the addresses that an inference service listens on, separated by blanks."""
    addresses, useless = [], None
    for word in text.split():
        try:
            addresses.append(parse_listen(word))
        except UselessError as error:
            useless = error
            addresses.append(str(error.value))
    if useless:
        raise UselessError(str(useless), tuple(addresses))
    return tuple(addresses)


def parse_comparisons(text: str) -> tuple[Comparison, ...]:
    """Parses conditions such as ">= 8 < 64"; a bare number means equality."""
    found, at = [], 0
    while at < len(text):
        part = _COMPARISON.match(text, at)
        if part is None:
            raise ValueError("is not a comparison such as >= 8")
        found.append(Comparison(part[1] or "=", _whole_number(part[2], least=0)))  # type: ignore[arg-type]
        at = part.end()
    if not found:
        raise ValueError("is not a comparison such as >= 8")
    return tuple(found)


_COMPARISON = re.compile(rf"(!=|<=|>=|=|<|>|)[{BLANKS}]*([0-9]+)[{BLANKS}]*")

# One part of a host's name, RFC 1123.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")

# PATH_MAX without the byte that ends it; a DNS name with brackets; a name of anything else.
_LONGEST_PATH, _LONGEST_HOST, _LONGEST_NAME, _MOST_GLOBS = 4095, 255, 255, 1000
_MOST = 999999999
# IFNAMSIZ without the byte that ends it; (uid_t) -1 and its form of 16 bits, which mean none to the kernel.
_LONGEST_INTERFACE, _NO_ACCOUNTS = 15, (0xFFFF, 0xFFFFFFFF)


def _is_number(text: str) -> bool:
    """Says whether the text is ASCII digits: other digits are numbers to Python only."""
    return text.isascii() and text.isdigit()


def _whole_number(text: str, *, least: int) -> int:
    if not _is_number(text):
        raise ValueError("is not a whole number")
    if len(text) > len(str(_MOST)) or int(text) < least:
        raise ValueError(f"is not from {least} to {_MOST}")
    return int(text)

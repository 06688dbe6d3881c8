"""The limits of execve(2) and systemd for arguments and variables, so that every unit can be started.

Figures of 6.1 and 6.12, and of systemd 252 and 257.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

# Of one string, with the zero that ends it: MAX_ARG_STRLEN in linux/binfmts.h.
_PAGES = 32
SMALLEST_PAGE = 4096

# Of all strings and the pointers to them: a quarter of the stack, which is of 8 MiB unless LimitSTACK= says otherwise;
# three quarters of 8 MiB at the most, and never less than ARG_MAX in linux/limits.h.
_STACK = 8 * 2**20
_SMALLEST_TOTAL, _LARGEST_TOTAL = 2**17, 6 * 2**20
_POINTER = 8
# What systemd adds: PATH, HOME, INVOCATION_ID, names of folders, credentials, the path of the program.
_ADDED = 4096

# Of one line of a unit file: LONG_LINE_MAX in systemd. A unit with a longer one is not loaded.
LINE = 2**20

# systemd takes time that grows with the square of these numbers, also at each daemon-reload, and does nothing else
# meanwhile: of 20,000 words or 10,000 lines it needs seconds, and of ten times as many so long that it does not answer.
WORDS = 20_000
LINES = 5_000
# Each is a mount of its own at every start.
PATHS = 1_000

INSTEAD = "write it to a file and pass the file's name"


def string_limit(page_size: int | None) -> int:
    """Returns the most bytes of an argument, or of a variable with its name, on a host with such pages."""
    return _PAGES * (page_size or SMALLEST_PAGE) - 1


def size(text: str) -> int:
    """Counts the bytes of a text as the kernel gets it."""
    return len(text.encode("utf-8", "surrogateescape"))


def check_strings(texts: Iterable[str], page_size: int | None) -> Iterator[str]:
    """Yields the problem with each string that is too long, as a clause."""
    limit = string_limit(page_size)
    for text in texts:
        if size(text) > limit:
            yield f"'{text:.30}...' has {size(text):,} bytes, and the kernel takes {limit:,} in one string; {INSTEAD}"


def check_number(number: int, most: int, things: str, instead: str = INSTEAD) -> str | None:
    """Returns the problem with so many of something, as a clause; None where they are not too many."""
    if number <= most:
        return None
    return f"it has {number:,} {things}, and systemd is too slow with more than {most:,}; {instead}"


def total_limit(limit_stack: str | None) -> int:
    """Returns the most bytes of all strings together under this LimitSTACK=; text that is no size changes nothing."""
    soft = (limit_stack or "").partition(":")[0].strip()
    size_of = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGTPE]?)B?", soft)
    stack = float(size_of[1]) * 1024 ** " KMGTPE".index(size_of[2] or " ") if size_of else _STACK
    if soft == "infinity":
        stack = math.inf
    return int(max(_SMALLEST_TOTAL, min(_LARGEST_TOTAL, stack / 4)))


def check_command(command: Sequence[str], environment: Mapping[str, str], limit_stack: str | None = None) -> str | None:
    """Returns the problem with a command line and its variables together, as a clause; None if they are short."""
    strings = [*command, *(f"{name}={value}" for name, value in environment.items())]
    total = sum(size(text) + 1 + _POINTER for text in strings) + _ADDED
    limit = total_limit(limit_stack)
    if total <= limit:
        return None
    more = "" if limit == _LARGEST_TOTAL else ", or set Service.LimitSTACK=infinity, with which it takes 6 MiB"
    return (
        f"arguments and variables have {total:,} bytes together, and the kernel takes {limit:,}; write them to a file "
        f"and pass the file's name{more}"
    )

"""What execve(2) and systemd take of arguments and variables, so that no unit is made that no kernel can start.

Figures of 6.1 and 6.12, and of systemd 252 and 257.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

# Of one string, with the zero that ends it: MAX_ARG_STRLEN in linux/binfmts.h.
_PAGES = 32
_SMALLEST_PAGE = 4096

# Of all strings and the pointers to them: a quarter of the stack, which is of 8 MiB unless LimitSTACK= says otherwise;
# of a larger one three quarters of 8 MiB at the most.
_TOTAL, _LARGEST_TOTAL = 2 * 2**20, 6 * 2**20
_POINTER = 8
# What systemd adds: PATH, HOME, INVOCATION_ID, names of folders, credentials, the path of the program.
_ADDED = 4096

# Of one line of a unit file: LONG_LINE_MAX in systemd. A unit with a longer one is not loaded.
LINE = 2**20

# systemd takes time that grows with the square of their number: 20,000 need seconds in PID 1, and 100,000 so long that
# it does not answer.
WORDS = 20_000

_INSTEAD = "write it to a file and pass the file's name"


def string_limit(page_size: int | None) -> int:
    """How many bytes an argument or a variable with its name may have on a host with these pages."""
    return _PAGES * (page_size or _SMALLEST_PAGE) - 1


def size(text: str) -> int:
    """The bytes of a text as the kernel gets it."""
    return len(text.encode("utf-8", "surrogateescape"))


def check_strings(texts: Iterable[str], page_size: int | None) -> Iterator[str]:
    """What is wrong with each string that is too long, as a clause."""
    limit = string_limit(page_size)
    for text in texts:
        if size(text) > limit:
            yield f"'{text:.30}...' has {size(text):,} bytes, and the kernel takes {limit:,} in one string; {_INSTEAD}"


def check_command(command: Sequence[str], environment: Mapping[str, str], *, more_stack: bool) -> str | None:
    """What is wrong with a command line and its variables together, as a clause."""
    if len(command) > WORDS:
        return f"it has {len(command):,} words, and systemd is too slow with more than {WORDS:,}; {_INSTEAD}"
    strings = [*command, *(f"{name}={value}" for name, value in environment.items())]
    total = sum(size(text) + 1 + _POINTER for text in strings) + _ADDED
    limit = _LARGEST_TOTAL if more_stack else _TOTAL
    if total <= limit:
        return None
    more = "" if more_stack else ", or set Service.LimitSTACK=infinity, with which it takes 6 MiB"
    return (
        f"arguments and variables have {total:,} bytes together, and the kernel takes {limit:,}; write them to a file "
        f"and pass the file's name{more}"
    )

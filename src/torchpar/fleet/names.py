"""Words for many hosts, and the order of versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from debian.debian_support import Version

from torchpar.contract.errors import printable

_MOST = 4


def say_hosts(hosts: Sequence[str]) -> str:
    """Names hosts, of many the first.

    >>> say_hosts(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    named = ", ".join(printable(host, 80) for host in hosts[:_MOST])
    return named if len(hosts) <= _MOST else f"{named} and {len(hosts) - _MOST} more"


def sort_versions(versions: Iterable[str]) -> list[str]:
    """Sorts versions as dpkg does, the oldest first; what is none stands before them.

    >>> sort_versions(["1.10-1", "1.9-1", "1.10~rc1-1"])
    ['1.9-1', '1.10~rc1-1', '1.10-1']
    """
    known: dict[str, Version] = {}
    unknown = []
    for text in versions:
        try:
            known[text] = Version(text)
        except ValueError:
            unknown.append(text)
    return [*sorted(unknown), *sorted(known, key=lambda text: known[text])]

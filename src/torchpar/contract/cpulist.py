"""A set of small numbers (CPUs or NUMA nodes) in the kernel's list syntax.

The text form is the one of /sys/devices/system/cpu/online: "0-3,8". See "List format" in cpuset(7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# NR_CPUS is at most 8192 in the mainline Kconfig of any architecture; a larger number is a mistake, not a machine.
MAX_NUMBER = 8191


class CpuSet:
    """An immutable, ordered, hashable set of numbers from 0 to MAX_NUMBER.

    >>> str(CpuSet([3, 1, 2, 8]))
    '1-3,8'
    >>> CpuSet.parse("0-2,8") - CpuSet([1])
    CpuSet('0,2,8')
    """

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._numbers = frozenset(numbers)

    @classmethod
    def parse(cls, text: str) -> CpuSet:
        """Parses a cpulist such as "0-3,8" or "0-30:2/4" (groups, as the kernel's bitmap_parselist takes them).

        Raises ValueError with a message that names the offending part.
        """
        bits = 0
        for part in text.replace("\n", " ").replace(",", " ").split():
            span, _, group = part.partition(":")
            first_text, dash, last_text = span.partition("-")
            try:
                first = _number(first_text)
                last = _number(last_text) if dash else first
                used, _, size = group.partition("/")
                used_size = (_number(used), _number(size)) if group else None
            except ValueError:
                raise ValueError(f"'{part[:40]}' is not a CPU number or a range such as 0-3") from None
            if first > last:
                raise ValueError(f"'{part}' is reversed: the first number must not be above the last")
            if last > MAX_NUMBER:
                raise ValueError(f"'{part}' is out of range: numbers go from 0 to {MAX_NUMBER}")
            if used_size is None:
                used_size = 1, 1
            elif not 0 < used_size[0] <= used_size[1]:
                raise ValueError(f"'{part}' has an impossible group: write FIRST-LAST:USED/SIZE")
            bits |= _repeat(*used_size, last - first + 1) << first
        # As bits, so that a list of many long ranges takes no longer than one of short ones.
        return cls(n for n in range(bits.bit_length()) if bits >> n & 1)

    @classmethod
    def parse_mask(cls, text: str) -> CpuSet:
        """Parses a hexadecimal mask such as "00000000,0000000f" (most significant word first).

        Raises ValueError when it is not one.
        """
        words = text.strip().split(",")
        if not all(word and len(word) <= 8 and all(c in "0123456789abcdefABCDEF" for c in word) for word in words):
            raise ValueError(f"'{text.strip()[:60]}' is not a CPU mask")
        bits = int("".join(word.zfill(8) for word in words), 16)
        if bits.bit_length() > MAX_NUMBER + 1:
            raise ValueError(f"the mask has bit {bits.bit_length() - 1}; numbers go from 0 to {MAX_NUMBER}")
        return cls(n for n in range(bits.bit_length()) if bits >> n & 1)

    @classmethod
    def from_bitmap(cls, data: Iterable[int]) -> CpuSet:
        """Makes the set that D-Bus carries as bytes: bit n of byte m for number 8m+n."""
        return cls(8 * place + bit for place, byte in enumerate(data) for bit in range(8) if byte >> bit & 1)

    def __str__(self) -> str:
        spans: list[list[int]] = []
        for number in self:
            if spans and number == spans[-1][1] + 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

    def __repr__(self) -> str:
        return f"CpuSet('{self}')"

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuSet) and self._numbers == other._numbers

    def __hash__(self) -> int:
        return hash(self._numbers)

    def __or__(self, other: CpuSet) -> CpuSet:
        return CpuSet(self._numbers | other._numbers)

    def __and__(self, other: CpuSet) -> CpuSet:
        return CpuSet(self._numbers & other._numbers)

    def __sub__(self, other: CpuSet) -> CpuSet:
        return CpuSet(self._numbers - other._numbers)

    def __le__(self, other: CpuSet) -> bool:
        return self._numbers <= other._numbers

    def isdisjoint(self, other: CpuSet) -> bool:
        """Says whether the two sets have no number in common."""
        return self._numbers.isdisjoint(other._numbers)

    def first(self) -> int:
        """Returns the smallest number. Raises ValueError when the set is empty."""
        return min(self._numbers)

    @classmethod
    def union(cls, sets: Iterable[CpuSet]) -> CpuSet:
        """Makes the set of all numbers of all the sets."""
        return cls(number for cpus in sets for number in cpus._numbers)


def _repeat(used: int, size: int, length: int) -> int:
    """Makes the bits of a range of so many numbers, of every `size` of which the first `used` count."""
    size, used = min(size, length), min(used, length)
    bits, done = (1 << used) - 1, size
    while done < length:
        bits |= bits << done
        done *= 2
    return bits & ((1 << length) - 1)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(text)
    return int(text)

"""Sets of CPUs in the kernel's list and mask syntax."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchpar.contract.cpulist import MAX_NUMBER, CpuSet


@given(st.sets(st.integers(0, 300)))
def test_a_set_reads_back_from_its_own_text(numbers: set[int]) -> None:
    """Text and set are two forms of the same."""
    assert CpuSet.parse(str(CpuSet(numbers))) == CpuSet(numbers)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_mask_gives_the_same_set_as_a_list(numbers: set[int]) -> None:
    """The kernel shows the same CPUs as cpulist and cpumap."""
    digits = f"{sum(1 << n for n in numbers):x}"
    padded = digits.zfill(-(-len(digits) // 8) * 8)
    words = [padded[i : i + 8] for i in range(0, len(padded), 8)]
    assert CpuSet.parse_mask(",".join(words)) == CpuSet(numbers)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", []), ("0-3,8\n", [0, 1, 2, 3, 8]), ("0-9:2/4", [0, 1, 4, 5, 8, 9]), ("3 1", [1, 3]), ("7,7,7", [7])],
)
def test_the_kernels_forms_are_read(text: str, numbers: list[int]) -> None:
    """Empty files, groups, blanks and repetitions all occur."""
    assert list(CpuSet.parse(text)) == numbers


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("3-1", "'3-1' is reversed"),
        ("x", "'x' is not"),
        ("1-", "'1-' is not"),
        ("-1", "'-1' is not"),
        (f"0-{MAX_NUMBER + 1}", "out of range"),
        ("0-999999999999", "is not"),
        ("0-3:5/2", "impossible group"),
        ("٣", "is not"),
    ],
)
def test_what_is_no_list_is_refused_with_the_part_that_is_wrong(text: str, part: str) -> None:
    """A huge range must not fill the memory, a reversed one must not be empty."""
    with pytest.raises(ValueError, match=part):
        CpuSet.parse(text)


@pytest.mark.parametrize("text", ["", "0x3", "123456789", "f,,f", "g", "ffffffff," * 300 + "1"])
def test_what_is_no_mask_is_refused(text: str) -> None:
    """A truncated or foreign file is an error, not a set."""
    with pytest.raises(ValueError, match="mask"):
        CpuSet.parse_mask(text)


def test_text_is_the_kernels_shortest_form() -> None:
    """Neighbours are one range."""
    assert str(CpuSet([8, 3, 1, 2])) == "1-3,8"
    assert repr(CpuSet([0])) == "CpuSet('0')"

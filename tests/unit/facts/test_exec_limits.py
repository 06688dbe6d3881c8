"""What execve(2) and systemd take of arguments and variables."""

from __future__ import annotations

import pytest

from torchpar.facts.exec_limits import WORDS, check_command, check_number, check_strings, total_limit


def test_a_string_has_32_pages_with_the_zero_at_its_end() -> None:
    """All bytes of UTF-8 count, and those that are none."""
    for page_size in (None, 4096, 65536):
        most = 32 * (page_size or 4096) - 1
        assert not list(check_strings(["x" * most, "é" * (most // 2)], page_size))
        for text in ("x" * (most + 1), "é" * (most // 2 + 1), "\udcff" * (most + 1)):
            (problem,) = check_strings(["", text], page_size)
            assert f"the kernel takes {most:,} in one string" in problem and len(problem) < 200


def test_all_strings_together_have_a_quarter_of_the_stack() -> None:
    """2 MiB where nobody asks for more stack, 6 MiB at the most; each string costs its pointer too."""
    words = ["x" * 100_000] * 20
    assert check_command(words, {}) is None
    too_much = check_command(words, {"A": "y" * 100_000})
    assert too_much and "the kernel takes 2,097,152" in too_much and "Service.LimitSTACK=infinity" in too_much
    assert check_command(words * 3, {}, "infinity") is None
    too_much = check_command(words * 4, {}, "infinity")
    assert too_much and "the kernel takes 6,291,456" in too_much and "LimitSTACK" not in too_much
    assert check_command(["x" * 250] * 8000, {}) is None
    assert check_command(["x" * 255] * 8000, {})


@pytest.mark.parametrize(
    ("limit_stack", "total"),
    [
        (None, 2 * 2**20),
        ("", 2 * 2**20),
        ("no size", 2 * 2**20),
        ("8M", 2 * 2**20),
        ("8M:infinity", 2 * 2**20),
        ("16777216", 4 * 2**20),
        ("1.5M", 3 * 2**17),
        ("24M", 6 * 2**20),
        ("1G:2G", 6 * 2**20),
        ("infinity", 6 * 2**20),
        ("64K", 2**17),
    ],
)
def test_the_soft_limit_of_the_stack_decides(limit_stack: str | None, total: int) -> None:
    """A larger stack that is still small has its quarter, and a smaller one less than usual."""
    assert total_limit(limit_stack) == total


def test_systemd_is_spared_what_it_takes_minutes_for() -> None:
    """Its time grows with the square of the number."""
    assert check_number(20_000, WORDS, "words") is None
    assert "20,001 words" in (check_number(20_001, WORDS, "words") or "")

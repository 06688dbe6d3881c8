"""How long something takes, in words."""

from __future__ import annotations

import pytest

from torchpar.contract.span import span


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (0.0005, "0.5 ms"), (0.25, "250 ms"), (1, "1 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"),
        (7200, "2 h"), (47 * 3600, "47 h"), (48 * 3600, "2 days"),
    ],
)  # fmt: skip
def test_a_span_has_one_unit(seconds: float, words: str) -> None:
    """The one in which it is a number that a person takes in at a glance."""
    assert span(seconds) == words

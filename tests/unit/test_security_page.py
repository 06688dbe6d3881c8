"""torchpar-security(7): each claim of the page has its tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
PAGE = (TREE / "debian/man/torchpar-security.7").read_text(encoding="utf-8")


def claims() -> list[tuple[str, list[str]]]:
    """The first words of each item of the page, and its comments."""
    items = re.split(r"^\.IP .*\n", PAGE.partition(".SH SEE ALSO")[0], flags=re.MULTILINE)[1:]
    found = []
    for item in items:
        item = item.partition("\n.SS")[0]
        text = " ".join(line for line in item.splitlines() if not line.startswith('.\\"'))
        found.append((text[:60], re.findall(r'^\.\\" (.*)$', item, flags=re.MULTILINE)))
    return found


@pytest.mark.parametrize(("claim", "comments"), claims(), ids=[claim for claim, _ in claims()])
def test_every_claim_has_its_tests(claim: str, comments: list[str]) -> None:
    """Named behind it; or it says that something is not limited, and why there is no test."""
    assert comments, f"no test is named for: {claim}"
    for comment in comments:
        kind, _, rest = comment.partition(": ")
        assert kind in ("test", "none") and rest, comment
        if kind == "test":
            path, _, name = rest.partition("::")
            tree = ast.parse((TREE / path).read_text(encoding="utf-8"))
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert name in names, f"{path} has no {name}"


def test_the_page_has_claims_under_every_heading() -> None:
    """A heading without one would be read as if it had been thought of."""
    for section in PAGE.split("\n.SS ")[1:]:
        assert "\n.IP" in section

"""The kinds of what is wrong, and the catalog that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

from torchpar.contract.messages import MESSAGE_IDS

CATALOG = Path(__file__).parents[3] / "systemd" / "torchpar.catalog"


def test_each_kind_is_in_the_catalog() -> None:
    """By an ID of its own, with a subject, where it comes from, and a page that is there."""
    entries = CATALOG.read_text().split("\n-- ")[1:]
    found = {entry[:32]: entry for entry in entries}
    assert found.keys() == set(MESSAGE_IDS.values()) and len(found) == len(MESSAGE_IDS)
    for entry in entries:
        assert re.fullmatch(r"[0-9a-f]{32}\nSubject: .+\nDefined-By: torchpar\nDocumentation: .+\n[\s\S]*", entry)
        for page, section in re.findall(r"man:(torchpar[\w.-]*)\((\d)\)", entry):
            names = [f"{page}.{section}", f"{page}.{section}.in"]
            assert any((CATALOG.parents[1] / "debian" / "man" / name).exists() for name in names), page

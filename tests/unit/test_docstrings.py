"""Reads the docstrings of src: each begins with a verb or names a thing, and none with a relative clause."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

RELATIVE = set("What Whatever Whether Where Which How When Why Who Whom Whose Whoever Those That".split())

def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of each docstring of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def relative_clauses(place: str) -> list[str]:
    """Returns file:line and the first line of each docstring of a folder, or of a module, that is to be rewritten."""
    path = SOURCE / place
    return [
        f"{module.relative_to(SOURCE.parent)}:{line}: {text.splitlines()[0]}"
        for module in (sorted(path.glob("*.py")) if path.is_dir() else [path])
        for line, text in docstrings(module)
        if text.split()[0] in RELATIVE
    ]


def places() -> list[str]:
    """Returns the folders of src with modules in them."""
    return sorted({str(path.parent.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")})


@pytest.mark.parametrize("place", places())
def test_docstrings_begin_with_a_verb_and_not_with_what_or_whether(place: str) -> None:
    found = relative_clauses(place)
    assert not found, "begin with a verb, such as Returns, or Says whether:\n" + "\n".join(found)

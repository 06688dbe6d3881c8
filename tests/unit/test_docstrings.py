"""Reads the docstrings of src: a function's begins with a verb, others may name a thing; none is a relative clause."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

RELATIVE = set("What Whatever Whether Where Which How When Why Who Whom Whose Whoever Those That".split())

# Of a function; a property is a thing.
NOUNS = set("The A An All Of One As".split())


def is_function(node: ast.AST) -> bool:
    """Says whether this is a function, or a method that is called."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    return not any(ast.unparse(each).endswith("property") for each in node.decorator_list)


def docstrings(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yields of each docstring of a module the line, the text, and whether it begins as it should not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                forbidden = RELATIVE | NOUNS if is_function(node) else RELATIVE
                yield node.body[0].lineno, text, text.split()[0].strip(",:") in forbidden


def beginnings(place: str) -> list[str]:
    """Returns file:line and the first line of each docstring of a folder, or of a module, that is to be rewritten."""
    path = SOURCE / place
    return [
        f"{module.relative_to(SOURCE.parent)}:{line}: {text.splitlines()[0]}"
        for module in (sorted(path.glob("*.py")) if path.is_dir() else [path])
        for line, text, is_wrong in docstrings(module)
        if is_wrong
    ]


def places() -> list[str]:
    """Returns the folders of src with modules in them."""
    return sorted({str(path.parent.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")})


@pytest.mark.parametrize("place", places())
def test_docstrings_begin_with_a_verb_and_not_with_what_or_whether(place: str) -> None:
    found = beginnings(place)
    assert not found, "begin with a verb, such as Returns, or Says whether:\n" + "\n".join(found)

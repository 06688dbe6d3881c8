"""What each release's own checker says of the source and the package built from it."""

from __future__ import annotations

from collections.abc import Callable

from tests.machines.package import lint_package
from tests.machines.roots import Suite


def test_lintian_finds_neither_errors_nor_warnings(suite: Suite, progress: Callable[[str], None]) -> None:
    """What lintian warns of would be a bug report against the package."""
    lint_package(suite, progress)

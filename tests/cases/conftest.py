"""The captured machines."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

CAPTURES = Path(__file__).parent / "topology/captures"


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks a capture once and returns where it is."""
    directory = tmp_path_factory.mktemp("captures")

    def unpack_one(name: str) -> Path:
        if not (directory / name).exists():
            with tarfile.open(CAPTURES / f"{name}.tar.xz") as archive:
                # The captures are ours, and some of their links lead outside.
                archive.extraction_filter = lambda member, path: member
                archive.extractall(directory)
        return directory / name

    return unpack_one

"""run.py as it is installed, and a folder for a job's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.runtime.jobs import Place

PACKAGE = Path(__file__).resolve().parents[3] / "src" / "torchpar"


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.py as it is installed: in a folder of its own, with launch.py and the links to the package beside it."""
    folder = tmp_path_factory.mktemp("launcher")
    for name in ("run.py", "launch.py"):
        shutil.copy(PACKAGE / "runtime" / name, folder)
    (folder / "python").mkdir()
    for link in ("torchpar", "python/torchpar"):
        (folder / link).symlink_to(PACKAGE)
    return folder / "run.py"


@pytest.fixture
def place(tmp_path: Path, launcher: Path) -> Place:
    """An empty folder for a job's files."""
    path = tmp_path / "srv"
    path.mkdir()
    return Place(path, launcher)

"""The package is built as a Debian builder does it, with its tests, and each release's own checker looks at it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.machines.package import build_tested_package, lint_package
from tests.machines.roots import TREE, Suite


def test_the_build_passes_its_tests_and_is_reproducible(
    suite: Suite, deb: Path, tmp_path: Path, progress: Callable[[str], None]
) -> None:
    """The same sources give the bytes that all machines have, also from another folder and with other file times."""
    tree, target = tmp_path / "tree", tmp_path / "built"
    listing = subprocess.run(
        ["git", "-c", f"safe.directory={TREE}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TREE,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (TREE / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TREE / name, tree / name)
            (tree / name).chmod(0o755 if (TREE / name).stat().st_mode & 0o100 else 0o600)
    target.mkdir()
    assert build_tested_package(suite, tree, target, progress).read_bytes() == deb.read_bytes()


def test_lintian_finds_neither_errors_nor_warnings(suite: Suite, progress: Callable[[str], None]) -> None:
    """What lintian warns of would be a bug report against the package."""
    lint_package(suite, progress)

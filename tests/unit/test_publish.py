"""The script of the repository: what cannot be read whole is not signed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PUBLISH = Path(__file__).resolve().parents[2] / "src/repository/publish"

# As the tools of Debian end with a damaged package: the first fails, the second leaves it out.
TOOLS = {
    "gpg": 'case "$*" in *--export*) echo key ;; *) touch "$SIGNED" ;; esac',
    "dpkg-scanpackages": 'echo "dpkg-scanpackages: error: a.deb is damaged" >&2; exit "$SCANNED"',
    "apt-ftparchive": 'echo "E: a.deb is damaged" >&2',
}


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("arguments", "scanned"),
    [(("--promote", "canary", "stable"), 25), (("--promote", "canary", "stable"), 0), (("canary",), 0)],
    ids=["the suite before", "the new suite", "the suite"],
)
def test_a_damaged_package_in_the_pool_stops_it(tmp_path: Path, arguments: tuple[str, ...], scanned: int) -> None:
    """Hosts keep the suite that they have, and the tool's own words are there."""
    for name, text in TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    repository, signed = tmp_path / "repository", tmp_path / "signed"
    (repository / "pool/canary").mkdir(parents=True)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KEY": "x", "SIGNED": str(signed), "SCANNED": str(scanned)}
    first, rest = (arguments[:1], arguments[1:]) if arguments[0] == "--promote" else ((), arguments)
    argv = [PUBLISH, *first, repository, *rest]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "a.deb is damaged\npublish: " in done.stderr, done
    assert not signed.exists() and not (repository / "dists").exists()

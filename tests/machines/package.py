"""Builds the package in a clean root of a release, and has lintian look at it there.

`python3 -m tests.machines.package [SUITE ...]` does both for the suites named, or for all.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from tests.machines.container import Container
from tests.machines.roots import TREE, Report, Suite, build_root, locked, make_root, suite_of_this_host

# The arguments are variables. As a user, since a build that needs root is a broken one, and without network, since a
# Debian builder has none.
_BUILD = """
useradd --create-home builder
chown -R builder: /build
cd /build/torchpar
exec setpriv --reuid=builder --regid=builder --init-groups --reset-env \
    env "$@" dpkg-buildpackage --no-sign --build=source,all
"""

# That an older release knows only an older Policy is not the package's fault.
_LINT = """
useradd --create-home builder
cd /build
exec setpriv --reuid=builder --regid=builder --init-groups --reset-env \
    lintian --fail-on error,warning --info --color never --suppress-tags newer-standards-version "$@"
"""

# Left by builds and checkers, where there is no git to ask what is ignored.
_NOT_SOURCE = ("build", "dist", "__pycache__", ".*_cache", ".hypothesis", "*.pyc")


class PackageError(Exception):
    """The package was not built, or lintian found something."""


def build_package(suite: Suite, report: Report = print, tree: Path = TREE) -> Path:
    """The binary package of the tree as it is now, built on this release. It is built again only after a change.

    Without its tests, one of which would take the package from all machines: see `build_tested_package`.
    """
    target = tree / "build" / suite.value
    files = _source_files(tree)
    state = _digest(tree, files, build_root(suite, tree).name)
    stamp = target / "built-from"
    target.mkdir(parents=True, exist_ok=True)
    with locked(target.with_suffix(".lock")):
        if not (stamp.exists() and stamp.read_text() == state):
            shutil.rmtree(target)
            target.mkdir()
            report(f"building the package on {suite.release}")
            _build(suite, tree, files, target, "DEB_BUILD_OPTIONS=nocheck", report)
            stamp.write_text(state)
    return next(target.glob("*.deb"))


def build_tested_package(suite: Suite, tree: Path, target: Path, report: Report = print) -> Path:
    """The same of a tree, built into an empty folder as a Debian builder does it, whose build fails where a test does.

    The tests run where nothing else runs them: with the Python of the other release than this host's, which is that of
    `make unit`. On the release of that they are collected alone, which shows that Debian's own pytest takes them.
    """
    report(f"building and testing the package on {suite.release}")
    collected = "PYTEST_ADDOPTS=" + ("--collect-only" if suite is suite_of_this_host() else "")
    _build(suite, tree, _source_files(tree), target, collected, report)
    return next(target.glob("*.deb"))


def _build(suite: Suite, tree: Path, files: Sequence[Path], target: Path, variable: str, report: Report) -> None:
    """Build the files of a tree with a variable in the environment; what comes of it, and the log, are in `target`."""
    with Container(make_root(build_root(suite, tree), report), f"{suite.value}-package") as container:
        for file in files:
            _copy(tree / file, container.layer / "build" / "torchpar" / file)
        _run(container, _BUILD, [variable], target / "build.log")
        for product in (container.layer / "build").glob("torchpar_*"):
            shutil.copy(product, target)


def lint_package(suite: Suite, report: Report = print, tree: Path = TREE) -> None:
    """Have the release's lintian look at source and package. Raises PackageError on any error or warning of it."""
    products = list(build_package(suite, report, tree).parent.glob("torchpar_*"))
    report(f"lintian on {suite.release}")
    with Container(make_root(build_root(suite, tree), report), f"{suite.value}-lintian") as container:
        for product in products:
            _copy(product, container.layer / "build" / product.name)
        changes = [product.name for product in products if product.suffix == ".changes"]
        _run(container, _LINT, changes, products[0].parent / "lintian.log")


def _source_files(tree: Path) -> list[Path]:
    """All files of the tree but those that git ignores, relative to it, sorted."""
    if (tree / ".git").exists():
        # The tree may belong to the user who called sudo.
        git = ["git", "-c", f"safe.directory={tree}", "-C", str(tree)]
        listing = subprocess.run(
            [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        files = {Path(name) for name in listing.stdout.split("\0") if name}
    else:
        found = {path.relative_to(tree) for path in tree.rglob("*") if not path.is_dir()}
        files = {file for file in found if not any(fnmatch(part, name) for part in file.parts for name in _NOT_SOURCE)}
    # Listed by git and deleted since then.
    return sorted(file for file in files if (tree / file).is_symlink() or (tree / file).is_file())


def _digest(tree: Path, files: Sequence[Path], root: str) -> str:
    state = hashlib.sha256(root.encode())
    for file in files:
        path = tree / file
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        state.update(f"{file}\0{path.lstat().st_mode}\0{len(content)}\0".encode())
        state.update(content)
    return state.hexdigest()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


def _run(container: Container, script: str, arguments: Sequence[str], log: Path) -> None:
    process = container.start(
        "--as-pid2", "--private-network", console=log, command=["sh", "-eu", "-c", script, "sh", *arguments]
    )
    try:
        status = process.wait(timeout=3600)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if status:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
        raise PackageError(f"{log}: exit status {status}\n{end}")


def main() -> None:
    """Build and lint."""
    for suite in [Suite(name) for name in sys.argv[1:]] or list(Suite):
        print(build_package(suite))
        try:
            lint_package(suite)
        except PackageError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()

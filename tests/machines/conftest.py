"""Fixtures for tests on booted machines. All tests in this folder are marked `machine`, and run on every release.

`machine` has the package installed and is shared by half of the tests of a release: a test leaves it as it was.
SUITE=bookworm or SUITE=trixie in the environment keeps to one release.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machines.container import missing_here
from tests.machines.machine import CommandError, Machine, MachineError
from tests.machines.package import build_package
from tests.machines.roots import Suite, cache, installed_root, locked

_HERE = Path(__file__).parent

_SUITES = [Suite(os.environ["SUITE"])] if os.environ.get("SUITE") else list(Suite)


# The modules whose tests have machines of their own, those that take longest first.
_OWN = (
    "test_wheel",
    "test_numa",
    "test_build",
    "test_ansible",
    "test_package",
    "test_haproxy",
    "test_repository",
    "test_machine",
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark the tests of this folder, and put them in an order in which no process of pytest-xdist waits for another."""
    for item in filter(_is_ours, items):
        item.add_marker(pytest.mark.machine)
        suite, module, shared = _group(item)
        item.add_marker(pytest.mark.xdist_group(f"{_half(module) if shared else module} {suite}".strip()))
    # After pytest, which puts the tests of a release together, and pytest-xdist, which renames them.
    yield
    items.sort(key=lambda item: _place(item) if _is_ours(item) else ())


def _is_ours(item: pytest.Item) -> bool:
    return _HERE in item.path.parents


def _group(item: pytest.Item) -> tuple[str, str, bool]:
    """The release of a test, its module, and whether it shares the machine of its release."""
    suite = _parameters(item).get("suite")
    shared = "machine" in getattr(item, "fixturenames", ())
    return suite.value if isinstance(suite, Suite) else "", item.path.stem, shared


def _half(module: str) -> str:
    """Which machine of its release a module has: each has about as much to do."""
    return "a to h" if module < "test_i" else "i to z"


def _place(item: pytest.Item) -> tuple[object, ...]:
    """Where a test comes. First what shares a machine, which is for one process each; then the others, a group for each
    module and release, for whichever process is free."""
    suite, module, shared = _group(item)
    if shared:
        return 0, _half(module), suite, module
    return 1, _OWN.index(module) if module in _OWN else len(_OWN), module, suite


def _parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the logs of every machine that a failed test used, and say where."""
    outcome: Any = yield
    report = outcome.get_result()
    if not report.failed:
        return
    for machine in getattr(item, "funcargs", {}).values():
        if isinstance(machine, Machine) and machine.leader:
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{machine.name}-{item.name}-{report.when}")
            try:
                kept = str(machine.save_logs(name))
            except (OSError, CommandError, MachineError) as error:
                # A machine that answers no more must not end the run of all other tests.
                kept = f"cannot be kept: {error}"
            report.sections.append(("logs of the machine", kept))


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line at once, for what takes long. A process of pytest-xdist has no stdout."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", file=sys.stderr, flush=True)

    return show


@pytest.fixture(scope="session", params=_SUITES, ids=lambda suite: str(suite.value))
def suite(request: pytest.FixtureRequest) -> Suite:
    """The Debian release."""
    # A skipped test would look like a passed one where it matters.
    if missing := missing_here():
        pytest.fail(missing, pytrace=False)
    return Suite(request.param)


@pytest.fixture(scope="session")
def deb(suite: Suite, progress: Callable[[str], None]) -> Path:
    """The package, built from this tree on the release that it is tested on."""
    return build_package(suite, progress)


@pytest.fixture(scope="session")
def machine(suite: Suite, deb: Path, progress: Callable[[str], None]) -> Iterator[Machine]:
    """A machine with the package and all that it recommends, as `apt install ./torchpar.deb` leaves it."""
    with Machine(suite, "shared", root=installed_root(suite), report=progress) as booted:
        progress(f"installing {deb.name} on {suite.release}")
        booted.install_deb(deb)
        yield booted


@pytest.fixture(scope="module")
def ports() -> Iterator[None]:
    """The ports of this host are the module's alone, as machines share its network."""
    with locked(cache() / "ports.lock"):
        yield

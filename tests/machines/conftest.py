"""Fixtures for tests on booted machines. All tests in this folder are marked `machine`, and run on every release.

`machine` has the package installed and is shared by all tests of a release: a test leaves it as it was. `bare_machine`
is the test's own, without the package. SUITE=bookworm or SUITE=trixie in the environment keeps to one release.
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
from tests.machines.roots import Suite, cache, locked

_HERE = Path(__file__).parent

_SUITES = [Suite(os.environ["SUITE"])] if os.environ.get("SUITE") else list(Suite)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder. Those that share a machine stay in one process, where the releases are tested at
    the same time (pytest-xdist)."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.machine)
            item.add_marker(pytest.mark.xdist_group(str(_parameters(item).get("suite", item.path.stem))))


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
    """A machine with the package and all that it recommends, installed as a person would."""
    with Machine(suite, "shared", report=progress) as booted:
        progress(f"installing {deb.name} on {suite.release}")
        booted.install_deb(deb)
        yield booted


@pytest.fixture(scope="module")
def ports() -> Iterator[None]:
    """The ports of this host are the module's alone, as machines share its network."""
    with locked(cache() / "ports.lock"):
        yield


@pytest.fixture
def bare_machine(suite: Suite, deb: Path, progress: Callable[[str], None]) -> Iterator[Machine]:
    """A fresh machine with nothing but the package's file, in /var/tmp/torchpar.deb."""
    with Machine(suite, "bare", report=progress) as booted:
        booted.push(deb, "/var/tmp/torchpar.deb")
        yield booted

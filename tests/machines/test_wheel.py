"""Jobs with PyTorch's current wheel in a virtual environment (Python=), on the Debian whose Python is this host's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.machines.container import missing_here
from tests.machines.machine import Machine
from tests.machines.package import build_package
from tests.machines.stop_scripts import KINDS
from tests.machines.test_ranks import kill_ranks, run_examples
from tests.machines.test_stop import save_and_stop, stop_and_start
from tests.machines.wheel import MOUNT, PYTHON, suite_of_this_host, wheel_environment


@pytest.fixture(scope="module")
def wheel_machine(progress: Callable[[str], None]) -> Iterator[Machine]:
    """A machine with the package, the wheel and no torch of Debian's."""
    if missing := missing_here():
        pytest.fail(missing, pytrace=False)
    suite = suite_of_this_host()
    with Machine(suite, "wheel", mounts={MOUNT: wheel_environment(suite, progress)}, report=progress) as booted:
        booted.install_deb(build_package(suite, progress), recommends=False)
        yield booted


def test_a_killed_rank_brings_both_back(wheel_machine: Machine) -> None:
    """By torchrun and by systemd, from the checkpoint."""
    kill_ranks(wheel_machine, PYTHON)


def test_the_examples_run_with_it(wheel_machine: Machine) -> None:
    """Its pipelining module takes another way than the older ones without."""
    run_examples(wheel_machine, PYTHON)


def test_a_stop_leaves_a_whole_checkpoint(wheel_machine: Machine) -> None:
    """The ranks agree on a step."""
    stop_and_start(wheel_machine, PYTHON)


@pytest.mark.parametrize("kind", [kind for kind, job in KINDS.items() if job.torch])
def test_what_a_job_wants_to_save_is_saved(wheel_machine: Machine, kind: str) -> None:
    """Its loader workers are told apart by their names, and its stores are others."""
    save_and_stop(wheel_machine, kind, PYTHON)

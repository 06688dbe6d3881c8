"""Jobs with PyTorch's current wheel in a virtual environment (Python=), on the Debian whose Python is this host's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.machines.container import missing_here
from tests.machines.machine import Machine
from tests.machines.package import build_package
from tests.machines.stop_scripts import KINDS
from tests.machines.test_apply import TRAIN, apply
from tests.machines.test_ranks import kill_ranks, lines, run_examples
from tests.machines.test_stop import HANDLES, came_to_its_end, save_and_stop, stop_and_start
from tests.machines.wheel import MOUNT, PYTHON, wheel_environment, wheel_suite


@pytest.fixture(scope="module")
def wheel_machine(progress: Callable[[str], None]) -> Iterator[Machine]:
    """A machine with the package, the wheel and no torch of Debian's."""
    if missing := missing_here():
        pytest.fail(missing, pytrace=False)
    suite = wheel_suite()
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


def test_ranks_of_torchs_own_launcher_have_the_time_to_save(wheel_machine: Machine) -> None:
    """Longer than the half minute after which torchrun kills what is left. Debian's torchrun does not start."""
    wheel_machine.write("/srv/handles.py", HANDLES)
    conf = "Module=torch.distributed.run\nArguments=--nproc-per-node=2 /srv/handles.py\nThreads=1\n"
    apply(wheel_machine, f"[Train test-torchrun]\nPython={PYTHON}\n{conf}")
    unit = TRAIN.format("test-torchrun")
    wheel_machine.run("systemctl", "start", unit)
    wheel_machine.wait_until(lambda: len(lines(wheel_machine, "test-torchrun", "is there")) == 2, "both ranks")
    wheel_machine.run("systemctl", "stop", unit)
    assert came_to_its_end(wheel_machine, "test-torchrun")
    saved = sorted(lines(wheel_machine, "test-torchrun", r"rank \d has saved"))
    assert saved == ["rank 0 has saved", "rank 1 has saved"]


@pytest.mark.parametrize("kind", [kind for kind, job in KINDS.items() if job.torch])
def test_what_a_job_wants_to_save_is_saved(wheel_machine: Machine, kind: str) -> None:
    """Its loader workers are told apart by their names, and its stores are others."""
    save_and_stop(wheel_machine, kind, PYTHON)

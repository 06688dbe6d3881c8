"""What is set in torch when a script has imported it, what stays, and the last moment of a job of several ranks."""

from __future__ import annotations

import types
from dataclasses import replace

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.training import FAKE_TORCH, JOB, RANK, has_torch, printed, told, train
from torchpar.contract.job import job_environment
from torchpar.runtime.start import hook

pytestmark = pytest.mark.subprocess

THREADS = "import json, torch\nprint(json.dumps(torch.get_num_threads()))\n"


@pytest.mark.parametrize(
    ("stated", "stays"), [("2", None), ("2,1", None), ("3", "OMP_NUM_THREADS=3 is not the plan's (2): it stays")]
)
def test_threads_that_the_environment_names_stay(place: Place, stated: str, stays: str | None) -> None:
    """The unit says the plan's own number; of a list the first is that of the outermost regions, which are torch's."""
    place.write("x.py", THREADS)
    fake = {} if has_torch() else {"PYTHONPATH": str(FAKE_TORCH), "FAKE_TORCH": "2.13"}
    settings = replace(JOB, ranks=(replace(RANK, threads=2),))
    outcome = place.launched("x.py", OMP_NUM_THREADS=stated, **job_environment(settings), **fake)
    assert outcome.status == 0
    assert [line for line in told(outcome) if "OMP_NUM_THREADS" in line] == (
        [f"{stays}, and the plan's is not set"] if stays else []
    )


def test_a_number_of_the_administrators_never_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is the one that torchpard has given it just then."""
    numbers = [8]
    torch = types.SimpleNamespace(get_num_threads=lambda: numbers[-1], set_num_threads=numbers.append)
    rank = replace(RANK, threads=8)
    settings = replace(JOB, ranks=(rank,))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert not hook._set_threads(torch, settings, rank, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert hook._set_threads(torch, settings, rank, 4)
    assert numbers == [8, 4]


def test_a_scripts_own_interop_threads_are_a_line_and_no_error(place: Place) -> None:
    """torch would raise: it takes them once."""
    script = "import torch\ntorch.set_num_interop_threads(3)\nprint(torch.get_num_interop_threads())\n"
    outcome = train(place, script, settings=replace(JOB, interop_threads=2))
    assert printed(outcome) == 2
    assert "x.py:2 asks for 3 interop threads: the plan's 2 stays; InteropThreads= in torchpar.conf sets it" in told(
        outcome
    )


def test_a_thread_that_still_needs_the_interpreter_gets_it(place: Place) -> None:
    """As gloo's does after the last exchange; a C++ thread would end the process instead of itself."""
    script = (
        "import atexit, os, threading\nimport torch\n"
        "ended = threading.Event()\n"
        "def let_go():\n    ended.wait()\n    os.write(1, b'1')\n"
        "threading.Thread(target=let_go, daemon=True).start()\n"
        "atexit.register(ended.set)\n"
    )
    assert printed(train(place, script, settings=replace(JOB, nodes="2"))) == 1

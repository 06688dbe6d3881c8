"""What a job counts, and that telling it never holds the job up."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.training import RANK, has_torch, printed, told, train
from torchpar.contract.paths import JOB_SOCKET
from torchpar.daemon.throughput import parse_report
from torchpar.runtime.patches import progress

# A script's start that keeps the meter which torchpar makes when torch is imported.
BEGIN = """
import json
from torchpar.runtime.patches import progress
meters = []
class Kept(progress.Meter):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        meters.append(self)
progress.Meter = Kept
import torch
from torch.utils.data import DataLoader, Dataset
class Numbers(Dataset):
    def __len__(self): return 10
    def __getitem__(self, i): return i
def counts(): return [meters[0].steps, meters[0].samples, meters[0].batches]
def parameters(): return torch.nn.Linear(1, 1).parameters() if hasattr(torch, "nn") else []
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("fake", ["2.13", "1.13"])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_a_training_loop_is_counted(place: Place, fake: str, kind: str) -> None:
    """Steps, samples with the last batch that is smaller, batches; with workers, without, and over two epochs."""
    script = BEGIN + (
        f"optimizer = torch.optim.{kind}(parameters(), lr=0.1)\n"
        "loaders = [DataLoader(Numbers(), 4), DataLoader(Numbers(), 4, num_workers=0), DataLoader(Numbers(), None)]\n"
        "seen = []\n"
        "for loader in loaders:\n"
        "    for epoch in range(2):\n"
        "        for batch in loader: optimizer.step()\n"
        "    seen.append(counts())\n"
        "print(json.dumps(seen))\n"
    )
    # Without automatic batches an item may be a sample or many: nobody knows, and steps alone are told.
    assert printed(train(place, script, fake=fake)) == [[6, 20, 6], [12, 40, 12], [32, 40, 32]]


@pytest.mark.subprocess
def test_an_evaluation_is_no_training(place: Place) -> None:
    """Its samples do not count, its waiting does."""
    script = BEGIN + (
        "with torch.no_grad():\n"
        "    for batch in DataLoader(Numbers(), 4): pass\n"
        "print(json.dumps([counts(), meters[0].waited > 0]))\n"
    )
    assert printed(train(place, script)) == [[0, 0, 0], True]


@pytest.mark.subprocess
def test_optimizers_that_take_turns_make_one_step(place: Place) -> None:
    """A generator and a discriminator, or one optimizer for each parameter."""
    script = BEGIN + (
        "one, two = torch.optim.SGD(parameters(), lr=0.1), torch.optim.SGD(parameters(), lr=0.1)\n"
        "for _ in range(3):\n"
        "    one.step(); two.step()\n"
        "for _ in range(2): two.step()\n"
        "print(json.dumps(counts()))\n"
    )
    assert printed(train(place, script)) == [5, 0, 0]


@pytest.mark.subprocess
def test_a_forked_process_counts_for_nobody(place: Place) -> None:
    """A pool of the script's own would report other totals under the same rank."""
    script = BEGIN + (
        "import os\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    for batch in DataLoader(Numbers(), 4): pass\n"
        "    os._exit(sum(counts()))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert printed(train(place, script)) == 0


@pytest.mark.subprocess
def test_a_torch_that_is_made_otherwise_is_left_as_it_is(place: Place) -> None:
    """One line for each thing that is not done, and the job goes on."""
    if has_torch():
        pytest.skip("no torch is so")
    outcome = train(place, "import torch\nprint(1)\n", fake="other")
    assert [line.partition(":")[0] for line in told(outcome)] == [
        "steps and samples are not counted",
        "loader workers begin as torch has it",
    ]
    assert "torchpar: torch other.0+fake, 2 threads" in outcome.err


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("loader", "says"),
    [
        (
            "DataLoader(Slow(), 1)",
            "waited for data 83 % of the time; LoaderWorkers=5 (num_workers=5 where the call names it) would leave"
            " about 46 %; random transforms then draw from the workers' streams",
        ),
        (
            "DataLoader(Stream(), 1)",
            "waited for data 83 % of the time, in an IterableDataset: only num_workers= in its own call can help",
        ),
        ("DataLoader(Numbers(), 1)", None),
    ],
)
def test_a_run_says_at_its_end_what_it_waited_for(place: Place, loader: str, says: str | None) -> None:
    """And what would help; nothing of a run that did not wait."""
    script = "import time\nclock = [1.0]\ntime.monotonic = lambda: clock[0]\n" + BEGIN + (
        "from torch.utils.data import IterableDataset\n"
        "progress.LONG_ENOUGH = 0\n"
        "class Slow(Numbers):\n"
        "    def __getitem__(self, i): clock[0] += 0.1; return i\n"
        "class Stream(IterableDataset):\n"
        "    def __iter__(self):\n"
        "        for i in range(5): clock[0] += 0.1; yield i\n"
        f"for batch in {loader}: clock[0] += 0.02\n"
        "print(1)\n"
    )
    assert told(train(place, script, budget=8)) == [says] * (says is not None)


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the meters of a test send to; nobody listens yet."""
    path = str(tmp_path / "job.sock")
    monkeypatch.setattr(progress, "JOB_SOCKET", path)
    return path


def listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.setblocking(False)
    listener.bind(path)
    return listener


def meter_of(local_rank: int) -> progress.Meter:
    """The meter of a rank, without a torch."""
    return progress.Meter(torch=None, rank=replace(RANK, local_rank=local_rank))


class Iterator:
    """One of a loader without workers."""

    def __init__(self) -> None:
        self._sampler_iter, self._num_workers, self._dataset_kind, self._pin_memory = None, 0, 0, True


def due(meter: progress.Meter) -> None:
    """Let the meter's next message be due."""
    meter._next = 0.0


def test_what_is_sent_is_what_torchpard_reads(door: str) -> None:
    """Totals, under the rank's number."""
    listener = listening(door)
    meter = meter_of(3)
    iterator = Iterator()
    meter.asked(iterator, list(range(64)))
    meter.batch(iterator, 0.25, time.monotonic(), training=True)
    with pytest.raises(BlockingIOError):
        listener.recv(4096)
    due(meter)
    meter.step(meter)
    report = parse_report(listener.recv(4096))
    assert report and (report.local_rank, report.steps, report.samples, report.batches) == (3, 1, 64, 1)
    assert (report.waited, report.fetching, report.fetched, report.iterators) == (0.25, 0.25, 1, 1)
    assert abs(report.time - time.monotonic()) < 60
    assert JOB_SOCKET == "/run/torchpar/job.sock"


def test_nobody_needs_to_listen(door: str) -> None:
    """Before torchpard starts, while it is away, and after it has come back."""
    meter = meter_of(0)
    due(meter)
    meter.step(meter)
    assert meter._next > time.monotonic()
    listener = listening(door)
    due(meter)
    meter.step(meter)
    assert json.loads(listener.recv(4096))["steps"] == 2
    listener.close()
    due(meter)
    meter.step(meter)
    Path(door).unlink()
    listener = listening(door)
    due(meter)
    meter.step(meter)
    assert json.loads(listener.recv(4096))["steps"] == 4


def test_a_full_queue_does_not_hold_the_job_up(door: str) -> None:
    """The message is left, and tried again soon."""
    listener = listening(door)
    meter = meter_of(0)
    for _ in range(2000):
        due(meter)
        meter.step(meter)
    assert time.monotonic() < meter._next < time.monotonic() + progress.PERIOD
    assert json.loads(listener.recv(4096))["steps"] == 1


def test_many_ranks_send_at_different_times(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket's queue holds ten; 64 neighbouring processes spread over half a second."""
    periods = []
    for pid in range(4000, 4064):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        periods.append(meter_of(0)._period)
    fullest = max(sum(start <= period < start + 0.05 for period in periods) for start in periods)
    assert fullest <= 10
    assert all(progress.PERIOD <= period <= progress.PERIOD + 0.5 for period in periods)

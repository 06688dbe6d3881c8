"""What a job counts, and that telling it never holds the job up."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.training import RANK, has_torch, printed, train
from tests.unit.runtime.training import told as lines
from torchpar.contract.reports import SLOTS, RankProgress
from torchpar.host.job_folder import read_progress
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
    assert [line.partition(":")[0] for line in lines(outcome)] == [
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
    assert lines(train(place, script, budget=8)) == [says] * (says is not None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The RuntimeDirectory= of the service whose process this one is."""
    made = tmp_path / "jobs" / "torchpar-train@a"
    made.mkdir(parents=True)
    monkeypatch.setattr(progress, "JOBS", str(made.parent))
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{made}:/run/other")
    return made


def meter_of(local_rank: int) -> progress.Meter:
    """The meter of a rank, without a torch."""
    return progress.Meter(torch=None, rank=replace(RANK, local_rank=local_rank))


class Iterator:
    """One of a loader without workers."""

    def __init__(self) -> None:
        self._sampler_iter, self._num_workers, self._dataset_kind, self._pin_memory = None, 0, 0, True


def step(meter: progress.Meter, times: int = 1) -> None:
    """Make steps, after each of which the totals are due."""
    for _ in range(times):
        meter._next = 0.0
        meter.step(meter)


def told(folder: Path) -> tuple[RankProgress, ...]:
    """What torchpard reads of the service."""
    return read_progress(f"{folder.name}.service", 16, str(folder.parent))


def test_what_is_told_is_what_torchpard_reads(folder: Path) -> None:
    """Totals, under the rank's number; as soon as they are due, and no sooner."""
    meter = meter_of(3)
    iterator = Iterator()
    meter.asked(iterator, list(range(64)))
    meter.batch(iterator, 0.25, time.monotonic(), training=True)
    meter.step(meter)
    assert list(folder.iterdir()) == []
    step(meter)
    (rank,) = told(folder)
    totals = rank.first
    assert rank.last == totals and (totals.pid, totals.local_rank) == (os.getpid(), 3)
    assert (totals.steps, totals.samples, totals.batches, totals.pageable) == (2, 64, 1, False)
    assert (totals.waited, totals.fetching, totals.fetched, totals.iterators) == (0.25, 0.25, 1, 1)
    assert totals.time < meter._next <= time.monotonic() + progress.PERIOD
    step(meter, 40)
    (rank,) = told(folder)
    assert (rank.first.steps, rank.last.steps) == (42 - SLOTS + 1, 42)
    assert stat.S_IMODE((folder / "progress").stat().st_mode) & 0o222 == 0o200


def test_the_ranks_of_a_service_share_a_file(folder: Path) -> None:
    """Each has its own part of it, and one that was started again begins anew."""
    for local_rank in (2, 0, 1):
        step(meter_of(local_rank), local_rank + 1)
    step(meter_of(2))
    assert [(rank.last.local_rank, rank.last.steps) for rank in told(folder)] == [(0, 1), (1, 2), (2, 1)]
    assert [path.name for path in folder.iterdir()] == ["progress"]


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a pipe that nobody reads": os.mkfifo,
    "a link": lambda path: path.symlink_to(path.with_name("theirs")),
    "a folder": Path.mkdir,
    "no folder at all": lambda path: path.parent.rmdir(),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_whatever_is_in_its_place_holds_no_job_up(folder: Path, make: Callable[[Path], object]) -> None:
    """It goes on, changes nothing else, and tells again when it can."""
    make(folder / "progress")
    meter = meter_of(0)
    began = time.monotonic()
    step(meter, 3)
    assert told(folder) == () and not (folder / "theirs").exists()
    assert began < meter._next <= time.monotonic() + progress.PERIOD
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    step(meter)
    assert [rank.last.steps for rank in told(folder)] == [4]


def test_a_file_that_cannot_grow_holds_no_job_up(folder: Path) -> None:
    """As on a full disk: the totals are written when there is room again."""
    meter = meter_of(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        step(meter, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told(folder) == ()
    step(meter)
    assert [rank.last.steps for rank in told(folder)] == [4]


@pytest.mark.subprocess
def test_no_file_of_the_script_is_written_to(place: Place) -> None:
    """Though it has closed all descriptors and opened files of its own, as a daemon does."""
    script = BEGIN + (
        "import os\n"
        "os.mkdir('jobs'); os.mkdir('jobs/x')\n"
        "meters[0]._path = 'jobs/x/progress'\n"
        "def step(): meters[0]._next = 0.0; meters[0].step(meters[0])\n"
        "step()\n"
        "os.closerange(3, 64)\n"
        "files = [os.open(f'file-{n}', os.O_RDWR | os.O_CREAT) for n in range(20)]\n"
        "step()\n"
        "print(json.dumps([sum(os.fstat(file).st_size for file in files), os.stat('jobs/x/progress').st_size]))\n"
    )
    assert printed(train(place, script)) == [0, 256]


@pytest.mark.parametrize("directory", [None, "", "/run/other", "{}", "{}/x/y", "{}-other/x"])
def test_nothing_is_written_in_folders_of_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, directory: str | None
) -> None:
    """A job that has no unit may have inherited the variable from a service that is none of torchpar's."""
    for other in (folder.parent / "x" / "y", folder.parent.with_name(f"{folder.parent.name}-other") / "x"):
        other.mkdir(parents=True)
    if directory is None:
        monkeypatch.delenv("RUNTIME_DIRECTORY")
    else:
        monkeypatch.setenv("RUNTIME_DIRECTORY", directory.format(folder.parent))
    step(meter_of(0), 2)
    assert not list(folder.parent.parent.rglob("progress"))


def test_a_rank_beyond_all_places_tells_nothing(folder: Path) -> None:
    """And steps on."""
    step(meter_of(256))
    assert told(folder) == ()


def test_only_the_thread_that_makes_steps_is_told_of_them() -> None:
    """The number of threads that OpenMP has is one thread's, and a script may load its batches in another."""
    heard: list[int] = []
    meter = progress.Meter(torch=None, rank=RANK, between_steps=lambda now: heard.append(threading.get_ident()))

    def load() -> None:
        meter.batch(Iterator(), 0.0, 1.0, training=True)

    load()
    assert not heard, "nobody has made a step yet"
    meter.step(meter)
    load()
    for other in (load, lambda: meter.step(meter)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert heard == [threading.get_ident()] * 2

"""DataLoader calls in a job: what the conf gives them, what is left alone, and how workers begin."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.training import JOB, RANK, all_cpus, has_torch, printed, told, train
from torchpar.runtime.patches import workers
from torchpar.runtime.patches.workers import make_worker_cpus, worker_cpus

pytestmark = pytest.mark.subprocess

# Datasets and a way to see a batch, for all scripts below.
BEGIN = """
import json, os, sys
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
class Numbers(Dataset):
    def __len__(self): return 10
    def __getitem__(self, i): return i
class Stream(IterableDataset):
    def __iter__(self): yield from range(10)
def seen(loader): return [[int(x) for x in batch] for batch in loader]
def sizes(loader): return [loader.num_workers, loader.prefetch_factor]
"""

def numbered(script: str) -> str:
    """The script after BEGIN; its first line is 11."""
    return BEGIN.strip() + "\n" + script


def test_without_a_key_that_asks_dataloader_is_torchs_own(place: Place) -> None:
    """The class is not even wrapped; also PinMemory=no asks for nothing."""
    script = numbered(
        "loader = DataLoader(Numbers(), batch_size=4)\n"
        "print(json.dumps([loader.num_workers, loader.pin_memory, DataLoader.__init__.__closure__ is None]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, pin_memory=False))
    assert printed(outcome) == [0, False, True]
    assert told(outcome) == []


@pytest.mark.parametrize("fake", ["2.13", "1.13"])
def test_a_call_that_names_nothing_is_given_what_the_conf_asks_for(place: Place, fake: str) -> None:
    """num_workers and prefetch_factor, with one line that says where, however often it is passed."""
    script = numbered(
        "for _ in range(2): loader = DataLoader(Numbers(), batch_size=4)\n"
        "print(json.dumps([sizes(loader), seen(loader)]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, prefetch_factor=3), loader_workers=2, fake=fake)
    assert printed(outcome) == [[2, 3], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]]
    assert told(outcome) == [
        "x.py:11: DataLoader(...) gets num_workers=2, prefetch_factor=3, as torchpar.conf asks"
    ]


def test_what_a_call_names_stays(place: Place) -> None:
    """By keyword, by position, and with 0 too."""
    script = numbered(
        "print(json.dumps([sizes(loader) for loader in (\n"
        "    DataLoader(Numbers(), num_workers=0), DataLoader(Numbers(), 4, False, None, None, 1),\n"
        "    DataLoader(Numbers(), num_workers=1, prefetch_factor=5))]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, prefetch_factor=3), loader_workers=2)
    assert printed(outcome)[0][0] == 0
    assert printed(outcome)[1:] == [[1, 3], [1, 5]]


def test_a_class_made_from_dataloader_is_one(place: Place) -> None:
    """The line names where the script makes it, not where the class calls DataLoader's constructor."""
    script = numbered(
        "class Mine(DataLoader):\n"
        "    def __init__(self, dataset, **named):\n"
        "        super().__init__(dataset, **named)\n"
        "class Fixed(DataLoader):\n"
        "    def __init__(self, dataset, num_workers=0):\n"
        "        super().__init__(dataset, num_workers=num_workers)\n"
        "print(json.dumps([Mine(Numbers()).num_workers, Fixed(Numbers()).num_workers]))\n"
    )
    outcome = train(place, script, loader_workers=1)
    assert printed(outcome) == [1, 0]
    assert [line.partition(": ")[0] for line in told(outcome)] == ["x.py:17"]


def test_a_loader_that_is_built_anew_from_another_is_the_librarys_word(place: Place) -> None:
    """Libraries copy all arguments by name: also a 0 that was set on the loader since then."""
    script = numbered(
        "loader = DataLoader(Numbers(), batch_size=4)\n"
        "loader.num_workers = 0\n"
        "again = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, num_workers=loader.num_workers)\n"
        "print(json.dumps([again.num_workers, seen(again)]))\n"
    )
    assert printed(train(place, script, loader_workers=2)) == [0, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]]


def test_an_iterable_dataset_is_never_given_anything(place: Place) -> None:
    """Each worker would have the whole of it."""
    script = numbered(
        "loader = DataLoader(Stream(), batch_size=4)\n"
        "print(json.dumps([loader.num_workers, loader.pin_memory, seen(loader)]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, prefetch_factor=3, pin_memory=True), loader_workers=3)
    assert printed(outcome) == [0, False, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]]
    assert told(outcome) == []


def test_processes_of_the_script_are_left_alone(place: Place) -> None:
    """In a forked process, daemonic or not, DataLoader is torch's own."""
    script = numbered(
        "import multiprocessing\n"
        "context = multiprocessing.get_context('fork')\n"
        "def child(queue): queue.put([DataLoader(Numbers()).num_workers, seen(DataLoader(Numbers(), batch_size=5))])\n"
        "for daemon in (False, True):\n"
        "    queue = context.SimpleQueue()\n"
        "    process = context.Process(target=child, args=(queue,), daemon=daemon)\n"
        "    process.start(); answer = queue.get(); process.join()\n"
        "    assert answer == [0, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], answer\n"
        "print(1)\n"
    )
    assert told(train(place, script, loader_workers=1)) == []


def test_memory_is_pinned_where_the_conf_says_so(place: Place) -> None:
    """Not where the call names it."""
    script = numbered(
        "loaders = DataLoader(Numbers(), batch_size=5), DataLoader(Numbers(), pin_memory=False)\n"
        "print(json.dumps([loader.pin_memory for loader in loaders]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, pin_memory=True))
    assert printed(outcome) == [True, False]
    assert told(outcome) == ["x.py:11: DataLoader(...) gets pin_memory=True, as torchpar.conf asks"]


def test_workers_that_do_not_fit_are_named_once(place: Place) -> None:
    """Workers and compute threads against what the rank's CPUs can run; where they are iterated, not where made."""
    script = numbered(
        "loaders = [DataLoader(Numbers(), num_workers=n) for n in (4, 4, 3)]\n"
        "for loader in loaders:\n"
        "    for batch in loader: pass\n"
        "print(1)\n"
    )
    assert told(train(place, script, budget=5)) == [
        "x.py:13: a DataLoader with 4 workers beside 2 compute threads is more than the 5 that this rank's CPUs can"
        " run: they take turns; Threads= in torchpar.conf, or the call, makes room"
    ]


def test_a_wrong_call_fails_as_it_does_without_us(place: Place) -> None:
    """torch's own message."""
    script = numbered(
        "for named in ({'numworkers': 1}, {'dataset': None}, {'num_workers': 0, 'prefetch_factor': 7}):\n"
        "    try: DataLoader(Numbers(), **named)\n"
        "    except (TypeError, ValueError) as error: print(type(error).__name__, error, file=sys.stderr)\n"
        "print(1)\n"
    )
    err = train(place, script, loader_workers=1).err
    assert "TypeError" in err and "'numworkers'" in err and "multiple values" in err
    assert "ValueError prefetch_factor option could only be specified in multiprocessing" in err


@pytest.mark.parametrize(
    ("allowed", "cpus"),
    [
        ({0, 1, 2, 3}, {0, 1, 2, 3, 8, 9}),
        ({0, 1, 2, 3, 8, 9, 10}, {0, 1, 2, 3, 8, 9}),
        ({1, 2}, {1, 2}),
        ({2, 8}, {2}),
        ({5}, {5}),
    ],
)
def test_workers_stay_within_what_the_process_was_narrowed_to(allowed: set[int], cpus: set[int]) -> None:
    """By `systemctl edit`, say; else they have all CPUs of the rank, and those that are theirs alone."""
    assert worker_cpus(replace(RANK, cpus="0-3", loader_cpus="8-9"), allowed) == cpus


@pytest.mark.parametrize(
    ("allowed", "first", "later"),
    [
        # It began with all of its CPUs, with those that it had been given, and with less: by somebody else.
        ({0, 1, 2, 3}, {2, 3, 8}, {0, 1, 2, 3, 8}),
        ({2, 3}, {2, 3, 8}, {0, 1, 2, 3, 8}),
        ({2}, {2}, {2}),
    ],
)
def test_workers_begin_on_the_cpus_that_torchpard_has_given_by_then(
    allowed: set[int], first: set[int], later: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = replace(RANK, cpus="0-3", loader_cpus="8")
    now = [replace(rank, cpus="2-3", threads=1)]
    monkeypatch.setattr(workers.given, "now", lambda settings, rank, environ: now[0])
    cpus = make_worker_cpus(replace(JOB, ranks=(rank,)), rank, allowed)
    assert cpus.now() == first
    now[0] = rank
    assert pickle.loads(pickle.dumps(cpus)).now() == later


@pytest.mark.parametrize("binds", [False, True])
def test_workers_do_not_undo_the_scripts_own_affinity(place: Place, binds: bool) -> None:
    """Set before torch is imported. With OMP_PROC_BIND the kernel's word then is OpenMP's and counts no more."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    place.write("import_first.py", f"import os\nos.sched_setaffinity(0, [{cpus[0]}])\n")
    script = "import import_first\n" + numbered(
        "class Where(Numbers):\n"
        "    def __getitem__(self, i): return len(os.sched_getaffinity(0))\n"
        "print(json.dumps(seen(DataLoader(Where(), 10, num_workers=1))[0][0]))\n"
    )
    if binds:
        script = "import os\nos.environ['OMP_PROC_BIND'] = 'true'\n" + script
    assert printed(train(place, script, cpus=all_cpus())) == (len(cpus) if binds else 1)


def test_a_worker_has_one_thread_and_the_ranks_cpus(place: Place) -> None:
    """Also where the process that forks it sits on one CPU, as by OpenMP's binding; the script's own init is last."""
    script = numbered(
        "class Where(Dataset):\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, i): return (torch.get_num_threads(), INIT, *sorted(os.sched_getaffinity(0)))\n"
        "INIT = 0\n"
        "def init(number):\n"
        "    global INIT\n"
        "    INIT = int(os.environ['OMP_NUM_THREADS']) + int(os.environ['OPENBLAS_NUM_THREADS'])\n"
        "cpus = sorted(os.sched_getaffinity(0))\n"
        "os.sched_setaffinity(0, cpus[:1])\n"
        "seen = []\n"
        "for named in ({'num_workers': 1}, {'num_workers': 2, 'worker_init_fn': init}):\n"
        "    loader = DataLoader(Where(), batch_size=None, **named)\n"
        "    seen += [[int(x) for x in item] for item in loader]\n"
        "assert len(os.sched_getaffinity(0)) == 1\n"
        "print(json.dumps(seen))\n"
    )
    cpus = all_cpus()
    first, _, others = cpus.partition(",")
    expected = [1, *map(int, cpus.split(","))]
    seen = printed(train(place, script, cpus=first, loader_cpus=others))
    assert seen == 2 * [[1, 0, *expected[1:]]] + 2 * [[1, 2, *expected[1:]]]


@pytest.mark.parametrize("signals", ["", "each"])
def test_workers_outlive_the_signals_that_ask_their_rank_to_save(place: Place, signals: str) -> None:
    """A scheduler sends them to every process of a job; the loader of a worker that dies raises an exception."""
    script = numbered(
        "import signal, subprocess\n"
        "class Sent(Dataset):\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, i):\n"
        "        if SPARED:\n"
        "            subprocess.run(['sh', '-c', f'kill -TERM {os.getpid()}; kill -USR1 {os.getpid()}'], check=True)\n"
        "        return i\n"
        f"SPARED = {bool(signals)}\n"
        "print(json.dumps([int(item) for item in DataLoader(Sent(), None, num_workers=1)]))\n"
    )
    assert printed(train(place, script, settings=replace(JOB, signals=signals))) == [0, 1]


@pytest.mark.parametrize("signals", ["", "each"])
def test_a_worker_that_hangs_does_not_keep_its_rank_from_its_end(place: Place, signals: str) -> None:
    """multiprocessing ends it by SIGTERM, and waits for it."""
    script = numbered(
        "import time\n"
        "class Hangs(Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, i): return i if i == 0 else time.sleep(600)\n"
        "batches = iter(DataLoader(Hangs(), None, num_workers=1))\n"
        "print(json.dumps(int(next(batches))))\n"
    )
    outcome = train(place, script, settings=replace(JOB, signals=signals))
    assert printed(outcome) == 0 and "Error" not in outcome.err


def test_what_a_worker_runs_can_be_ended_by_sigterm(place: Place) -> None:
    """A program has no say in what is ignored before it begins."""
    script = numbered(
        "import subprocess\n"
        "class Runs(Dataset):\n"
        "    def __len__(self): return 1\n"
        "    def __getitem__(self, i):\n"
        "        program = subprocess.Popen(['sleep', '600'])\n"
        "        program.terminate()\n"
        "        return program.wait(300)\n"
        "print(json.dumps([int(item) for item in DataLoader(Runs(), None, num_workers=1)]))\n"
    )
    assert printed(train(place, script, settings=replace(JOB, signals="each"))) == [-15]


def test_a_spawned_worker_begins_so_too(place: Place) -> None:
    """The script asks for it itself; what is told to the worker is found again in a fresh interpreter."""
    if not has_torch():
        pytest.skip("the fake torch pickles no workers")
    script = BEGIN + (
        "class Where(Dataset):\n"
        "    def __len__(self): return 1\n"
        "    def __getitem__(self, i): return (torch.get_num_threads(), *sorted(os.sched_getaffinity(0)))\n"
        "if __name__ == '__main__':\n"
        "    cpus = os.sched_getaffinity(0); os.sched_setaffinity(0, list(cpus)[:1])\n"
        "    loader = DataLoader(Where(), batch_size=None, num_workers=1, multiprocessing_context='spawn')\n"
        "    print(json.dumps([[int(x) for x in item] for item in loader]))\n"
    )
    cpus = all_cpus()
    assert printed(train(place, script, cpus=cpus)) == [[1, *map(int, cpus.split(","))]]

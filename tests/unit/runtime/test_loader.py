"""DataLoader calls in a job: what they are given, what is left alone, and that the model sees the same."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.training import JOB, RANK, all_cpus, has_torch, printed, told, train
from torchpar.runtime.loader import worker_cpus

pytestmark = pytest.mark.subprocess

# Datasets and a way to see a batch, for all scripts below.
BEGIN = """
import json, os, socket, sys, threading
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
MAIN = os.getpid()
class Numbers(Dataset):
    def __len__(self): return 10
    def __getitem__(self, i): return i
class Stream(IterableDataset):
    def __iter__(self): yield from range(10)
def seen(loader): return [[int(x) for x in batch] for batch in loader]
def sizes(loader): return [loader.num_workers, loader.prefetch_factor]
"""

AWAY = "LoaderWorkers=off in torchpar.conf leaves such calls alone"


def numbered(script: str) -> str:
    """The script after BEGIN; its first line is 12."""
    return BEGIN.strip() + "\n" + script


@pytest.mark.parametrize("fake", ["2.13", "1.13"])
def test_a_call_that_names_nothing_is_given_the_plan(place: Place, fake: str) -> None:
    """num_workers and prefetch_factor, with one line that says where."""
    script = numbered(
        "loader = DataLoader(Numbers(), batch_size=4)\nprint(json.dumps([sizes(loader), seen(loader)]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, prefetch_factor=3), loader_workers=2, fake=fake)
    assert printed(outcome) == [[2, 3], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]]
    assert told(outcome) == [
        f"x.py:12: DataLoader(...) gets num_workers=2, prefetch_factor=3 as planned; {AWAY}"
    ]


def test_what_a_call_names_stays(place: Place) -> None:
    """By keyword, by position, and with 0 too."""
    script = numbered(
        "print(json.dumps([sizes(loader) for loader in (\n"
        "    DataLoader(Numbers(), num_workers=0), DataLoader(Numbers(), 4, False, None, None, 1),\n"
        "    DataLoader(Numbers(), num_workers=1, prefetch_factor=5))]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, prefetch_factor=3))
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
    outcome = train(place, script)
    assert printed(outcome) == [1, 0]
    assert [line.partition(": ")[0] for line in told(outcome)] == ["x.py:18"]


def test_off_leaves_all_calls_alone(place: Place) -> None:
    """LoaderWorkers=off: nothing is given, and nothing said."""
    script = numbered(
        "print(json.dumps([sizes(DataLoader(Numbers(), num_workers=9)), DataLoader(Numbers()).num_workers]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, loader=False, prefetch_factor=3))
    assert printed(outcome) == [[9, 2], 0]
    assert told(outcome) == []


def test_too_many_workers_of_the_scripts_own_are_named_once(place: Place) -> None:
    """Workers and compute threads against the rank's CPUs and those beside it for workers."""
    script = numbered(
        "for _ in range(3): DataLoader(Numbers(), num_workers=4)\nDataLoader(Numbers(), num_workers=3)\nprint(1)\n"
    )
    outcome = train(place, script, loader_cpus="8")
    assert told(outcome) == [
        "x.py:12: DataLoader(num_workers=4) and 2 compute threads are more than this rank's 5 CPUs: they take turns;"
        " Threads= in torchpar.conf, or the call, makes room"
    ]


def test_a_wrong_call_fails_as_it_does_without_us(place: Place) -> None:
    """torch's own message."""
    script = numbered(
        "for named in ({'numworkers': 1}, {'dataset': None}, {'num_workers': 0, 'prefetch_factor': 7}):\n"
        "    try: DataLoader(Numbers(), **named)\n"
        "    except (TypeError, ValueError) as error: print(type(error).__name__, error, file=sys.stderr)\n"
        "print(1)\n"
    )
    err = train(place, script).err
    assert "TypeError" in err and "'numworkers'" in err and "multiple values" in err
    assert "ValueError prefetch_factor option could only be specified in multiprocessing" in err


def test_the_order_is_the_same_as_without_workers(place: Place) -> None:
    """Shuffled by a seed, over two epochs."""
    script = numbered(
        "orders = []\n"
        "for named in ({}, {'num_workers': 0}):\n"
        "    torch.manual_seed(7)\n"
        "    loader = DataLoader(Numbers(), 3, True, **named)\n"
        "    orders.append([seen(loader), seen(loader)])\n"
        "print(json.dumps([orders[0] == orders[1], sorted(sum(orders[0][0], [])), orders[0][0] == orders[0][1]]))\n"
    )
    assert printed(train(place, script, loader_workers=2)) == [True, list(range(10)), False]


def test_an_iterable_dataset_gets_one_worker(place: Place) -> None:
    """Each worker would have the whole of it."""
    script = numbered(
        "loader = DataLoader(Stream(), batch_size=4)\nprint(json.dumps([loader.num_workers, seen(loader)]))\n"
    )
    outcome = train(place, script, loader_workers=3)
    assert printed(outcome) == [1, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]]


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        ("    def __iter__(self): self.at = 1; yield self.at", "remembers something while it is iterated"),
        ("    def __iter__(self): yield self.read()\n    def read(self): self.at = 1; return 1", "remembers something"),
        ("    def __init__(self): self.a = iter('ab')\n    def __iter__(self): yield next(self.a)", "an iterator"),
        ("    def __iter__(self): return self\n    def __next__(self): raise StopIteration", "is an iterator"),
        ("    __iter__ = staticmethod(lambda: (yield 1)).__func__", None),
        ("    __iter__ = type('I', (), {'__call__': lambda self: iter(())})()", "could be looked at"),
    ],
    ids=["an attribute", "by a method", "holds an iterator", "an iterator", "plain", "no code"],
)
def test_an_iterable_dataset_that_remembers_is_read_in_the_process(place: Place, dataset: str, why: str | None) -> None:
    """What it remembers in a worker would be forgotten, and the next epoch be another one."""
    script = numbered(f"class Odd(IterableDataset):\n{dataset}\nprint(DataLoader(Odd()).num_workers)\n")
    outcome = train(place, script)
    assert printed(outcome) == (0 if why else 1)
    assert (why or "gets num_workers=1") in told(outcome)[0]


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [
        ("sampler=Own()", 0),
        ("batch_sampler=BatchSampler(Own(), 2, False)", 0),
        ("batch_sampler=BatchSampler(RandomSampler(Numbers()), 2, False)", 1),
        ("sampler=[3, 1]", 1),
        ("batch_sampler=[[3], [1, 2]]", 1),
        ("sampler=SequentialSampler(Numbers())", 1),
    ],
)
def test_a_sampler_of_the_scripts_own_is_not_asked_ahead(place: Place, arguments: str, workers: int) -> None:
    """What it gives may depend on how the training goes."""
    script = numbered(
        "class Own:\n    def __iter__(self): return iter([1])\n    def __len__(self): return 1\n"
        f"print(DataLoader(Numbers(), {arguments}).num_workers)\n"
    )
    assert printed(train(place, script)) == workers


@pytest.mark.parametrize(
    ("method", "workers"), [("fork", 1), ("spawn", 0), ("forkserver", 0)]
)
def test_a_start_method_of_the_scripts_own_decides(place: Place, method: str, workers: int) -> None:
    """Spawned workers would run the script's first level and import torch at every epoch."""
    script = numbered(
        f"import multiprocessing\nmultiprocessing.set_start_method('{method}')\n"
        "print(DataLoader(Numbers()).num_workers)\n"
    )
    outcome = train(place, script)
    assert printed(outcome) == workers
    assert workers or f"the script has set the start method {method}" in told(outcome)[0]


def test_the_script_can_still_set_its_start_method(place: Place) -> None:
    """Also after a loader with workers has run; and from then on there are none."""
    script = numbered(
        "import multiprocessing\n"
        "loader = DataLoader(Numbers(), batch_size=5)\n"
        "first = [loader.num_workers, seen(loader)]\n"
        "multiprocessing.set_start_method('spawn')\n"
        "print(json.dumps(first + [seen(loader), loader.num_workers, DataLoader(Numbers()).num_workers]))\n"
    )
    numbers = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert printed(train(place, script)) == [1, numbers, numbers, 0, 0]


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
    assert told(train(place, script)) == []


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("open(__file__)", "dataset.part, an open file"),
        ("[1, {'a': open(__file__, 'rb')}]", "dataset.part[...]['a'], an open file"),
        ("socket.socketpair()[0]", "dataset.part, a socket"),
        ("(x for x in 'ab')", "dataset.part, a generator"),
        ("threading.Thread()", "dataset.part, a thread"),
        ("__import__('sqlite3').connect(':memory:')", "dataset.part, a sqlite3.Connection"),
        ("(lambda file: lambda: file)(open(__file__))", "file, an open file"),
        ("__import__('random').Random(1)", "dataset.part, random numbers of its own"),
        ("torch.Generator()", "dataset.part, random numbers of its own"),
        ("type('A', (), {'file': open(__file__)})()", "dataset.part.file, an open file"),
        ("type('S', (), {'__slots__': ('f',)})()\ndata.part.f = open(__file__)", "dataset.part.f, an open file"),
        ("lambda: inner()\ndef inner(): return FILE\nFILE = open(__file__)", "FILE, an open file"),
        ("__import__('functools').partial(print, open(__file__))", "dataset.part.args[...], an open file"),
        ("sys.stdout", None),
        ("__import__('io').BytesIO(b'x')", None),
        ("list(range(100000))", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_worker_cannot_share_is_loaded_in_the_process(place: Place, value: str, what: str | None) -> None:
    """It is looked at when the batches are asked for: the script may put it there after the call."""
    script = numbered(
        "data = Numbers()\nloader = DataLoader(data, batch_size=5)\n"
        f"data.part = {value}\nbatches = seen(loader)\n"
        "print(json.dumps([batches, loader.num_workers, loader.multiprocessing_context is None]))\n"
    )
    outcome = train(place, script)
    assert printed(outcome) == [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], 0 if what else 1, bool(what)]
    if what:
        line = f"x.py:13: DataLoader(...) loads in the process itself after all: a worker could not share {what}"
        assert told(outcome)[1] == line


@pytest.mark.parametrize("failure", ["raise RuntimeError('Cannot re-initialize CUDA')", "os.kill(os.getpid(), 9)"])
def test_workers_that_fail_at_once_give_way_to_the_process(place: Place, failure: str) -> None:
    """The process goes on from where it was: the same order as without workers."""
    if "kill" in failure:
        if not has_torch():
            pytest.skip("the fake torch does not notice a killed worker")
    script = numbered(
        "class Picky(Numbers):\n"
        "    def __getitem__(self, i):\n"
        "        if os.getpid() != MAIN:\n"
        f"            {failure}\n"
        "        return i\n"
        "orders = []\n"
        "for named in ({}, {'num_workers': 0}):\n"
        "    torch.manual_seed(3)\n"
        "    loader = DataLoader(Picky(), 4, shuffle=True, **named)\n"
        "    orders.append([seen(loader), seen(loader)])\n"
        "print(json.dumps([orders[0] == orders[1], loader.num_workers]))\n"
    )
    outcome = train(place, script)
    assert printed(outcome) == [True, 0]
    assert "loads in the process itself after all: the workers failed: " in told(outcome)[1]


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
        "print(json.dumps(seen(DataLoader(Where(), 10))[0][0]))\n"
    )
    if binds:
        script = "import os\nos.environ['OMP_PROC_BIND'] = 'true'\n" + script
    assert printed(train(place, script, cpus=all_cpus())) == (len(cpus) if binds else 1)


def test_what_a_signal_handler_raises_is_not_taken_for_the_workers_failure(place: Place) -> None:
    """It is how a script ends its run: to load on would swallow the stop."""
    script = numbered(
        "import signal, time\n"
        "class Stop(Exception): pass\n"
        "def stop(number, frame): raise Stop\n"
        "signal.signal(signal.SIGALRM, stop)\n"
        "class Slow(Numbers):\n"
        "    def __getitem__(self, i):\n"
        "        if os.getpid() != MAIN: time.sleep(600)\n"
        "        return i\n"
        "batches = iter(DataLoader(Slow(), 4))\n"
        "try:\n"
        "    signal.setitimer(signal.ITIMER_REAL, 1)\n"
        "    next(batches)\n"
        "except Stop:\n"
        "    print(json.dumps('stopped'))\n"
    )
    assert printed(train(place, script)) == "stopped"


def test_an_error_of_the_datasets_own_is_the_scripts(place: Place) -> None:
    """In the first batch it comes from the process itself, later on from the worker: it is raised in both cases."""
    script = numbered(
        "class Broken(Numbers):\n"
        "    def __getitem__(self, i):\n"
        "        return i if i < self.good else {}['missing']\n"
        "caught = []\n"
        "for good in (0, 5):\n"
        "    data = Broken(); data.good = good\n"
        "    try: seen(DataLoader(data, batch_size=5))\n"
        "    except (KeyError, RuntimeError) as error: caught.append('missing' in str(error))\n"
        "print(json.dumps(caught))\n"
    )
    assert printed(train(place, script)) == [True, True]


def test_memory_is_pinned_where_an_accelerator_is_in_use(place: Place) -> None:
    """Not before the script uses one, not without workers, not where the call names it, not on hosts without GPUs."""
    script = numbered(
        "loader, own = DataLoader(Numbers(), batch_size=5), DataLoader(Numbers(), pin_memory=False)\n"
        "alone = DataLoader(Numbers(), num_workers=0)\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "iter(loader); before = loader.pin_memory\n"
        "torch.cuda.is_initialized = lambda: True\n"
        "for l in (loader, own, alone): iter(l)\n"
        "print(json.dumps([before, loader.pin_memory, own.pin_memory, alone.pin_memory]))\n"
    )
    gpus = ("0000:17:00.0",)
    assert printed(train(place, script, gpus=gpus)) == [False, True, False, False]
    assert printed(train(place, script)) == [False, False, False, False]
    assert printed(train(place, script, settings=replace(JOB, pin_memory=False), gpus=gpus))[1] is False
    outcome = train(place, script, settings=replace(JOB, pin_memory=True), gpus=gpus)
    assert "x.py:12: DataLoader(...) gets pin_memory=True as planned: an accelerator is in use" in told(outcome)


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
        "for named in ({}, {'num_workers': 2, 'worker_init_fn': init}):\n"
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

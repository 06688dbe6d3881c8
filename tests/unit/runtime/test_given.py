"""A job takes the CPUs that torchpard gives it: at its start, and its number of threads between two steps."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank, make_given_json
from torchpar.contract.job import JobSettings, RankSettings
from torchpar.runtime import given as module
from torchpar.runtime.given import PERIOD, Threads, now, take

UNIT = "torchpar-train@a.service"
RUN = {"INVOCATION_ID": "this run"}
RANKS = tuple(RankSettings(number, "0-7", "0", 8, 0, ()) for number in range(2))
ONE = JobSettings(UNIT, 1, None, RANKS[:1])
TWO = JobSettings(UNIT, 1, None, RANKS)


def given(*cpus: str, invocation: str = "this run", threads: int = 8) -> Given:
    """Each rank on these CPUs, with a thread for each; planned are all eight, with so many threads."""
    ranks = tuple(GivenRank(CpuSet.parse(one), len(CpuSet.parse(one))) for one in cpus)
    planned = (GivenRank(CpuSet.parse("0-7"), threads),) * len(cpus)
    return Given(UNIT, invocation, ranks, planned, 0.0)


@pytest.fixture(autouse=True)
def time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself when somebody waits."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))


def test_at_its_start_it_waits_for_its_part() -> None:
    files = [given("0-7", invocation=""), given("0-7", invocation="the last run"), given("2-3")]
    rank = take(ONE, RANKS[0], RUN, read=lambda unit: files.pop(0))
    assert (rank.cpus, rank.threads) == ("2-3", 2)
    assert not files


def test_each_rank_has_its_own() -> None:
    rank = take(TWO, RANKS[1], RUN, read=lambda unit: given("0-3", "4"))
    assert (rank.local_rank, rank.cpus, rank.threads) == (1, "4", 1)


def test_a_service_that_is_never_moved_waits_for_nobody() -> None:
    assert take(ONE, RANKS[0], RUN, read=lambda unit: None) == RANKS[0]


def test_it_starts_as_planned_where_torchpard_does_not_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert take(ONE, RANKS[0], RUN, read=lambda unit: given("2-3", invocation="")) == RANKS[0]
    assert "torchpard has not said within 2 s which CPUs are free: it starts as planned" in capfd.readouterr().err


def test_what_was_given_to_another_run_or_plan_counts_for_nothing() -> None:
    assert now(ONE, RANKS[0], RUN, read=lambda unit: given("2", invocation="another")) == RANKS[0]
    assert now(ONE, RANKS[0], {}, read=lambda unit: given("2")) == RANKS[0]
    assert now(ONE, RANKS[0], RUN, read=lambda unit: given("2", "3")) == RANKS[0]
    assert now(ONE, RANKS[0], RUN, read=lambda unit: given("2", threads=4)) == RANKS[0]


class Job:
    """A job with eight threads, and the file that torchpard writes for it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INVOCATION_ID", "this run")
        self.threads = 8
        self.deterministic = False
        self.torch = types.SimpleNamespace(
            _C=types.SimpleNamespace(),
            get_num_threads=lambda: self.threads,
            set_num_threads=self.set_threads,
            are_deterministic_algorithms_enabled=lambda: self.deterministic,
            use_deterministic_algorithms=self.make_deterministic(),
        )
        self.folder = folder
        self.time = 0.0
        self.calls = 0

    def set_threads(self, threads: int) -> None:
        self.threads = threads
        self.calls += 1

    def make_deterministic(self) -> Callable[[bool], None]:
        def use_deterministic_algorithms(mode: bool) -> None:
            self.deterministic = mode

        return use_deterministic_algorithms

    def begin(self) -> None:
        self.ended = 0
        folder, end = str(self.folder), self.end_idle_threads
        self.follower = Threads(self.torch, ONE, RANKS[0], self.threads, folder=folder, end_idle_threads=end)
        self.follower.watch_script()

    def end_idle_threads(self) -> None:
        assert self.calls, "first there are fewer"
        self.ended += 1

    def give(self, cpus: str, invocation: str = "this run") -> None:
        (self.folder / "new").write_text(make_given_json(given(cpus, invocation=invocation)))
        os.replace(self.folder / "new", self.folder / UNIT)

    def step(self) -> int:
        self.time += 2 * PERIOD
        self.follower.follow(self.time)
        return self.threads


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    made = Job(tmp_path, monkeypatch)
    made.give("0-7")
    made.begin()
    return made


def test_threads_follow_at_the_next_step(job: Job) -> None:
    assert job.step() == 8
    job.give("0-3")
    assert job.threads == 8, "not in the middle of a step"
    assert job.step() == 4
    job.give("0-7")
    assert job.step() == job.step() == 8
    assert job.calls == 2
    assert job.ended == 1, "they would spin on the CPUs that it has left"


def test_threads_follow_to_what_is_lent_and_back(job: Job) -> None:
    job.give("0-11")
    assert job.step() == 12
    job.give("0-7")
    assert job.step() == 8
    assert job.ended == 1


def test_many_steps_look_once(job: Job) -> None:
    job.step()
    job.give("0-3")
    job.follower.follow(job.time + PERIOD / 2)
    assert job.threads == 8


def test_an_ad_hoc_job_has_its_file_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path, monkeypatch)
    job.begin()
    assert job.step() == 8
    job.give("0-1")
    assert job.step() == 2


def test_a_number_that_the_script_sets_stays(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """Also the one that it has already."""
    job.torch.set_num_threads(8)
    job.give("0-3")
    assert job.step() == 8
    assert job.calls == 1
    said = "its 8 threads stay on CPUs for 4, which torchpard has given it: the script has set that number"
    assert said in capfd.readouterr().err
    job.give("0-2")
    assert job.step() == 8 and not capfd.readouterr().err, "once"


def test_a_number_that_something_else_has_set_stays_while_it_is_there(job: Job) -> None:
    """As within threadpoolctl's limits."""
    job.threads = 1
    job.give("0-3")
    assert job.step() == 1
    job.threads = 8
    assert job.step() == 4


def test_deterministic_algorithms_keep_their_number(job: Job) -> None:
    job.deterministic = True
    job.give("0-3")
    assert job.step() == 8
    job.deterministic = False
    job.give("0-1")
    assert job.step() == 8


def test_deterministic_algorithms_have_the_planned_number_before_the_first_step(job: Job) -> None:
    """Whoever ran beside the job when it started."""
    job.give("0-3")
    job.threads = 4
    job.begin()
    job.torch.use_deterministic_algorithms(True)
    assert job.threads == 8
    job.give("0-1")
    assert job.step() == 8
    assert job.torch.use_deterministic_algorithms.__name__ == "use_deterministic_algorithms"


def test_deterministic_algorithms_do_not_override_the_script(job: Job) -> None:
    job.torch.set_num_threads(3)
    job.torch.use_deterministic_algorithms(True)
    assert job.step() == 3


@pytest.mark.parametrize(
    "modules",
    [
        {"eval_frame": types.SimpleNamespace(cached_backends={1: None, 2: "inductor"})},
        {"utils": types.SimpleNamespace(counters={"frames": {"ok": 1}})},
    ],
)
def test_what_is_compiled_is_not_compiled_anew(
    job: Job, monkeypatch: pytest.MonkeyPatch, modules: dict[str, types.ModuleType]
) -> None:
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"torch._dynamo.{name}", content)
    job.give("0-3")
    assert job.step() == 8
    assert not job.calls


def test_an_optimizer_compiles_nothing_by_itself(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports torch.compile's modules."""
    frames = types.SimpleNamespace(cached_backends={1: None})
    monkeypatch.setitem(sys.modules, "torch._dynamo.eval_frame", frames)
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", types.SimpleNamespace(counters={}))
    job.give("0-3")
    assert job.step() == 4


def test_a_file_that_is_gone_changes_nothing_but_gives_back(job: Job) -> None:
    """As when torchpard is stopped: it gives everything back first."""
    job.give("0-3")
    job.step()
    (job.folder / UNIT).unlink()
    assert job.step() == 8


def test_a_step_that_is_fast_costs_next_to_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read that has not changed."""
    job.step()
    monkeypatch.setattr(module, "read_given", lambda *_: pytest.fail("it reads"))
    for _ in range(100):
        job.step()


def test_the_rest_of_a_rank_is_as_planned() -> None:
    rank = take(ONE, RANKS[0], RUN, read=lambda unit: given("2"))
    assert dataclasses.replace(rank, cpus="0-7", threads=8) == RANKS[0]


# A job with two threads, of which one is left; with OMP_WAIT_POLICY=active the other would spin for ever.
POOL = """
import os, time, torch
from torchpar.runtime.given import end_idle_threads
torch.set_num_threads(2)
x = torch.rand(1000, 1000)
def tasks():
    return len(os.listdir("/proc/self/task"))
before = tasks()
(x @ x).sum()
assert tasks() > before, "there is no pool"
torch.set_num_threads(1)
end_idle_threads()
deadline = time.monotonic() + 300
while tasks() > before and time.monotonic() < deadline:
    time.sleep(0.01)
assert tasks() == before
torch.set_num_threads(2)
(x @ x).sum()
assert tasks() > before, "the pool does not come back"
"""


@pytest.mark.subprocess
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs a real torch")
def test_a_pool_of_a_real_torch_ends_and_comes_back() -> None:
    """Of whichever OpenMP this torch has."""
    folder = os.path.dirname(os.path.dirname(os.path.dirname(module.__file__)))
    environ = {**os.environ, "OMP_WAIT_POLICY": "active", "PYTHONPATH": folder}
    subprocess.run([sys.executable, "-c", POOL], env=environ, check=True, timeout=300)


# Whether the runtime sees that torch.compile is used, and takes nothing else for it.
COMPILED = """
import sys, torch
from torchpar.runtime.given import has_compiled
model = torch.nn.Linear(2, 2)
for kind in (torch.optim.SGD, torch.optim.Adam):
    optimizer = kind(model.parameters(), lr=0.1)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
torch.jit.script(model)(torch.ones(2))
assert not has_compiled()
if hasattr(torch, "compile") and sys.version_info < (3, 14):
    torch.compile(model, backend="eager")(torch.ones(2))
    assert has_compiled()
"""


@pytest.mark.subprocess
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs a real torch")
def test_a_real_torch_shows_that_it_compiles() -> None:
    folder = os.path.dirname(os.path.dirname(os.path.dirname(module.__file__)))
    environ = {**os.environ, "PYTHONPATH": folder}
    subprocess.run([sys.executable, "-c", COMPILED], env=environ, check=True, timeout=300)

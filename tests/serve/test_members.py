"""The processes as the first one knows them: forks, ends, stops and counts, with channels whose other end is here."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from torchpar.contract.job import JobSettings, RankSettings, ServeSettings
from torchpar.contract.notify import Notifier
from torchpar.serve.models.identity import Serves
from torchpar.serve.supervisor.channel import Channel, make_pair
from torchpar.serve.supervisor.forks import Forked, ForkServer
from torchpar.serve.supervisor.member import Member
from torchpar.serve.supervisor.processes import Processes

pytestmark = pytest.mark.subprocess

SERVE = ServeSettings(
    model="/srv/m.pt", handler=None, listen=(), grpc=(), workers=None, backend="auto", max_batch=None, max_queue=None,
    drain_timeout=10, own=True, processes=2,
)  # fmt: skip
JOB = JobSettings("torchpar-infer@m.service", 1, None, (RankSettings(0, "0", "", 4, 0, ()),), serve=SERVE)


def connect(member: Member) -> Channel:
    """The end of a serving process, which it reads as one."""
    member.channel, theirs = make_pair()
    return Channel(theirs)


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """What forks, as far as anybody waits for it."""
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def ends(processes: Processes) -> list[tuple[int, int]]:
    """Collects the numbers and statuses of those that end."""
    found: list[tuple[int, int]] = []
    processes._children._over = lambda process, status: found.append((process.number, status))
    return found


def test_a_fork_that_ends_before_it_says_its_number_is_missed(server: subprocess.Popen[bytes]) -> None:
    """Its channel is at its end, which would be readable for ever."""

    async def run() -> None:
        processes = Processes(JOB, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        process = processes._processes[0]
        theirs = connect(process)
        process.child = Forked(server)
        found = ends(processes)
        assert process.channel
        processes._loop.add_reader(process.channel, processes._children.hear, process)
        theirs.close()
        for _ in range(9):
            await asyncio.sleep(0)
        assert found == [(0, 1)]

    asyncio.run(run())


def test_a_fork_that_ends_right_after_it_said_its_number_is_missed(server: subprocess.Popen[bytes]) -> None:
    """The signal of its end comes before the message was read, and tells a number that nobody else waits for."""

    async def run() -> None:
        processes = Processes(JOB, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        process = processes._processes[0]
        theirs = connect(process)
        process.child = Forked(server)
        found = ends(processes)
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        theirs.send(pid=pid)
        theirs.close()
        processes._children.reap()
        assert found == [(0, -signal.SIGKILL)]
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    asyncio.run(run())


@pytest.mark.parametrize("quick", [True, False])
def test_what_forks_and_is_stopped_keeps_nobody_from_being_started(
    server: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """Its end is seen as that of the process that it should have started, which is then started anew."""
    monkeypatch.setattr(f"torchpar.serve.supervisor.children.{'FORK' if quick else 'FIRST_FORK'}_SECONDS", 0.01)

    async def run() -> None:
        processes = Processes(JOB, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        processes._started = True
        process = processes._processes[0]
        (place,) = processes._places.values()

        kept = []

        def start(process: Member, *_: object) -> None:
            kept.append(connect(process))
            process.child = Forked(server, quick=quick)

        place.start = start  # type: ignore[method-assign]
        found = ends(processes)
        server.send_signal(signal.SIGSTOP)
        processes._start(process)
        until = processes._loop.time() + 60
        while server.poll() is None and processes._loop.time() < until:
            await asyncio.sleep(0.01)
        processes._children.reap()
        assert found == [(0, -signal.SIGKILL)]

    asyncio.run(run())


def test_a_fork_is_waited_for_as_long_as_torch_may_take_to_import_only_once(server: subprocess.Popen[bytes]) -> None:
    started = [server, subprocess.Popen(["true"])]
    doors: list[int] = []

    def start(door: int) -> subprocess.Popen[bytes]:
        doors.append(os.dup(door))
        return started.pop(0)

    forks = ForkServer(start)
    try:
        first, second = forks.fork([]), forks.fork([])
        first.pid = 7
        third = forks.fork([])
        assert [each.quick for each in (first, second, third)] == [False, False, True]
        server.kill()
        server.wait()
        last = started[0]
        assert not forks.fork([]).quick
        last.wait()
    finally:
        forks.close()
        for door in doors:
            os.close(door)


class Told(Notifier):
    """Keeps each STATUS=."""

    def __init__(self) -> None:
        super().__init__()
        self.status: list[str] = []

    def send(self, **values: str) -> None:
        """Keeps it."""
        self.status.append(values.get("STATUS", ""))


def received(end: Channel, what: str) -> list[Any]:
    """What a process is told of this kind, until now."""
    found = []
    while message := end.receive():
        found += [message[what]] if what in message else []
    return found


def divided(notifier: Notifier, begun: list[Member]) -> tuple[Processes, dict[Member, Channel]]:
    """Makes a place of two processes, of which the first answers, and the second is just started."""
    processes = Processes(JOB, [], notifier)
    processes._loop = asyncio.get_running_loop()
    (place,) = processes._places.values()
    ends = {}

    def start(process: Member, *_: object) -> None:
        begun.append(process)
        ends[process] = connect(process)
        process.child = subprocess.Popen(["sleep", "100"])

    place.start = start  # type: ignore[method-assign]
    first = processes._processes[0]
    processes._start(first)
    processes._take(first, {"loaded": True, "serves": None, "count": 2, "alone": False})
    processes._take(first, {"ready": True})
    assert [process.index for process in begun] == [0, 1]
    return processes, ends


def kill(member: Member) -> None:
    """Kills what stands for the process."""
    assert isinstance(member.child, subprocess.Popen)
    member.child.kill()
    member.child.wait()


WRITER = {"did": 0, "wrong": "", "serves": None, "count": 1, "alone": True}


@pytest.mark.parametrize("state", ["ready", "loading", "between two starts", "out"])
def test_a_process_that_is_too_many_is_gone_whatever_it_does(state: str) -> None:
    """A model that writes to itself came by a reload. It is not started again, and answers nobody with that model."""

    async def run() -> None:
        begun: list[Member] = []
        told = Told()
        processes, ends = divided(told, begun)
        first, second = processes._processes
        child = second.child
        assert isinstance(child, subprocess.Popen)
        if state == "ready":
            processes._take(second, {"loaded": True, "serves": None})
            processes._take(second, {"ready": True})
        elif state != "loading":
            kill(second)
            second.out = "a file" if state == "out" else ""
            processes._started = True
            processes._children.gone(second)
        processes._take(first, WRITER)
        processes._divide(first)
        processes._take(second, {"loaded": True, "serves": None})
        if state == "ready":
            assert [0 < seconds <= 10 for seconds in received(ends[second], "stop")] == [True]
        elif state == "loading":
            assert child.wait(300) != 0 and received(ends[second], "go") == []
        if second.child:
            kill(second)
            processes._children.gone(second)
        processes._start(second)  # as the timer does of one that had ended before
        assert processes._processes == [first] and len(begun) == 2
        assert told.status[-1] == "serving: 1 of 1 process ready; process 0 alone with few compute threads: restart"
        # It is told once, and not at each reload.
        processes._take(first, WRITER)
        processes._divide(first)
        assert received(ends[first], "alone") == [True]
        # Once it is started again, it has its whole place.
        kill(first)
        assert first.threads is None
        processes._start(first)
        assert not first.narrow
        kill(first)

    asyncio.run(run())


SMALL, LARGE = 1 << 20, 500 << 20


def loaded(processes: Processes, process: Member, size: int, **more: Any) -> None:
    """What a process says that has loaded so many bytes."""
    processes._take(process, {"loaded": True, "serves": None, "weights": [], "size": size, **more})


@pytest.mark.parametrize(("size", "begun_at_once"), [(SMALL, [0, 1, 2]), (LARGE, [0])])
def test_processes_of_large_models_start_one_after_another(size: int, begun_at_once: list[int]) -> None:
    """Each has a copy of its own until it has loaded, and shares that of the others then."""

    async def run() -> None:
        begun: list[Member] = []
        processes = Processes(dataclasses.replace(JOB, serve=dataclasses.replace(SERVE, processes=3)), [], Notifier())
        processes._loop = asyncio.get_running_loop()
        (place,) = processes._places.values()
        kept = []

        def start(process: Member, *_: object) -> None:
            begun.append(process)
            kept.append(connect(process))
            process.child = subprocess.Popen(["sleep", "100"])

        place.start = start  # type: ignore[method-assign]
        processes._start(processes._processes[0])
        loaded(processes, processes._processes[0], size, count=3, alone=False)
        assert [process.index for process in begun] == begun_at_once
        processes._take(processes._processes[0], {"ready": True})
        second = begun[1]
        assert [process.index for process in begun] == (begun_at_once if size == SMALL else [0, 1])
        kill(second)
        processes._children.gone(second)  # without it the others go on
        assert [process.index for process in begun] == [0, 1, 2]
        loaded(processes, begun[2], size)
        processes._take(begun[2], {"ready": True})
        assert processes._started
        for process in processes._processes:
            kill(process)

    asyncio.run(run())


def test_systemd_waits_anew_with_each_process_that_is_ready() -> None:
    sent: list[dict[str, str]] = []

    class Kept(Notifier):
        def send(self, **values: str) -> None:
            sent.append(values)

    async def run() -> None:
        processes, _ = divided(Kept(), [])
        assert {"EXTEND_TIMEOUT_USEC": "900000000"} in sent and {"READY": "1"} not in sent
        sent.clear()
        second = processes._processes[1]
        loaded(processes, second, SMALL)
        processes._take(second, {"ready": True})
        assert {"READY": "1"} in sent and not any("EXTEND_TIMEOUT_USEC" in each for each in sent)
        for process in processes._processes:
            kill(process)

    asyncio.run(run())


def test_a_process_that_hangs_while_it_loads_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("member", "processes"):
        monkeypatch.setattr(f"torchpar.serve.supervisor.{module}.LOADING_SECONDS", 0.05, raising=False)

    async def run() -> None:
        begun: list[Member] = []
        processes, _ = divided(Notifier(), begun)
        first, second = processes._processes
        loaded(processes, first, LARGE)
        assert second.child
        kill(first)
        processes._start(first)  # it waits for the second one, which hangs
        while begun != [first, second, first]:
            await asyncio.sleep(0.01)
        for process in processes._processes:
            kill(process)

    asyncio.run(asyncio.wait_for(run(), 300))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_large_models_are_loaded_again_by_one_process_after_another(size: int) -> None:
    """By one first in any case: only then is it known how large they are now."""

    async def run() -> None:
        processes = Processes(JOB, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        processes._processes += [Member(number, 0, number) for number in (1, 2)]
        (place,) = processes._places.values()
        place._members = processes._processes[:]
        ends = [connect(process) for process in processes._processes]
        for process in processes._processes:
            process.ready = process.going = True
        call = asyncio.ensure_future(processes._call(processes._processes, "reload", ""))
        order = []
        while len(order) < 3:
            for _ in range(9):
                await asyncio.sleep(0)
            told = [(process, number) for process, end in zip(processes._processes, ends, strict=True)
                    for number in received(end, "number")]  # fmt: skip
            order.append([process.number for process, _ in told])
            for process, number in told:
                answer = {"did": number, "wrong": "", "serves": None, "weights": [], "size": size}
                processes._take(process, answer)
        assert await call == ""
        assert order == ([[0], [1], [2]] if size == LARGE else [[0], [1, 2], []])

    asyncio.run(run())


def test_a_load_that_hangs_ends_the_reload_and_the_old_models_go_on() -> None:
    """In words. The other process is not asked: it would hang too. What loads all the same, later, is aligned."""
    old, new = {"m/1": {"a": "1"}}, {"m/1": {"a": "2"}}

    async def run() -> None:
        begun: list[Member] = []
        processes, ends = divided(Notifier(), begun)
        processes._reloads = asyncio.Lock()
        first, second = begun
        processes._take(second, {"loaded": True, "serves": None})
        processes._take(second, {"ready": True})
        for process in begun:
            processes._take(process, {"serves": old})
        processes._loading._seconds = 0.0
        wrong = await processes.reload()
        processes._loading._seconds = 60.0
        assert "\n" not in wrong and wrong.startswith("process 0 has not loaded its models in 0 minutes")
        (number,) = received(ends[first], "number")
        assert received(ends[second], "do") == [] and first.going and second.going
        # Nobody waits for it again; the other one is asked, which hangs in nothing.
        again = asyncio.ensure_future(processes.reload())
        while not (numbers := received(ends[second], "number")):
            await asyncio.sleep(0)
        processes._take(second, {"did": numbers[0], "wrong": "m.pt: it is broken", "serves": old})
        hangs, broken = (await again).splitlines()
        assert hangs.startswith("process 0 has not loaded") and broken == "m.pt: it is broken"
        assert received(ends[first], "do") == [] and first.going
        # It has loaded now, and the other one has not: it is started again.
        processes._take(first, {"did": number, "wrong": "", "serves": new})
        while not received(ends[first], "stop"):
            await asyncio.sleep(0)
        assert not first.hung and not first.going and second.going
        for process in begun:
            kill(process)

    asyncio.run(asyncio.wait_for(run(), 300))


def test_what_all_have_counted_is_added_up_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each: with many processes and models, this took the first process's whole time."""
    sums: list[int] = []

    def count(counters: Iterable[Any]) -> list[Any]:
        sums.append(len(list(counters)))
        return []

    monkeypatch.setattr("torchpar.serve.supervisor.counts.add_up", count)

    async def run() -> None:
        processes = Processes(JOB, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        processes._processes += [Member(number, 0, number) for number in range(1, 8)]
        processes._counts.share()
        ends = [connect(process) for process in processes._processes]
        for process in processes._processes:
            process.ready = True
            process.usage = {"answers": 1.0}
        processes._counts.tell_always()
        assert [received(end, "usage") for end in ends] == [[{"answers": 8.0}]] * 8
        processes._remove(processes._processes[-1])
        processes._counts.tell_always()
        assert [received(end, "processes") for end in ends] == [[7]] * 7 + [[]]

    asyncio.run(run())
    assert sums == [9, 8]


def test_a_further_process_that_cannot_start_is_done_without() -> None:
    """By its place too, which tells the others how many there are, and keeps weights for who uses them."""

    async def run() -> None:
        begun: list[Member] = []
        processes, _ = divided(Notifier(), begun)
        first, second = processes._processes
        (place,) = processes._places.values()
        assert place.parts(first) == {"threads": 2, "processes": 2}
        second.weights = {"m/1"}
        place._weights["m/1"] = os.dup(0)
        kill(second)
        processes._children.gone(second)
        assert processes._processes == [first] and place.parts(first) == {"threads": 2, "processes": 1}
        place.forget_weights()
        assert not place._weights
        kill(first)

    asyncio.run(run())


def fill(process: Member) -> None:
    """Sends so much that the process, which reads nothing, can be told no more."""
    assert process.channel
    while process.channel.send(usage={"a" * 1000: 1}):
        pass


async def told_in_the_end(end: Channel, what: str) -> Any:
    """What a process is told of this kind, whenever there is room for it."""
    while not (found := received(end, what)):
        await asyncio.sleep(0.01)
    return found[0]


def test_a_process_that_has_not_read_for_long_is_told_to_leave_too() -> None:
    """Else it would say that it is ready for the whole of DrainDelay=."""

    async def run() -> None:
        job = dataclasses.replace(JOB, serve=dataclasses.replace(SERVE, drain_delay=60))
        processes = Processes(job, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        process = processes._processes[0]
        end = connect(process)
        process.ready = process.going = True
        fill(process)
        processes._stopping.stop(started=True)
        assert await told_in_the_end(end, "leave") is True

    asyncio.run(asyncio.wait_for(run(), 300))


def test_a_process_that_has_not_read_for_long_may_answer_all_the_same() -> None:
    """Else it would wait for ever for the word that it may, or would not know that it is alone on its CPUs."""

    async def run() -> None:
        begun: list[Member] = []
        processes, ends = divided(Notifier(), begun)
        first, second = begun
        fill(second)
        processes._take(second, {"loaded": True, "serves": None})
        assert await told_in_the_end(ends[second], "go") is True
        fill(first)
        processes._take(first, WRITER)
        processes._divide(first)
        assert await told_in_the_end(ends[first], "alone") is True
        for process in begun:
            kill(process)

    asyncio.run(asyncio.wait_for(run(), 300))


@pytest.mark.parametrize("ends", ["as asked", "in a failure"])
def test_a_service_that_ends_is_not_idle(ends: str) -> None:
    """Else its CPUs would be lent while it answers what it has accepted."""

    async def run() -> None:
        processes = Processes(JOB, [], Notifier())
        processes._stopping.make_ended()
        (process,) = processes._processes
        process.ready, process.quiet = True, 1000.0
        told: list[list[float]] = []
        processes._counts._idle.tell = lambda quiet, now: told.append(list(quiet))  # type: ignore[method-assign]
        processes._counts.tell_always()
        processes._stopping.stop(started=True) if ends == "as asked" else processes._stopping.fail(1)
        processes._counts.tell_always()
        assert told == [[1000.0], []]

    asyncio.run(run())


async def asked() -> tuple[Processes, dict[Member, Channel], Member, Member, int]:
    """Has a client load a model in the first of two processes; the number is that under which the other is told to."""
    begun: list[Member] = []
    processes, ends = divided(Notifier(), begun)
    first, second = begun
    loaded(processes, second, SMALL)
    processes._take(second, {"ready": True})
    processes._take(first, {"ask": 0, "verb": "load", "model": "m", "serves": None})
    return processes, ends, first, second, await told_in_the_end(ends[second], "number")


def test_a_process_that_has_not_read_for_long_is_told_that_the_others_have_loaded() -> None:
    """Else its client would wait for ever."""

    async def run() -> None:
        processes, ends, first, second, number = await asked()
        fill(first)
        processes._take(second, {"did": number, "wrong": "m.pt: it is broken", "serves": None})
        for _ in range(9):
            await asyncio.sleep(0)
        assert await told_in_the_end(ends[first], "wrong") == "m.pt: it is broken"
        for process in (first, second):
            kill(process)

    asyncio.run(asyncio.wait_for(run(), 300))


def test_a_process_is_not_told_what_the_one_before_it_has_asked_for() -> None:
    """They number alike what they ask for."""

    async def run() -> None:
        processes, ends, first, second, number = await asked()
        kill(first)
        processes._children.gone(first)
        processes._start(first)
        processes._take(second, {"did": number, "wrong": "", "serves": None})
        for _ in range(9):
            await asyncio.sleep(0)
        assert received(ends[first], "asked") == []
        for process in processes._processes:
            kill(process)

    asyncio.run(asyncio.wait_for(run(), 300))


@pytest.mark.parametrize(("start_timeout", "seconds"), [(900, 840), (3600, 3540), (20, 10), (None, None)])
def test_a_reload_may_take_a_minute_less_than_systemd_waits_for_it(
    start_timeout: int | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it, also where one process loads after another."""
    waits: list[float | None] = []
    wait = asyncio.wait

    async def later(calls: list[asyncio.Future[str]], *, timeout: float | None) -> Any:
        waits.append(timeout)
        return await wait(calls)

    async def run() -> None:
        job = dataclasses.replace(JOB, serve=dataclasses.replace(SERVE, start_timeout=start_timeout))
        processes = Processes(job, [], Notifier())
        loop = processes._loop = asyncio.get_running_loop()
        processes._processes.append(Member(1, 0, 1))
        (place,) = processes._places.values()
        place._members = processes._processes[:]
        ends = [connect(process) for process in processes._processes]
        for process in processes._processes:
            process.ready = process.going = True
        begun = loop.time()
        passed = [0.0]
        monkeypatch.setattr(loop, "time", lambda: begun + passed[0])
        monkeypatch.setattr(asyncio, "wait", later)
        call = asyncio.ensure_future(processes._call(processes._processes, "reload", ""))
        for process, end in zip(processes._processes, ends, strict=True):
            while not (numbers := received(end, "number")):
                await asyncio.sleep(0)
            passed[0] += 4
            processes._take(process, {"did": numbers[0], "wrong": "", "serves": None, "weights": [], "size": LARGE})
        await call

    asyncio.run(run())
    assert waits == pytest.approx([seconds, seconds and seconds - 4])


def started(job: JobSettings, serves: Serves) -> tuple[Processes, dict[Member, Channel]]:
    """Makes a service of a process on each place of the plan, all of which answer with the same."""
    processes = Processes(job, [], Told())
    processes._loop = asyncio.get_running_loop()
    processes._reloads = asyncio.Lock()
    ends = {}

    def start(process: Member, *_: object) -> None:
        ends[process] = connect(process)
        process.child = subprocess.Popen(["sleep", "100"])

    for place in processes._places.values():
        place.start = start  # type: ignore[method-assign]
    for process in processes._processes:
        processes._start(process)
    for process in processes._processes:
        processes._take(process, {"loaded": True, "serves": serves})
        processes._take(process, {"ready": True})
    return processes, ends


ONE_EACH = dataclasses.replace(
    JOB,
    ranks=tuple(RankSettings(number, str(number), "", 4, number, ()) for number in range(3)),
    serve=dataclasses.replace(SERVE, processes=1),
)


OLD: Serves = {"a/1": {"m": "1"}, "z/1": {"m": "1"}}
PART: Serves = {"a/1": {"m": "2"}, "z/1": {"m": "1"}}
NEW: Serves = {"a/1": {"m": "2"}, "z/1": {"m": "2"}}


async def hang(processes: Processes, ends: dict[Member, Channel]) -> dict[Member, int]:
    """Has all loads of a reload hang; returns their numbers."""
    processes._loading._seconds = 0.0
    await processes.reload()
    processes._loading._seconds = 60.0
    return {process: received(ends[process], "number")[0] for process in processes._processes}


async def turns() -> None:
    """Lets all that is due happen."""
    for _ in range(9):
        await asyncio.sleep(0)


def end_all(processes: Processes) -> None:
    """Kills what stands for the processes."""
    for process in processes._processes:
        if process.child:
            kill(process)


def test_who_hangs_with_a_part_of_the_models_loaded_is_started_again() -> None:
    """One model after another takes its place: answers would depend on the process that is asked."""

    async def run() -> None:
        processes, ends = started(ONE_EACH, OLD)
        one, other, third = processes._processes
        numbers = await hang(processes, ends)
        for process in (other, third):
            processes._take(process, {"did": numbers[process], "wrong": "z.pt: it is broken", "serves": OLD})
        await turns()
        assert all(received(end, "stop") == [] for end in ends.values())
        processes._take(one, {"serves": PART})
        assert len(received(ends[one], "stop")) == 1
        assert [process.going for process in processes._processes] == [False, True, True]
        end_all(processes)

    asyncio.run(run())


def test_who_has_loaded_a_part_of_the_models_is_no_model_for_others() -> None:
    """It is about to serve something else again."""

    async def run() -> None:
        processes, ends = started(ONE_EACH, OLD)
        one, other, third = processes._processes
        call = asyncio.ensure_future(processes.reload())
        await turns()
        (number,) = received(ends[other], "number")
        processes._take(other, {"did": number, "wrong": "z.pt: it is broken", "serves": OLD})
        kill(third)
        processes._children.gone(third)
        processes._take(one, {"serves": PART})
        processes._start(third)
        assert third.like == OLD and received(ends[one], "stop") == []
        end_all(processes)
        call.cancel()

    asyncio.run(run())


def test_the_first_that_loads_late_is_followed_by_those_that_hang_and_those_that_are_out() -> None:
    """What one serves that hangs is no reason to end one that has loaded."""

    async def run() -> None:
        processes, ends = started(ONE_EACH, OLD)
        one, other, out = processes._processes
        numbers = await hang(processes, ends)
        out.refused, out.out = True, "z.pt"
        kill(out)
        processes._children.gone(out)
        assert out.out and not out.child
        processes._unbatched.keys = {"a/1 former"}
        processes._take(one, {"did": numbers[one], "wrong": "", "serves": NEW})
        await turns()
        assert one.going and received(ends[one], "stop") == []
        assert not other.going and len(received(ends[other], "stop")) == 1
        assert out.child and out.like == NEW
        assert processes._unbatched.keys == set()
        end_all(processes)

    asyncio.run(run())


def test_a_reload_that_one_process_can_do_succeeds_though_another_hangs() -> None:
    """It is started again at once, and loads what the others have loaded."""

    async def run() -> None:
        processes, ends = started(ONE_EACH, OLD)
        one, *others = processes._processes
        numbers = await hang(processes, ends)
        for process in others:
            processes._take(process, {"did": numbers[process], "wrong": "z.pt: it is broken", "serves": OLD})
        await turns()
        call = asyncio.ensure_future(processes.reload())
        await turns()
        for process in others:
            (number,) = received(ends[process], "number")
            processes._take(process, {"did": number, "wrong": "", "serves": NEW})
        assert await call == ""
        assert len(received(ends[one], "stop")) == 1 and not one.going
        end_all(processes)

    asyncio.run(asyncio.wait_for(run(), 300))

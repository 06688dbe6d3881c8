"""A service's processes: ready when all are, restarted when one dies, drained, reloaded and hurried without a loss."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.models import Total, mlp, save_script
from tests.serve.service import Load, Service, install
from torchpar.contract.job import JobSettings, RankSettings, ServeSettings
from torchpar.contract.notify import Notifier
from torchpar.serve.supervisor.channel import Channel, make_pair
from torchpar.serve.supervisor.processes import Processes

pytestmark = pytest.mark.subprocess

ROW = torch.tensor([[1.0, 2.0, 3.0]])
FACE: dict[str, object] = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
}


JOB = JobSettings(
    "torchpar-infer@m.service",
    1,
    None,
    tuple(RankSettings(i, "0", "", 1, 0, ()) for i in range(2)),
    serve=ServeSettings(
        model="/srv/m.pt", handler=None, listen=(), grpc=(), workers=None, backend="auto", max_batch=None,
        max_queue=None, drain_timeout=10, own=True,
    ),
)  # fmt: skip


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts services that serve model.pt of the test's folder."""
    services: list[Service] = []

    def start(**settings: Any) -> Service:
        model = tmp_path / "model.pt"
        if not model.exists():
            save_script(mlp(), model, FACE)
        service = Service(tmp_path, model, **settings)
        services.append(service)
        return service.__enter__()

    yield start
    for service in services:
        service.__exit__()


def wait_until_back(service: Service, count: int = 2) -> None:
    """Until one that was killed has been missed, and all are ready again; what is logged comes before what is told."""
    full = f"serving: {count} of {count} process{'es' if count > 1 else ''} ready"

    def back() -> bool:
        told = [value for _, name, value in service.told if name == "STATUS"]
        return full in told and told[-1] == full and any(value != full for value in told[told.index(full) :])

    service.wait(back)


def is_answer(values: list[float], seed: int = 0) -> bool:
    return torch.allclose(torch.tensor(values), mlp(seed)(ROW)[0], atol=1e-5)


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_the_journal_has_why_a_model_is_served_unbatched(
    start: Callable[..., Service], tmp_path: Path, backend: str
) -> None:
    """A line of every process that serves it, wherever it computes."""
    save_script(Total(), tmp_path / "model.pt", {"inputs": FACE["inputs"]})
    service = start(processes=2, backend=backend)
    service.wait_ready()
    lines = [line for line in service.log().splitlines() if "unbatched" in line]
    line = r"<6>torchpar: model m version 1: .*/model\.pt, loaded in [\d.]+ s, unbatched: (output '.*' has shape .*)"
    assert len(lines) == 2 and all(re.fullmatch(line, each) for each in lines), lines


def test_it_is_ready_when_every_process_answers(start: Callable[..., Service]) -> None:
    """systemctl start returns then; STATUS= says how far it is."""
    service = start(processes=2)
    service.wait_ready()
    assert is_answer(service.infer())
    assert len(service.children()) == 2
    service.wait(lambda: service.status() == "serving: 2 of 2 processes ready")
    assert "loading: 0 of 2 processes ready" in [value for _, name, value in service.told if name == "STATUS"]


def test_a_model_that_cannot_be_loaded_ends_the_start_with_the_reason(
    tmp_path: Path, start: Callable[..., Service]
) -> None:
    """Exit status 78, which systemd does not try again."""
    (tmp_path / "model.pt").write_text("no model")
    service = start()
    assert service.process.wait(300) == 78
    assert f"torchpar: {tmp_path}/model.pt" in service.log() and not service.count("READY")


def test_the_exit_status_of_what_computes_is_not_the_services(tmp_path: Path, start: Callable[..., Service]) -> None:
    """With 242 torchpard would take it for a start that systemd ended."""
    (tmp_path / "torch.py").write_text("import os; os._exit(242)")
    service = start(path=tmp_path)
    assert service.process.wait(300) == 1 and not service.count("READY")


def test_a_killed_process_is_back_and_the_others_go_on(start: Callable[..., Service]) -> None:
    """It costs the requests that it held, and no more."""
    service = start(processes=2)
    service.wait_ready()
    victim = service.children()[0]
    os.kill(victim, signal.SIGKILL)
    service.wait(lambda: "process 0 was killed by SIGKILL; another takes its place in 0.1 s" in service.log())
    assert is_answer(service.infer())
    wait_until_back(service)
    assert victim not in service.children() and len(service.children()) == 2


def test_a_restart_under_load_loses_nothing(start: Callable[..., Service]) -> None:
    """What was accepted is answered; who connects meanwhile waits for the next start."""
    service = start(drain_timeout=300)
    service.wait_ready()
    with Load(service) as load:
        for ready in (2, 3):
            load.wait(200)
            service.process.terminate()
            assert service.process.wait(150) == 0
            service.start()
            service.wait_ready(ready)
        load.wait(200)
    assert not load.failures and all(map(is_answer, load.answers))
    assert service.count("STOPPING") == 2


def test_a_reload_under_load_loses_nothing_and_then_the_new_model_answers(
    tmp_path: Path, start: Callable[..., Service]
) -> None:
    """`serve.py reload` returns when every process has the new one."""
    service = start(processes=2)
    service.wait_ready()
    with Load(service) as load:
        load.wait(200)
        save_script(mlp(seed=1), tmp_path / "model.new", FACE)
        (tmp_path / "model.new").rename(tmp_path / "model.pt")
        assert reload(service).returncode == 0
        known = len(load.answers) + 4  # those that were under way
        load.wait(200)
    assert not load.failures
    assert all(is_answer(values, seed=1) for values in load.answers[known:])
    assert all(is_answer(values) or is_answer(values, seed=1) for values in load.answers)
    service.wait(lambda: service.count("READY") == 2)
    assert service.count("RELOADING") == 1


def test_clients_see_one_service_not_its_processes(start: Callable[..., Service]) -> None:
    """Counters are of all processes, whichever answers, and outlive one that is killed; what a client unloads is gone
    in all."""
    service = start(processes=2)
    service.wait_ready()
    for _ in range(20):
        service.infer()  # each on a connection of its own

    def counts() -> set[float]:
        pattern = re.compile(r"^nv_inference_request_success{.*} (\d+)", re.MULTILINE)
        return {int(count) for _ in range(8) for count in pattern.findall(get(service, "/metrics"))}

    def answers() -> list[int]:
        pattern = re.compile(r'^torchpar_http_answers_total{code="200"} (\d+)', re.MULTILINE)
        return [int(count) for _ in range(8) for count in pattern.findall(get(service, "/metrics"))]

    service.wait(lambda: counts() == {20})
    service.wait(lambda: min(answers()) >= 20)
    os.kill(service.children()[0], signal.SIGKILL)
    wait_until_back(service)
    service.wait(lambda: counts() == {20})
    service.wait(lambda: min(answers()) >= 20)
    told = answers()
    assert told == sorted(told)
    connection = service.connect()
    connection.request("POST", "/v2/repository/models/m/unload", "{}")
    assert connection.getresponse().status == 200
    assert {status(service, "/v2/models/m/ready") for _ in range(8)} <= {400, 404, 503}


def test_a_process_that_is_started_again_is_told_what_it_missed(start: Callable[..., Service]) -> None:
    """What a client unloaded stays unloaded in it too."""
    service = start(processes=2)
    service.wait_ready()
    connection = service.connect()
    connection.request("POST", "/v2/repository/models/m/unload", "{}")
    assert connection.getresponse().status == 200
    os.kill(service.children()[0], signal.SIGKILL)
    wait_until_back(service)
    time.sleep(0.5)
    assert {status(service, "/v2/models/m/ready") for _ in range(8)} <= {400, 404, 503}


@pytest.mark.parametrize("processes", [1, 2])
def test_settings_are_those_of_the_service(start: Callable[..., Service], processes: int) -> None:
    """Whichever process a client asked to change them, and of one that is started again too."""
    service = start(processes=processes)
    service.wait_ready()
    for path, change in (("logging", '{"log_verbose_level": 1}'), ("trace/setting", '{"trace_rate": "7"}')):
        connection = service.connect()
        connection.request("POST", f"/v2/{path}", change)
        assert connection.getresponse().status == 200

    def settings() -> set[int | str]:
        levels = {json.loads(get(service, "/v2/logging"))["log_verbose_level"] for _ in range(8)}
        rates = {json.loads(get(service, "/v2/trace/setting"))["trace_rate"] for _ in range(8)}
        return levels | rates

    service.wait(lambda: settings() == {1, "7"})
    for child in service.children():
        os.kill(child, signal.SIGKILL)
    service.wait(lambda: service.log().count("another takes its place") == processes)
    wait_until_back(service, processes)
    service.wait(lambda: settings() == {1, "7"})


def test_a_reload_meanwhile_is_due_when_the_process_is_ready() -> None:
    """It may have read the old files."""

    async def run() -> dict[str, Any]:
        processes = Processes(JOB, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        process = processes._processes[0]
        process.channel, theirs = make_pair()
        told = Channel(theirs)
        assert await processes._call([process], "reload", "") == ""
        processes._take(process, {"loaded": True, "serves": SERVES})
        assert told.receive() == {"go": True}
        processes._take(process, {"ready": True})
        while "do" not in (order := told.receive() or {}):
            await asyncio.sleep(0)
        processes._take(process, {"did": order["number"], "wrong": ""})
        await asyncio.sleep(0)
        return order

    assert asyncio.run(asyncio.wait_for(run(), 300))["do"] == "reload"


SERVES = {"m/1": {"a": "1", "b": "2"}}


@pytest.mark.parametrize(
    ("serves", "goes"),
    [
        (SERVES, True), ({"m/1": {"a": "1"}}, True), ({"m/1": {"a": "2", "b": "2"}}, False), ({}, False),
        ({**SERVES, "m/2": {}}, False), (None, True),
    ],
    ids=["same", "fewer files", "another file", "no version", "another version", "too many to tell"],
)  # fmt: skip
def test_only_who_serves_the_same_as_the_others_may_answer(serves: object, goes: bool) -> None:
    """Before it has answered anybody."""

    async def run() -> bool:
        processes = Processes(JOB, [], Notifier())
        one, other = processes._processes
        one.channel, _ = make_pair()
        other.channel, theirs = make_pair()
        other.child = subprocess.Popen(["sleep", "100"])
        processes._take(one, {"loaded": True, "serves": SERVES})
        processes._take(other, {"loaded": True, "serves": serves})
        assert one.going and other.going == goes
        other.child.kill()
        assert other.child.wait() == -signal.SIGKILL
        return Channel(theirs).receive() == ({"go": True} if goes else None)

    asyncio.run(run())


def test_batching_that_ends_in_one_process_ends_in_all_until_a_reload() -> None:
    """STATUS= tells it. What was found before the models are loaded again ends then; what is found meanwhile stays."""
    status: list[str] = []

    class Told(Notifier):
        def send(self, **values: str) -> None:
            status.append(values.get("STATUS", ""))

    async def run() -> None:
        processes = Processes(JOB, [], Told())
        processes._loop = asyncio.get_running_loop()
        ends = []
        for process in processes._processes:
            process.channel, theirs = make_pair()
            ends.append(Channel(theirs))
            processes._take(process, {"loaded": True, "serves": SERVES, "unbatched": []})
            processes._take(process, {"ready": True})
        one, other = processes._processes

        def told(end: Channel, what: str) -> list[Any]:
            found = []
            while message := end.receive():
                found += [message[what]] if what in message else []
            return found

        processes._take(one, {"unbatched": ["m/1 x"]})
        assert told(ends[0], "unbatched") == [] and told(ends[1], "unbatched") == [["m/1 x"]]
        assert status[-1] == "serving: 2 of 2 processes ready; unbatched after a difference: m"
        processes._take(other, {"unbatched": ["m/1 x"]})
        assert told(ends[1], "unbatched") == []
        reload = asyncio.ensure_future(processes._call([one, other], "reload", ""))
        for _ in range(9):
            await asyncio.sleep(0)
        for process, end in zip((one, other), ends, strict=True):
            (number,) = told(end, "number")
            processes._take(process, {"did": number, "wrong": "", "serves": SERVES, "unbatched": []})
            processes._take(other, {"unbatched": []})
        assert await reload == "" and processes._unbatched.keys == set()
        assert told(ends[0], "unbatched") == told(ends[1], "unbatched") == []
        # The second load may take minutes, and the first process answers with its new model.
        reload = asyncio.ensure_future(processes._call([one, other], "reload", ""))
        for _ in range(9):
            await asyncio.sleep(0)
        (number,) = told(ends[0], "number")
        processes._take(one, {"did": number, "wrong": "", "serves": SERVES, "unbatched": []})
        processes._take(one, {"unbatched": ["m/1 y"]})
        messages = []
        while not any("do" in message for message in messages):
            await asyncio.sleep(0)
            while message := ends[1].receive():
                messages.append(message)
        assert [message["unbatched"] for message in messages if "unbatched" in message] == [["m/1 y"]]
        # Here it was still of no meaning, and is once it has loaded.
        (number,) = [message["number"] for message in messages if "do" in message]
        processes._take(other, {"did": number, "wrong": "", "serves": SERVES, "unbatched": []})
        assert await reload == "" and processes._unbatched.keys == {"m/1 y"}
        assert told(ends[0], "unbatched") == [] and told(ends[1], "unbatched") == [["m/1 y"]]

    asyncio.run(run())


def test_who_comes_back_serves_what_the_others_do_until_a_reload(tmp_path: Path, start: Callable[..., Service]) -> None:
    """Else it stays out, also where the new file is half copied; a reload loads it in all."""
    service = start(processes=2)
    service.wait_ready()
    new = save_script(mlp(seed=1), tmp_path / "new.pt", FACE).read_bytes()
    (tmp_path / "half.pt").write_bytes(new[: len(new) // 2])
    (tmp_path / "half.pt").rename(tmp_path / "model.pt")
    os.kill(service.children()[0], signal.SIGKILL)
    service.wait(lambda: "process 0 stays out until the models are loaded again" in service.log())
    out = "serving: 1 of 2 processes ready; process 0 out, as model files have changed: reload"
    service.wait(lambda: service.status() == out)
    assert all(is_answer(service.infer()) for _ in range(8))
    (tmp_path / "new.pt").rename(tmp_path / "model.pt")
    assert reload(service).returncode == 0
    service.wait(lambda: service.status() == "serving: 2 of 2 processes ready")
    assert all(is_answer(service.infer(), seed=1) for _ in range(8))


def test_where_none_is_left_that_serves_the_former_files_all_change(
    tmp_path: Path, start: Callable[..., Service]
) -> None:
    """It is in the log. A version that came meanwhile is one of them."""
    service = start(processes=2)
    service.wait_ready()
    save_script(mlp(seed=1), tmp_path / "new.pt", FACE).rename(tmp_path / "model.pt")
    first, second = service.children()
    os.kill(first, signal.SIGKILL)
    service.wait(lambda: "process 0 stays out" in service.log())
    os.kill(second, signal.SIGKILL)
    service.wait(lambda: service.status() == "serving: 2 of 2 processes ready")
    assert all(is_answer(service.infer(), seed=1) for _ in range(8))
    assert "no process is left that serves the former files" in service.log()


def test_a_reload_that_fails_says_why_and_the_old_model_goes_on(tmp_path: Path, start: Callable[..., Service]) -> None:
    """`systemctl reload` fails; nothing is lost."""
    service = start()
    service.wait_ready()
    (tmp_path / "model.pt").write_text("no model")
    done = reload(service)
    assert done.returncode == 1 and f"torchpar: {tmp_path}/model.pt" in done.stderr
    assert is_answer(service.infer())


def test_a_reload_of_a_service_that_does_not_run_fails(tmp_path: Path) -> None:
    """And says what it tried."""
    environment = {"RUNTIME_DIRECTORY": str(tmp_path)}
    argv = [sys.executable, install(tmp_path), "reload"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"torchpar: cannot ask the server to reload: {tmp_path}/control: No such file or directory\n"
    )


def test_a_second_sigterm_hurries(start: Callable[..., Service]) -> None:
    """An idle connection is given time for a request that may be on its way, but not then."""
    service = start(drain_timeout=6000)
    service.wait_ready()
    connection = service.connect()
    service.infer(connection)
    service.process.terminate()
    service.wait(lambda: service.count("STOPPING"))
    service.process.terminate()
    assert service.process.wait(300) == 0


def test_with_a_drain_delay_load_balancers_see_the_stop_before_it_begins(start: Callable[..., Service]) -> None:
    """Meanwhile who asks is answered, on new connections too, and told to connect anew; SIGTERM again ends the wait."""

    def is_ready() -> bool:
        connection = service.connect()
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200

    service = start(drain_delay=6000, processes=2)
    service.wait_ready()
    assert is_ready()
    kept = service.connect()
    service.infer(kept)
    service.process.terminate()
    # Each of both processes is to hear of it.
    service.wait(lambda: not any(is_ready() for _ in range(6)))
    os.kill(service.children()[0], signal.SIGKILL)
    service.wait(lambda: len(service.children()) == 2 and "another takes its place" in service.log())
    service.wait(lambda: not any(is_ready() for _ in range(6)))
    assert is_answer(service.infer(service.connect()))
    assert service.status() == "not ready, and taking requests for another 6000 s"
    assert reload(service).returncode == 1
    service.process.terminate()
    assert service.process.wait(300) == 0
    assert service.status().startswith("answering what was accepted")


def test_a_process_that_is_stopped_gets_no_more_watchdog(start: Callable[..., Service]) -> None:
    """Then systemd ends the service and starts it anew."""
    service = start(watchdog=2.0)
    service.wait_ready()
    service.wait(lambda: service.count("WATCHDOG") > 3)
    os.kill(service.children()[0], signal.SIGSTOP)
    service.wait(lambda: "process 0 makes no progress" in service.log())

    def ended() -> bool:
        last = service.count("WATCHDOG")
        time.sleep(2.0)
        return service.count("WATCHDOG") == last

    # One may have been on its way.
    service.wait(ended)


def test_only_a_process_that_computes_is_heard_by_the_watchdog() -> None:
    """Counters, and what it did or asks, come from an event loop that goes on while its computing is stuck."""
    processes = Processes(JOB, [], Notifier())
    process = processes._processes[0]
    processes._take(process, {"counters": [], "names": []})
    processes._take(process, {"did": 0, "wrong": ""})
    assert process.heard == 0.0
    processes._take(process, {"alive": True})
    assert process.heard > 0.0


def test_the_end_of_the_first_process_is_the_end_of_all(start: Callable[..., Service]) -> None:
    """Nobody would restart the others, or tell them to stop."""
    service = start()
    service.wait_ready()
    child = service.children()[0]
    service.process.kill()
    service.wait(lambda: not os.path.exists(f"/proc/{child}") or "\nState:\tZ" in read(f"/proc/{child}/status"))


def get(service: Service, path: str) -> str:
    connection = service.connect()
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def status(service: Service, path: str) -> int:
    connection = service.connect()
    connection.request("GET", path)
    return connection.getresponse().status


def read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ"


def reload(service: Service) -> subprocess.CompletedProcess[str]:
    """What ExecReload= runs."""
    return subprocess.run(
        [sys.executable, service.script, "reload"], env=service.environment, capture_output=True, text=True, timeout=300
    )

"""Several processes of one place: what is divided among them, and what one that is killed costs."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.models import mlp, save_script
from tests.serve.service import Load, Service
from tests.serve.test_processes import FACE, is_answer, reload

pytestmark = pytest.mark.subprocess


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts a service of three processes on one place that serves model.pt of the test's folder."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path = tmp_path, **settings: Any) -> Service:
            if not (tmp_path / "model.pt").exists():
                save_script(mlp(), tmp_path / "model.pt", FACE)
            service = stack.enter_context(Service(folder, tmp_path / "model.pt", **{"threads": 3, **settings}))
            service.wait_ready()
            return service

        yield start


def connections(service: Service, number: int | None = None) -> list[int]:
    """How many connections each serving process has, by the kernel; number: of the port, if it is another."""
    port = f":{number or service.address[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    open_ones = {row[9] for row in rows if row[1].endswith(port) and row[3] == "01"}

    def count(pid: int) -> int:
        links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        return sum(link[8:-1] in open_ones for link in links if link.startswith("socket:["))

    return [count(pid) for pid in service.children()]


def ask(service: Service, clients: list[http.client.HTTPConnection]) -> list[bool]:
    """Whether each client was answered."""
    answered = []
    for client in clients:
        try:
            answered.append(is_answer(service.infer(client)))
        except (OSError, http.client.HTTPException):
            answered.append(False)
    return answered


@pytest.mark.parametrize("count", [8, 32, 128])
def test_kept_connections_are_divided_evenly(start: Callable[..., Service], count: int) -> None:
    service = start(each=3)
    clients = [service.connect() for _ in range(count)]
    assert all(ask(service, clients))
    shares = connections(service)
    assert sum(shares) == count and max(shares) - min(shares) <= 1


def test_who_is_killed_takes_only_its_own_connections_along(start: Callable[..., Service]) -> None:
    """The others go on, and its successor gets the new ones."""
    service = start(each=3)
    clients = [service.connect() for _ in range(12)]
    assert all(ask(service, clients))
    victim = service.children()[1]
    os.kill(victim, signal.SIGKILL)
    service.wait(lambda: victim not in service.children())
    answered = ask(service, clients)
    assert answered.count(False) == 4
    service.wait(lambda: service.status() == "serving: 3 of 3 processes ready" and len(service.children()) == 3)
    lost = [service.connect() for _ in range(4)]
    assert all(ask(service, lost))
    assert connections(service) == [4, 4, 4]


def test_new_connections_go_to_who_has_fewest(start: Callable[..., Service]) -> None:
    """Also when others have closed theirs."""
    service = start(each=3)
    clients = [service.connect() for _ in range(9)]
    assert all(ask(service, clients))
    for client in clients[0::3]:
        client.close()
    service.wait(lambda: sum(connections(service)) == 6)
    clients += [service.connect() for _ in range(3)]
    assert all(ask(service, clients[9:]))
    assert connections(service) == [3, 3, 3]


def test_restarts_and_reloads_under_load_lose_nothing(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start(each=3, drain_timeout=300)
    with Load(service, clients=6) as load:
        load.wait(100)
        service.process.terminate()
        assert service.process.wait(150) == 0
        service.start()
        service.wait_ready(2)
        load.wait(100)
        save_script(mlp(seed=1), tmp_path / "model.new", FACE)
        (tmp_path / "model.new").rename(tmp_path / "model.pt")
        assert reload(service).returncode == 0
        known = len(load.answers) + 6
        load.wait(100)
    assert not load.failures
    assert all(is_answer(values, seed=1) for values in load.answers[known:])


class Counts(torch.nn.Module):
    """How many rows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x.shape[0]
        return self.seen + 0 * x


@pytest.mark.parametrize("each", [None, 3])
def test_a_model_that_writes_to_itself_is_in_one_process(
    start: Callable[..., Service], tmp_path: Path, each: int | None
) -> None:
    """From the start."""
    save_script(Counts(), tmp_path / "model.pt", FACE)
    service = start(each=each)
    assert len(service.children()) == 1
    assert [service.infer()[0] for _ in range(6)] == [1, 2, 3, 4, 5, 6]


def test_a_model_that_writes_to_itself_and_comes_later_ends_the_others(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    """The one that is left has the few threads that it had, which is told, until it is started again."""
    service = start(each=3)
    assert len(service.children()) == 3
    save_script(Counts(), tmp_path / "model.pt", FACE)
    assert reload(service).returncode == 0
    service.wait(lambda: len(service.children()) == 1)
    assert [service.infer()[0] for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    told = "serving: 1 of 1 process ready; process 0 alone with few compute threads: restart"
    service.wait(lambda: service.status() == told)
    report = (tmp_path / "rank-0.json").read_text()
    assert '"processes": 1' in report and '"threads": 1' in report and "must be in one process" in report
    os.kill(service.children()[0], signal.SIGKILL)
    service.wait(lambda: service.status() == "serving: 1 of 1 process ready")
    service.wait(lambda: '"threads": 3' in (tmp_path / "rank-0.json").read_text())


def test_the_first_process_measures_and_tells_why(start: Callable[..., Service], tmp_path: Path) -> None:
    """A model of three numbers computes next to nothing: a process for each of its threads."""
    service = start()
    assert len(service.children()) == 3
    report = (tmp_path / "rank-0.json").read_text()
    assert '"processes": 3' in report and '"threads": 3' in report and "3 event loops share 3 CPUs" in report


class Table(torch.nn.Module):
    """Many weights, of which a row needs few."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(megabytes * 1024, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x).sum(1)


def test_weights_are_there_once(start: Callable[..., Service], tmp_path: Path) -> None:
    """And what a process has imported: of each further one, the kernel counts 60 MiB and a twentieth of the weights."""
    megabytes = 500
    about = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [-1, 3]}]}
    save_script(Table(megabytes), tmp_path / "model.pt", about)

    def memory(each: int) -> float:
        (tmp_path / str(each)).mkdir()
        service = start(folder=tmp_path / str(each), each=each)
        assert len(service.children()) == each
        total = sum(proportional(pid) for pid in service.group())
        service.__exit__()
        return total

    one, three = memory(1), memory(3)
    assert megabytes < one < 2 * megabytes
    assert (three - one) / 2 <= 60 + megabytes / 20


def proportional(pid: int) -> float:
    """The proportional set size of a process, in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def test_weights_of_a_reload_are_there_once_too(start: Callable[..., Service], tmp_path: Path) -> None:
    """Of those that no process uses any more, nothing is left."""

    def shared(service: Service) -> list[set[str]]:
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in service.children()]
        return [{line.split()[4] for line in text.splitlines() if "torchpar-weights" in line} for text in maps]

    about = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [-1, 3]}]}
    save_script(Table(8), tmp_path / "model.pt", about)
    service = start(each=3)
    before = shared(service)
    assert len(before[0]) == 1 and before == [before[0]] * 3
    save_script(Table(8), tmp_path / "model.new", about)
    (tmp_path / "model.new").rename(tmp_path / "model.pt")
    assert reload(service).returncode == 0
    service.wait(lambda: all(len(each) == 1 for each in shared(service)))
    after = shared(service)
    assert after == [after[0]] * 3 and after[0] != before[0]
    held = [os.readlink(f"/proc/{service.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{service.process.pid}/fd")]
    assert sum("torchpar-weights" in link for link in held) == 1


def test_connections_of_grpc_are_divided_too(start: Callable[..., Service]) -> None:
    """As those of HTTP, where none has several."""
    numpy, client_module = pytest.importorskip("numpy"), pytest.importorskip("tritonclient.grpc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    service = start(each=3, grpc=(address,))

    def ask_grpc(client: Any) -> bool:
        x = client_module.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(numpy.array([[1.0, 2.0, 3.0]], dtype=numpy.float32))
        return is_answer(client.infer("m", [x]).as_numpy("y")[0].tolist())

    clients = [client_module.InferenceServerClient(address, channel_args=[("n", i)]) for i in range(6)]
    assert all(map(ask_grpc, clients))
    assert connections(service, int(address.rpartition(":")[2])) == [2, 2, 2]
    service.process.terminate()
    assert service.process.wait(300) == 0

"""init(): which devices a rank has, which backend it joins by, and what wrap() makes of a model."""

from __future__ import annotations

import sys
import types
from typing import Any, NamedTuple

import pytest

import torchpar.runtime
from torchpar.contract.job import JobSettings, RankSettings, job_environment
from torchpar.runtime.job import device_numbers


class Device(NamedTuple):
    """A torch.device."""

    type: str
    index: int | None = None


class Model:
    """A torch module that knows where it was put."""

    def __init__(self, *devices: Device) -> None:
        self.devices = devices
        self.device: Device | None = None

    def parameters(self) -> list[Any]:
        """One on each of the devices."""
        return [types.SimpleNamespace(device=device) for device in self.devices]

    def to(self, device: Device) -> Model:
        """As torch's."""
        self.device = device
        return self


def settings(*gpus: int) -> JobSettings:
    """A service whose ranks have these numbers of accelerators."""
    ranks = tuple(
        RankSettings(local_rank=i, cpus="0", numa_nodes="0", threads=1, loader_workers=0, gpus=("0000:17:00.0",) * n)
        for i, n in enumerate(gpus)
    )
    return JobSettings(service="torchpar-train@a.service", interop_threads=1, cudnn_benchmark=None, ranks=ranks)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A torch that sees two accelerators, and keeps what was asked of it in `calls`."""
    calls: list[Any] = []
    joined: list[str] = []
    torch = types.ModuleType("torch")
    distributed = types.ModuleType("torch.distributed")
    parallel = types.ModuleType("torch.nn.parallel")
    torch.__dict__.update(
        calls=calls,
        device=Device,
        distributed=distributed,
        cuda=types.SimpleNamespace(device_count=lambda: 2, set_device=lambda device: calls.append(device)),
    )
    distributed.__dict__.update(
        is_initialized=lambda: bool(joined),
        init_process_group=lambda backend: (joined.append(backend), calls.append(backend)),
    )
    parallel.__dict__.update(DistributedDataParallel=lambda model, **arguments: ("DDP", model, arguments))
    for name, module in {"torch": torch, "torch.distributed": distributed, "torch.nn.parallel": parallel}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return torch


def enter(monkeypatch: pytest.MonkeyPatch, plan: JobSettings, rank: int) -> None:
    """Become a rank of a service."""
    world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(plan.ranks))}
    for name, value in {**job_environment(plan), **world}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("plan", "local_rank", "visible", "numbers"),
    [
        (settings(1, 1), 1, 2, [1]),
        (settings(2, 2), 1, 4, [2, 3]),
        (settings(0, 0), 1, 0, []),
        (settings(1, 1), 1, 0, []),  # a torch for CPUs
        (settings(1), 3, 1, []),  # no such rank in the plan
        (None, 1, 2, [1]),
        (None, 1, 0, []),
    ],
)
def test_the_accelerators_of_the_ranks_follow_one_another(
    plan: JobSettings | None, local_rank: int, visible: int, numbers: list[int]
) -> None:
    """As the service sees them; without a plan each rank has one."""
    assert list(device_numbers(plan, local_rank, visible)) == numbers


def test_ranks_with_and_without_an_accelerator_do_not_wait_for_each_other(capfd: pytest.CaptureFixture[str]) -> None:
    """Where one of two has gone every rank ends with the reason; where all have, all compute on the CPU and say so."""
    for local_rank in (0, 1):
        with pytest.raises(RuntimeError, match="2 accelerators are planned .* torch sees 1"):
            device_numbers(settings(1, 1), local_rank, 1)
    assert capfd.readouterr().err == ""
    assert not device_numbers(settings(1, 1), 0, 0)
    assert capfd.readouterr().err == "torchpar: 2 accelerators are planned and torch sees none: the CPU computes\n"


def test_a_rank_with_an_accelerator_joins_by_nccl_and_takes_it(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is allocated on another one. A second call changes nothing."""
    enter(monkeypatch, settings(1, 1), rank=1)
    job = torchpar.runtime.init()
    assert (job.rank, job.local_rank, job.world_size, job.devices) == (1, 1, 2, (Device("cuda", 1),))
    assert torch.calls == [Device("cuda", 1), "nccl"]
    model = Model()
    assert job.wrap(model, bucket_cap_mb=5) == ("DDP", model, {"device_ids": [1], "bucket_cap_mb": 5})
    assert model.device == Device("cuda", 1)
    torchpar.runtime.init()
    assert torch.calls.count("nccl") == 1


def test_a_rank_on_cpus_joins_by_gloo(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a host whose accelerators are others'."""
    enter(monkeypatch, settings(0, 0), rank=0)
    job = torchpar.runtime.init()
    model = Model()
    assert job.wrap(model) == ("DDP", model, {}) and model.device == Device("cpu")
    assert torch.calls == ["gloo"]


def test_a_model_on_several_devices_stays_where_it_is(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUsPerRank=2: only the script knows which part belongs where."""
    enter(monkeypatch, settings(2), rank=0)
    job = torchpar.runtime.init()
    model = Model(*job.devices)
    assert job.devices == (Device("cuda", 0), Device("cuda", 1))
    assert job.wrap(model) is model and model.device is None
    job.world_size = 2
    assert job.wrap(model) == ("DDP", model, {}) and model.device is None


def test_a_model_that_is_in_one_piece_goes_to_the_first_device(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the process has several: the script moves its batches there (job.device)."""
    enter(monkeypatch, settings(2), rank=0)
    job = torchpar.runtime.init()
    for model in (Model(), Model(Device("cpu"), Device("cpu"))):
        assert job.wrap(model) is model and model.device == Device("cuda", 0)
    job.world_size = 2
    assert job.wrap(model) == ("DDP", model, {"device_ids": [0]})


def test_a_process_that_is_alone_has_no_group(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its model is its own, on its own device."""
    enter(monkeypatch, settings(0), rank=0)
    job = torchpar.runtime.init()
    model = Model()
    assert job.wrap(model) is model and model.device == Device("cpu")
    assert torch.calls == []

"""A job in an allocation: its CPUs and accelerators are the host, and its ranks are the tasks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import pytest

from tests.unit.hosts import make_gpu, make_host
from torchpar.adhoc.allocation import Allocation, allocate, command_of, environment_of, plan_allocated
from torchpar.adhoc.plan import conf_of, take_job
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.job import JobSettings, parse_job_environment
from torchpar.facts.slurm import SlurmTask
from torchpar.facts.topology import Held, HostFacts
from torchpar.plan.plan import ServicePlan

EIGHT = make_host(packages=2)
GPUS = make_host(packages=2, gpu_nodes=(0, 0, 1, 1))


def task(tasks: tuple[int, ...] = (1,), node: int = 0, local_rank: int = 0, **fields: object) -> SlurmTask:
    """Of step 7.0 on hosts n0, n1, ...; `tasks` run on each."""
    hosts = tuple(f"n{number}" for number in range(len(tasks)))
    rank = sum(tasks[:node]) + local_rank
    return SlurmTask(7, "0", hosts, tasks, node, rank, local_rank, **fields)  # type: ignore[arg-type]


def given(
    one: SlurmTask, cpus: str, facts: HostFacts = EIGHT, environ: Mapping[str, str] | None = None
) -> Allocation:
    """What Slurm has given a task, which it keeps to some CPUs."""
    return allocate(one, dataclasses.replace(facts, allowed_cpus=CpuSet.parse(cpus)), environ or {})


def planned(
    allocation: Allocation, *settings: tuple[str, str], conf: str = "", running: tuple[str, ...] = ()
) -> ServicePlan:
    """The plan of a job in it."""
    files = [ConfFile("/c", conf), conf_of((*allocation.settings(), *settings))]
    config, job = take_job(parse_config(files, allocation.facts), "x-7.0", script="x.py", module=None, arguments=())
    return plan_allocated(config, job, allocation, running=running)


def told(plan: ServicePlan, allocation: Allocation) -> tuple[dict[str, str], JobSettings]:
    """The variables of the task, and the settings that they carry."""
    environment = environment_of(plan, allocation)
    job = parse_job_environment(environment)
    assert job
    return environment, job


BUSY = "[Host]\nCPUs=0-1\nReserveCores=1\n[Train a]\nScript=/a.py\nEnabled=yes\nCPUs=2\n"


def test_the_allocation_is_the_host() -> None:
    """[Host] and what is declared are for the part that Slurm has left; nothing is kept back of what it gives."""
    allocation = given(task(cpus=4), "4-7")
    plan = planned(allocation, conf=BUSY)
    assert (str(plan.cpus), plan.own, plan.warnings, list(allocation.warnings())) == ("4-7", True, (), [])
    environment, job = told(plan, allocation)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & environment.keys()
    assert (job.signals, job.nodes, job.endpoint) == ("each", "1", None)
    assert command_of(plan, allocation)[1] == "/usr/lib/torchpar/run.py"


def test_a_running_service_on_the_same_cpus_is_named() -> None:
    """An administrator has given them twice; the job sleeps while it waits, as both would be slow else."""
    facts = dataclasses.replace(EIGHT, in_force={"torchpar-train@a.service": Held(CpuSet.parse("4-7"))})
    allocation = given(task(cpus=4), "4-7", facts)
    for running, own in (((), True), (("torchpar-train@a.service",), False)):
        plan = planned(allocation, conf=BUSY, running=running)
        assert (str(plan.cpus), plan.own) == ("4-7", own)
        assert any("shares CPUs with torchpar-train@a.service" in warning for warning in plan.warnings) is not own


def test_each_task_is_a_rank_by_slurms_numbers() -> None:
    """Bound by Slurm each: this one's CPUs, and everybody meets at the first host on the step's port."""
    allocation = given(task((2, 2), node=1, local_rank=1, cpus=4), "2-3")
    plan = planned(allocation, conf="[Train]\nRanks=numa\n")
    environment, job = told(plan, allocation)
    numbers = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    assert numbers == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert job.nodes == "2" and re.fullmatch(r"n0:2[0-9]{4}", job.endpoint or "")
    own = job.rank(1)
    assert own and (own.cpus, own.threads, environment["OMP_NUM_THREADS"]) == ("2-3", 2, "2")
    assert command_of(plan, allocation)[1] == "/usr/lib/torchpar/run.py"


def test_one_task_on_each_of_several_hosts_is_a_rank_too() -> None:
    """Unless it is to start several."""
    allocation = given(task((1, 1), node=1, cpus=2), "0-1")
    environment, job = told(planned(allocation), allocation)
    assert (environment["RANK"], environment["LOCAL_WORLD_SIZE"], job.nodes) == ("1", "1", "2")


def test_one_task_on_each_host_starts_the_ranks_of_its_host() -> None:
    """torchrun numbers them; all hosts meet at the same place, and another step at another one."""
    endpoints = set()
    for node in (0, 1):
        allocation = given(task((1, 1), node=node, cpus=4), "0-3")
        plan = planned(allocation, ("Ranks", "2"))
        environment, job = told(plan, allocation)
        assert command_of(plan, allocation)[1] == "/usr/lib/torchpar/launch.py"
        assert (job.nodes, [rank.cpus for rank in job.ranks], job.signals) == ("2", ["0-1", "2-3"], "each")
        assert "RANK" not in environment
        endpoints.add(job.endpoint)
    (endpoint,) = endpoints
    other = given(dataclasses.replace(task((1, 1), cpus=4), step="1"), "0-3")
    assert told(planned(other, ("Ranks", "2")), other)[1].endpoint != endpoint


def test_tasks_that_are_kept_to_the_same_cpus_divide_them() -> None:
    """By a cpuset alone, without task/affinity: each takes its own part of the same plan."""
    parts = []
    for local_rank in (0, 1):
        allocation = given(task((2,), local_rank=local_rank, cpus=4), "0-3")
        plan = planned(allocation)
        environment, job = told(plan, allocation)
        rank = job.rank(int(environment["LOCAL_RANK"]))
        assert rank and (rank.threads, job.nodes) == (2, "1")
        assert command_of(plan, allocation)[1] == "/usr/lib/torchpar/run.py"
        parts.append(rank.cpus)
    assert parts == ["0-1", "2-3"]


def test_where_slurm_only_counts_cpus_no_task_is_put_on_some_of_them() -> None:
    """Two jobs would be put on the same ones. Each has its number of threads."""
    allocation = given(task((2,), cpus=4), "0-7")
    plan = planned(allocation)
    environment, _ = told(plan, allocation)
    assert (str(plan.cpus), environment["OMP_NUM_THREADS"], plan.own) == ("0-7", "2", False)
    assert "Slurm gives this task 4 CPUs of this host and does not say which" in next(allocation.warnings())
    alone = given(task(cpus=4), "0-7")
    assert [rank.threads for rank in planned(alone, ("Ranks", "2")).ranks] == [2, 2]
    assert [rank.threads for rank in planned(alone, conf="[Train]\nRanks=numa\nThreads=8\n").ranks] == [2, 2]
    assert [rank.threads for rank in planned(alone, ("Threads", "1")).ranks] == [1]


@pytest.mark.parametrize(("asked", "given_out"), [((), 2), ((("GPUs", "1"),), 1), ((("GPUs", "none"),), 0)])
def test_where_slurm_only_counts_cpus_a_job_has_its_accelerators(
    asked: tuple[tuple[str, str], ...], given_out: int
) -> None:
    """All that Slurm has given it, unless its user wants fewer; and each rank its part of the threads."""
    allocation = given(task(cpus=4, gpus=(1, 2)), "0-7", GPUS, {"CUDA_VISIBLE_DEVICES": "1,2"})
    plan = planned(allocation, *asked, conf="[Train]\nGPUs=none\n")
    assert len(plan.gpus) == given_out
    ranks = "[Train]\nRanks=gpu\n"
    if given_out:
        threads = [rank.threads for rank in planned(allocation, *asked, conf=ranks).ranks]
        assert threads == [4 // given_out] * given_out


def test_a_batch_script_that_is_one_of_several_tasks_is_told_of_srun() -> None:
    """It runs once, and its user may think that it runs on all hosts."""
    allocation = given(dataclasses.replace(task(cpus=8), step="batch", job_tasks=4), "0-7")
    assert "the allocation is for 4 tasks or hosts" in next(allocation.warnings())
    assert "RANK" not in told(planned(allocation), allocation)[0]


@pytest.mark.parametrize(
    ("numbers", "visible", "asked", "pci", "named"),
    [
        # Slurm's own numbers, and with ConstrainDevices= those that the job sees.
        ((2, 3), "2,3", "auto", "12 13", "2,3"),
        ((2, 3), "0,1", "auto", "12 13", "0,1"),
        ((2, 3), "0,1", "1", "12", "0"),
        ((2, 3), "1", "auto", "13", "1"),
        ((1, 2), "0,1", "auto", "11 12", "0,1"),
        ((1, 2), "1,2", "auto", "11 12", "1,2"),
        ((1, 2, 3), "0,2", "auto", "11 13", "0,2"),
        ((1, 2), "0,3", "auto", "11", "0"),
        # It may be either; it is taken for the host's.
        ((1, 2), "1", "auto", "11", "1"),
        ((2, 3), "2,3", "none", "", ""),
        # No GPU of the allocation, and a cluster where Slurm knows nothing of GPUs.
        ((), "", "auto", "", ""),
        ((), "NoDevFiles", "auto", "", ""),
        ((), None, "auto", "", ""),
        ((), "1", "auto", "11", "1"),
        ((), "9", "auto", "", None),
    ],
)
def test_accelerators_are_those_of_the_allocation(
    numbers: tuple[int, ...], visible: str | None, asked: str, pci: str, named: str | None
) -> None:
    """By the names that Slurm has for them, and no other one is seen. What this host does not have stays as it is."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    allocation = given(task(cpus=8, gpus=numbers), "0-7", GPUS, environ)
    plan = planned(allocation, ("GPUs", asked))
    assert " ".join(gpu.pci[5:7] for gpu in plan.gpus) == pci
    assert told(plan, allocation)[0].get("CUDA_VISIBLE_DEVICES") == named


@pytest.mark.parametrize(
    ("numbers", "visible", "gpus"),
    [
        ((0, 1), "0,1", ["0000:10:00.0", "0000:11:00.0"]),
        ((0, 1), "1", [None, "0000:11:00.0"]),
    ],
)
def test_accelerators_that_all_tasks_see_are_divided(
    numbers: tuple[int, ...], visible: str, gpus: list[str | None]
) -> None:
    """LOCAL_RANK is then the number of the device; where Slurm has bound each to its own, that is the only one."""
    one = task((2,), local_rank=1, cpus=8, gpus=numbers)
    allocation = given(one, "4-7", GPUS, {"CUDA_VISIBLE_DEVICES": visible})
    environment, job = told(planned(allocation), allocation)
    assert [rank.gpus[0] if rank.gpus else None for rank in job.ranks] == gpus
    assert environment["CUDA_VISIBLE_DEVICES"] == visible


def test_an_instance_of_mig_is_the_one_that_slurm_has_given() -> None:
    """The others of its GPU are not of the allocation."""
    gpu = dataclasses.replace(make_gpu(0, 0), uuid="GPU-1", mig_instances=("1/0", "2/0"))
    facts = dataclasses.replace(EIGHT, gpus=(gpu,))
    allocation = given(task(cpus=4), "4-7", facts, {"CUDA_VISIBLE_DEVICES": "MIG-GPU-1/2/0"})
    plan = planned(allocation)
    assert [gpu.name for gpu in plan.gpus] == ["MIG-GPU-1/2/0"]
    assert told(plan, allocation)[0]["CUDA_VISIBLE_DEVICES"] == "MIG-GPU-1/2/0"

"""Mistakes that other launchers make on machines that exist, each as a case that torchpar passes.

run_cpu is torch.backends.xeon.run_cpu, torch.numa is torchrun --numa-binding, as of PyTorch 2.13.
"""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.hosts import JEMALLOC, make_gpu, make_host, make_hybrid_host
from tests.unit.placement.test_place import cpus, refused
from tests.unit.plan.test_plan import plan_of
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.facts.topology import Distances, HostFacts, NumaNode


def adjacent_siblings() -> HostFacts:
    """Four cores whose siblings are neighbours: 0-1, 2-3, 4-5, 6-7, as on AMD and POWER."""
    cores = tuple(CpuSet([2 * i, 2 * i + 1]) for i in range(4))
    return dataclasses.replace(make_host(smt=2), cores=cores)


def test_core_ids_are_not_taken_for_cpu_numbers() -> None:
    """run_cpu takes CPUs 0-3, which are two cores of four; two services of two cores each get whole cores."""
    host = adjacent_siblings()
    shares = cpus("Host ReserveCores=0\na CPUs=2 Enabled=yes\nb CPUs=2 Enabled=yes", host)
    assert shares == {"a": "0-3", "b": "4-7"}
    assert plan_of("LoaderWorkers=0", host).ranks[0].threads == 4


def test_a_host_without_node_column_is_one_node() -> None:
    """run_cpu ends with int('')."""
    host = make_host(numa_nodes=(NumaNode(0, CpuSet(range(4)), None, synthetic=True),))
    plan = plan_of("", host)
    assert plan.cpus == CpuSet(range(4)) and plan.memory.policy.value == "default"


def test_twelve_nodes_are_twelve_nodes() -> None:
    """run_cpu reads one digit of a node's number, and folds 10 and 11 into 1."""
    host = make_host(packages=2, nodes_per_package=6, cores_per_complex=2)
    plan = plan_of("Ranks=numa", host)
    assert [str(rank.numa_nodes) for rank in plan.ranks] == [str(i) for i in range(12)]


def test_offline_cpus_are_never_chosen() -> None:
    """run_cpu chooses CPU 1, which is offline, and never the last one."""
    online = CpuSet([0, 2, 3])
    host = make_host(
        cores=tuple(CpuSet([i]) for i in online), online_cpus=online, allowed_cpus=online, offline_cpus=CpuSet([1])
    )
    assert cpus("a Enabled=yes", host) == {"a": "0,2-3"}


def test_a_hybrid_host_computes_on_whole_performance_cores() -> None:
    """run_cpu takes siblings for cores, and drops the last CPUs."""
    assert cpus("Host ReserveCores=0\na Enabled=yes", make_hybrid_host()) == {"a": "0-7"}


def test_a_module_can_be_run() -> None:
    """run_cpu -m always fails."""
    plan = plan_of("Script=\nModule=pkg.train")
    assert plan.command == ("/usr/bin/python3", "/usr/lib/torchpar/run.py", "-m", "pkg.train")


def test_ranks_have_their_threads_under_torchrun() -> None:
    """torchrun sets OMP_NUM_THREADS=1 unless it is set, and run_cpu under it keeps that."""
    plan = plan_of("Ranks=2", make_host(cores_per_complex=8))
    assert plan.environment["OMP_NUM_THREADS"] == "4" and plan.command[1] == "/usr/lib/torchpar/launch.py"


def test_an_allocator_is_never_preloaded_without_its_settings() -> None:
    """run_cpu sets MALLOC_CONF only when jemalloc is asked for, not when it is found."""
    for conf in ("", "Allocator=jemalloc"):
        environment = plan_of(conf, make_host(libraries=(JEMALLOC,))).environment
        assert ("LD_PRELOAD" in environment) is ("MALLOC_CONF" in environment) is True


def test_unequal_ranks_have_unequal_threads() -> None:
    """run_cpu gives all instances one environment."""
    plan = plan_of("Ranks=2\nLoaderWorkers=0", make_host(cores_per_complex=5))
    assert [rank.threads for rank in plan.ranks] == [3, 2]


def test_a_cpuset_is_obeyed() -> None:
    """run_cpu and ipexrun choose CPUs that the process may not use."""
    host = make_host(allowed_cpus=CpuSet([2, 3]))
    assert cpus("a Enabled=yes", host) == {"a": "2-3"}
    assert "CPU 0-1 may not be used: the cpuset of this system allows only CPUs 2-3" in refused("a CPUs=0-1", host)


def test_a_node_without_cpus_is_no_place_for_a_rank() -> None:
    """torch.numa's socket mode ends with min() of nothing."""
    host = make_host(packages=2)
    nodes = (*host.numa_nodes, NumaNode(2, CpuSet(), 2**36))
    host = dataclasses.replace(host, numa_nodes=nodes, allowed_mems=CpuSet([0, 1, 2]))
    for binding in ("socket", "node", "core-complex"):
        plan = plan_of(f"Ranks=numa\nBinding={binding}", host)
        assert [str(rank.cpus) for rank in plan.ranks] == ["0-3", "4-7"]
        assert str(plan.memory.allowed_nodes) == "0-1"


def test_nodes_that_are_possible_but_absent_are_not_looked_for() -> None:
    """torch.numa reads node/possible and fails; sparse numbers are ordinary."""
    nodes = (NumaNode(0, CpuSet([0, 1]), 2**34), NumaNode(8, CpuSet([2, 3]), 2**34))
    distances = Distances((0, 8), ((10, 40), (40, 10)))
    host = make_host(numa_nodes=nodes, allowed_mems=CpuSet([0, 8]), distances=distances)
    assert [str(rank.numa_nodes) for rank in plan_of("Ranks=numa", host).ranks] == ["0", "8"]


def test_more_gpus_than_cores_is_a_message() -> None:
    """torch.numa's exclusive mode raises from inside of its arithmetic."""
    host = make_host(cores_per_complex=2, gpu_nodes=(0, 0, 0, 0))
    with pytest.raises(PlacementError, match="each of 4 ranks needs one at least"):
        plan_of("Ranks=gpu", host)


def test_no_rank_is_left_without_a_gpu_that_the_others_have() -> None:
    """It would wait for them by gloo, and they for it by nccl."""
    host = make_host(packages=2, gpu_nodes=(0,))
    with pytest.raises(PlacementError, match=r"that is more than its 1 accelerators; GPUs=none trains on CPUs"):
        plan_of("Ranks=2", host)
    assert [len(rank.gpus) for rank in plan_of("Ranks=numa", host).ranks] == [1]
    assert [rank.gpus for rank in plan_of("Ranks=numa\nGPUs=none", host).ranks] == [(), ()]


def test_one_rank_on_a_host_with_four_gpus_has_all_of_the_cores() -> None:
    """torch.numa splits by the GPUs that are visible, not by the ranks that run."""
    host = make_host(cores_per_complex=8, gpu_nodes=(0, 0, 0, 0))
    plan = plan_of("", host)
    assert [str(rank.cpus) for rank in plan.ranks] == ["0-7"] and len(plan.ranks[0].gpus) == 4


def test_ranks_that_share_a_core_complex_are_bound_to_the_services_part_of_it() -> None:
    """torch.numa's core-complex mode lets four GPUs share two complexes without a word."""
    host = make_host(complexes_per_node=2, cores_per_complex=4, gpu_nodes=(0, 0, 0, 0))
    plan = plan_of("Ranks=gpu\nBinding=core-complex", host)
    assert [str(rank.cpus) for rank in plan.ranks] == ["0-3", "0-3", "4-7", "4-7"]
    assert sum(rank.threads + rank.loader_workers for rank in plan.ranks) <= 8


def test_a_gpu_of_unknown_node_binds_nothing_to_node_zero() -> None:
    """torch.numa takes -1 for node 0."""
    host = dataclasses.replace(make_host(packages=2), gpus=(make_gpu(0, None),))
    shares = cpus("Host ReserveCores=0\nx CPUs=0-3 Enabled=yes\na CPUs=2 GPUs=1 Enabled=yes", host)
    assert shares["a"] == "4-5"


def test_the_devices_of_a_service_are_numbered_by_address() -> None:
    """accelerate takes the local rank for NVML's number, whatever CUDA_VISIBLE_DEVICES says."""
    host = make_host(gpu_nodes=(0, 0, 0))
    plan = plan_of("GPUs=0000:12:00.0", host)
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == "2" and plan.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_two_services_never_both_start_at_the_first_core() -> None:
    """TorchServe's workers of every model, and every launcher that is started twice."""
    shares = cpus("Host ReserveCores=0\na CPUs=2 Enabled=yes\nb CPUs=2 Enabled=yes", make_host())
    assert shares == {"a": "0-1", "b": "2-3"}


def test_a_cpu_quota_is_rounded_down() -> None:
    """Nobody reads it: 45 times slower where 2.5 CPUs run 64 threads."""
    plan = plan_of("", make_host(cores_per_complex=64, cpu_limit=2.5))
    assert plan.ranks[0].threads == 2 and len(plan.cpus) == 2

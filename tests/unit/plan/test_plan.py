"""Ranks, threads, memory, allocator and variables: what one service runs with."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.unit.hosts import JEMALLOC, TCMALLOC, make_gpu, make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import ConfigError, PlacementError
from torchpar.contract.job import parse_job_environment
from torchpar.facts.topology import HostFacts, Library, NumaNode, facts_json, parse_facts
from torchpar.plan.allocator import JEMALLOC_CONF
from torchpar.plan.plan import Plan, ServicePlan, make_plan, plan_json

TWO_NODES = make_host(packages=2, cores_per_complex=4)
FOUR = make_host()


def plan_of(settings: str, facts: HostFacts = FOUR, *, kind: str = "Train", more: str = "") -> ServicePlan:
    """The plan of one enabled service on a host without reserved cores."""
    what = "Script=/a.py" if kind == "Train" else "Model=/m.pt"
    text = f"[Host]\nReserveCores=0\n[{kind} a]\n{what}\nEnabled=yes\n{settings}\n{more}\n"
    config = parse_config([ConfFile("/c", text)], facts)
    return make_plan(config, facts).services[0]


def ranks(plan: ServicePlan) -> list[tuple[str, int, int]]:
    """CPUs, threads and loader workers of each rank."""
    return [(str(rank.cpus), rank.threads, rank.loader_workers) for rank in plan.ranks]


def why(plan: ServicePlan, key: str) -> str:
    """The reason for a key."""
    return next(reason.why for reason in plan.reasons if reason.key == key)


LENDER = "[Train b]\nScript=/b.py\nEnabled=yes\nCPUs=2\nLend=yes\n"


def test_who_may_borrow_has_a_control_group_with_the_cpus_of_those_who_lend() -> None:
    """It computes on its own."""
    plan = plan_of("CPUs=1\nBorrow=yes", more=LENDER)
    assert (len(plan.cpus), len(plan.allowed_cpus), plan.ranks[0].threads) == (1, 3, 1)
    assert why(plan, "Borrow") == f"while they are not needed by train@b it may compute on CPUs {plan.others_cpus}, too"
    assert plan_of("CPUs=1", more=LENDER).allowed_cpus == plan.cpus
    alone = plan_of("CPUs=1\nBorrow=yes", more=LENDER.replace("yes\n", "no\n"))
    assert alone.allowed_cpus == alone.cpus
    assert why(alone, "Borrow") == "no other service with Lend=yes has CPUs that are not its own already"
    isolated = plan_of("CPUs=1\nBorrow=yes", make_host(isolated_cpus=CpuSet([3])), more=LENDER.replace("=2", "=2-3"))
    assert str(isolated.others_cpus) == "2"


def test_whoever_lends_is_told_what() -> None:
    plan = plan_of("CPUs=1\nLend=yes")
    assert why(plan, "Lend") == f"while it does not run, services with Borrow=yes may compute on CPUs {plan.cpus}"
    infer = plan_of("CPUs=1\nLend=yes", kind="Infer")
    assert "or has had no request for a while" in why(infer, "Lend")
    job = parse_job_environment(infer.environment)
    assert job and job.serve and job.serve.lend


@pytest.mark.parametrize(
    ("cores", "settings", "threads", "workers"),
    [
        (2, "", 2, 0),
        (4, "", 4, 0),
        (4, "LoaderWorkers=off", 4, 0),
        (4, "LoaderWorkers=2", 2, 2),
        (4, "Threads=2", 2, 0),
        (4, "Threads=9", 4, 0),
        (4, "Threads=3 LoaderWorkers=3", 3, 1),
        (1, "LoaderWorkers=2", 1, 0),
    ],
)
def test_threads_and_loader_workers_never_exceed_the_cores(
    cores: int, settings: str, threads: int, workers: int
) -> None:
    """The rule against oversubscription, also for what the conf asks for."""
    plan = plan_of(settings.replace(" ", "\n"), make_host(cores_per_complex=cores))
    assert ranks(plan) == [(str(CpuSet(range(cores))), threads, workers)]


def test_what_is_reduced_is_said_with_its_place() -> None:
    """A conf that asks for too much is followed as far as it can be."""
    assert plan_of("Threads=9").warnings[0] == "/c:6: [Train a] Threads=9: reduced to its 4 cores"


def test_a_job_knows_whether_its_number_of_threads_was_asked_for() -> None:
    """Then it stays, whichever CPUs it is given."""
    jobs = [parse_job_environment(plan_of(settings).environment) for settings in ("", "Threads=2")]
    assert [job and job.own_threads for job in jobs] == [False, True]


@pytest.mark.parametrize(
    ("line", "seconds"),
    [("", 900), ("Service.TimeoutStartSec=1h 30min", 5400), ("Service.TimeoutStartSec=infinity", None),
     ("Service.TimeoutStartSec=0", None), ("Service.TimeoutStartSec=1.5h", 900)],
)  # fmt: skip
def test_a_server_knows_how_long_systemd_waits_for_it(line: str, seconds: int | None) -> None:
    job = parse_job_environment(dict(plan_of(line, kind="Infer").environment))
    assert job and job.serve and job.serve.start_timeout == seconds


def test_smt_gives_a_thread_to_each_cpu_only_when_asked() -> None:
    """Two threads of one core share its arithmetic units."""
    host = make_host(cores_per_complex=2, smt=2)
    assert ranks(plan_of("", host)) == [("0-3", 2, 0)]
    assert ranks(plan_of("SMT=yes\nLoaderWorkers=0", host)) == [("0-3", 4, 0)]


def test_ranks_split_cores_evenly_and_the_first_get_the_remainder() -> None:
    """Five cores for two ranks are three and two."""
    assert ranks(plan_of("Ranks=2\nLoaderWorkers=0", make_host(cores_per_complex=5))) == [("0-2", 3, 0), ("3-4", 2, 0)]


def test_no_rank_crosses_a_node_where_there_are_as_many_ranks_as_nodes() -> None:
    """Each rank's memory is near it."""
    assert [r[0] for r in ranks(plan_of("Ranks=3", TWO_NODES))] == ["0-1", "2-3", "4-6"]
    assert [r[0] for r in ranks(plan_of("Ranks=numa", TWO_NODES))] == ["0-3", "4-7"]


@pytest.mark.parametrize(
    ("binding", "expected"),
    [("node", "0-3"), ("socket", "0-3"), ("core-complex", "0-3"), ("none", "0-7"), ("exclusive", "0-1")],
)
def test_binding_widens_what_a_rank_is_bound_to(binding: str, expected: str) -> None:
    """PyTorch's words for it."""
    assert ranks(plan_of(f"Ranks=4\nBinding={binding}", TWO_NODES))[0][0] == expected


def test_more_ranks_than_cores_are_refused() -> None:
    """With the key, the number of cores and the CPUs."""
    with pytest.raises(PlacementError, match=r"\[Train a\] Ranks=5: it has 4 cores \(0-3\)"):
        plan_of("Ranks=5")


def test_ranks_of_gpus_get_the_cores_near_their_gpu() -> None:
    """The second GPU's rank is on the second node."""
    host = dataclasses.replace(TWO_NODES, gpus=(make_gpu(0, 1), make_gpu(1, 0)))
    plan = plan_of("Ranks=gpu", host)
    assert [(str(r.cpus), [g.pci for g in r.gpus]) for r in plan.ranks] == [
        ("4-7", ["0000:10:00.0"]),
        ("0-3", ["0000:11:00.0"]),
    ]
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert plan.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("settings", "gpus", "workers"),
    [("", 1, [0]), ("Ranks=gpu", 2, [0, 0]), ("LoaderWorkers=40", 1, [40]), ("Threads=60\nLoaderWorkers=9", 1, [4])],
)
def test_loader_workers_are_those_that_the_conf_asks_for(settings: str, gpus: int, workers: list[int]) -> None:
    """Also for a rank with an accelerator, whose CPUs are mostly free."""
    plan = plan_of(settings, make_host(cores_per_complex=64, gpu_nodes=(0,) * gpus))
    assert [rank.loader_workers for rank in plan.ranks] == workers
    assert all(rank.threads + rank.loader_workers <= rank.budget == 64 // len(plan.ranks) for rank in plan.ranks)
    if not settings:
        assert why(plan, "LoaderWorkers").startswith("the calls in the script decide")
        assert why(plan, "CudnnBenchmark").startswith("torch's own")


def test_ranks_gpu_without_gpus_is_refused() -> None:
    """A host without GPUs needs another file."""
    with pytest.raises(PlacementError, match=r"Ranks=gpu: it has 0 accelerators here"):
        plan_of("Ranks=gpu")


def test_accelerators_of_others_are_hidden() -> None:
    """A service without GPUs on a host with some sees none."""
    host = dataclasses.replace(FOUR, gpus=(make_gpu(0, 0),))
    assert plan_of("GPUs=none", host).environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("settings", "policy", "nodes", "allowed"),
    [
        ("CPUs=4", "preferred", "0", "0-1"),
        ("CPUs=4\nMemoryMax=8G", "bind", "0", "0"),
        ("CPUs=4\nMemoryMax=14G", "preferred", "0", "0-1"),
        ("", "local", "", "0-1"),
        ("NUMAPolicy=interleave", "interleave", "0-1", "0-1"),
        ("NUMAMask=1", "bind", "1", "1"),
        ("NUMAPolicy=preferred", "preferred", "0", "0-1"),
        ("NUMAPolicy=default", "default", "", "0-1"),
    ],
)
def test_the_memory_policy_follows_the_nodes_and_the_limit(
    settings: str, policy: str, nodes: str, allowed: str
) -> None:
    """bind only where the memory limit leaves room on the node."""
    memory = plan_of(settings, TWO_NODES).memory
    assert (memory.policy.value, str(memory.nodes), str(memory.allowed_nodes)) == (policy, nodes, allowed)


def test_a_kernel_without_numa_gets_no_policy() -> None:
    """set_mempolicy would fail with ENOSYS, and systemd with 242."""
    host = make_host(numa_nodes=(), allowed_mems=CpuSet())
    assert plan_of("", host).memory.policy.value == "default"


def test_what_systemd_could_not_set_at_the_last_start_is_left_out_and_it_is_said() -> None:
    """torchpard has noted it; who asks for a placement of all services anew does not ask for that again."""
    unit, bound = "torchpar-train@a.service", plan_of("NUMAPolicy=bind")
    host = dataclasses.replace(FOUR, without={unit: 242})
    plan = plan_of("NUMAPolicy=bind", host)
    assert (plan.memory.policy.value, str(plan.memory.nodes)) == ("default", "")
    assert (plan.cpus, bound.memory.policy.value) == (bound.cpus, "bind")
    assert any(one.key == "NUMAPolicy" and "systemd could not set another" in one.why for one in plan.reasons)
    host = dataclasses.replace(FOUR, without={unit: 215})
    assert plan_of("NUMAPolicy=bind", host).memory == bound.memory
    assert ("CPUAffinity", "none") in [(one.key, one.value) for one in plan_of("", host).reasons]
    assert plan_of("NUMAPolicy=bind", host.afresh()).reasons == bound.reasons


def test_weights_larger_than_a_node_are_interleaved() -> None:
    """All nodes' bandwidth for one large model."""
    assert plan_of("MemoryMax=20G", TWO_NODES, kind="Infer").memory.policy.value == "interleave"


def test_a_node_that_is_not_there_is_refused() -> None:
    """systemd would fail with 242 at the start."""
    with pytest.raises(PlacementError, match=r"NUMAMask=3: node 3 is not there or not allowed; this host has nodes 0"):
        plan_of("NUMAMask=3")


def test_jemalloc_has_the_settings_that_avoid_page_faults() -> None:
    """muzzy_decay_ms:-1 is what matters with 5.3."""
    environment = plan_of("Allocator=jemalloc").environment
    assert environment["LD_PRELOAD"] == "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
    assert environment["MALLOC_CONF"] == JEMALLOC_CONF and "muzzy_decay_ms:-1" in JEMALLOC_CONF


def test_tcmalloc_comes_first() -> None:
    """It is the faster one for a job that allocates much; only a server gives memory back."""
    plan = plan_of("")
    assert plan.allocator == "tcmalloc" and plan.environment["TCMALLOC_RELEASE_RATE"] == "0"
    assert "TCMALLOC_RELEASE_RATE" not in plan_of("", kind="Infer").environment
    assert plan.environment["LD_PRELOAD"] == "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
    assert "MALLOC_CONF" not in plan.environment
    assert plan_of("", make_host(libraries=(JEMALLOC,))).allocator == "jemalloc"


def test_without_an_allocator_glibc_gets_larger_thresholds_and_it_is_said() -> None:
    """The job still runs well, and the admin learns what to install."""
    plan = plan_of("", make_host(libraries=()))
    assert plan.allocator == "glibc" and plan.environment["MALLOC_TOP_PAD_"] == "67108864"
    assert "apt install libtcmalloc-minimal4" in plan.warnings[0]
    plan = plan_of("Allocator=jemalloc", make_host(libraries=()))
    assert "no jemalloc is installed" in plan.warnings[0] and "apt install libjemalloc2" in plan.warnings[0]


@pytest.mark.parametrize(
    ("arguments", "more", "ranks"),
    [
        ("--standalone --nproc-per-node=4 /a.py", "", True),
        ("--nproc_per_node auto /a.py", "", True),
        ("--nproc-per-node=1 /a.py", "", False),
        ("/a.py", "", False),
        ("--nnodes 1 /a.py --nproc-per-node=4", "", False),
        ("--nproc-per-node=4 /a.py", "Threads=1", False),
        ("--nproc-per-node=4 /a.py", "CPUs=1", False),
    ],
)
def test_a_module_that_starts_ranks_is_told_of_their_threads(arguments: str, more: str, ranks: bool) -> None:
    """Each has those of the whole service, unless Threads= says otherwise."""
    for module in ("torch.distributed.run", "torch.distributed.launch"):
        plan = plan_of(f"Script=\nModule={module}\nArguments={arguments}\nLoaderWorkers=off\n{more}")
        warning = (
            f"/c:7: [Train a] Module={module} starts ranks of its own, each with all 4 threads: with Ranks= in"
            " place of it each has its own CPUs, or set Threads="
        )
        assert plan.warnings == ((warning,) if ranks else ())
    assert not plan_of(f"Script=\nModule=pkg.train\nArguments={arguments}\n{more}").warnings


CONDA = "/opt/conda/envs/x/bin/python"
OWN = Library("libstdc++", "/opt/conda/envs/x/lib/libstdc++.so.6", 62)


def conda_host(*beside: Library, **changes: object) -> HostFacts:
    """A host with an interpreter that has a libstdc++ of its own, and these allocators beside it."""
    return make_host(
        **{"interpreters": {CONDA: 62}, "interpreter_libraries": {CONDA: (OWN, *beside)}, **changes}  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", ["Train", "Infer"])
def test_an_interpreter_with_its_own_libstdcxx_gets_no_allocator_that_brings_debians(kind: str) -> None:
    """The first libstdc++ of a process is that of all its libraries."""
    plan = plan_of(f"Python={CONDA}", conda_host(), kind=kind)
    assert plan.allocator == "glibc" and "LD_PRELOAD" not in plan.environment
    assert plan.environment["MALLOC_TOP_PAD_"] == "67108864" and not plan.warnings
    assert why(plan, "Allocator").startswith(f"{CONDA} has a libstdc++ of its own, {OWN.path}, and {TCMALLOC.path}")
    # Whose interpreter is another is not concerned.
    assert plan_of("", conda_host(), kind=kind).allocator == "tcmalloc"
    # A plan that is made elsewhere is the same; facts of an older version know nothing of it.
    exported = facts_json(conda_host())
    assert plan_of(f"Python={CONDA}", parse_facts(json.loads(json.dumps(exported))), kind=kind).reasons == plan.reasons
    del exported["interpreter_libraries"]
    for library in exported["libraries"]:
        del library["needs_libstdcxx"]
    assert plan_of(f"Python={CONDA}", parse_facts(exported), kind=kind).allocator == "tcmalloc"


@pytest.mark.parametrize("kind", ["Train", "Infer"])
def test_a_shim_may_start_any_interpreter_so_it_gets_no_allocator_of_debians(kind: str) -> None:
    """A script at Python= looks for the interpreter by itself, and conda's may be what it finds."""
    shim = "/home/ml/.pyenv/shims/python"
    host = make_host(interpreters={shim: None})
    plan = plan_of(f"Python={shim}", host, kind=kind)
    assert plan.allocator == "glibc" and "LD_PRELOAD" not in plan.environment
    assert why(plan, "Allocator").startswith(f"{shim} is a script or not there")
    assert plan_of(f"Python={shim}\nAllocator=tcmalloc", host, kind=kind).allocator == "tcmalloc"


def test_an_allocator_beside_the_interpreter_or_without_cxx_fits_it() -> None:
    """An environment may bring one; not every build of one is linked to libstdc++."""
    own = Library("jemalloc", "/opt/conda/envs/x/lib/libjemalloc.so.2", 62)
    plan = plan_of(f"Python={CONDA}", conda_host(own))
    assert (plan.allocator, plan.environment["LD_PRELOAD"]) == ("jemalloc", own.path) and not plan.warnings
    foreign = dataclasses.replace(own, elf_machine=183)
    assert plan_of(f"Python={CONDA}", conda_host(foreign)).allocator == "glibc"
    plain = dataclasses.replace(JEMALLOC, needs_libstdcxx=False)
    plan = plan_of(f"Python={CONDA}", conda_host(libraries=(TCMALLOC, plain)))
    assert plan.environment["LD_PRELOAD"] == plain.path
    assert why(plan, "Allocator") == f"the first that is installed and fits {OWN.path}: {plain.path}"


def test_an_allocator_that_is_asked_for_is_preloaded_with_a_warning_where_it_does_not_fit() -> None:
    """What the conf names, holds."""
    plan = plan_of(f"Python={CONDA}\nAllocator=jemalloc", conda_host())
    assert plan.environment["LD_PRELOAD"] == JEMALLOC.path
    assert plan.warnings == (
        f"/c:7: [Train a] Allocator=jemalloc: {JEMALLOC.path} brings Debian's libstdc++ before {OWN.path}, and what"
        " needs the newer one cannot be loaded; see Allocator=auto",
    )


@pytest.mark.parametrize(
    ("preload", "allocator"),
    [("/opt/libjemalloc.so", "jemalloc"), ("/usr/lib/libx.so:/opt/libtcmalloc.so.4", "tcmalloc"), ("/x.so", "glibc")],
)
def test_what_the_admin_preloads_is_what_is_expected(preload: str, allocator: str) -> None:
    """Environment= wins, and `torchpar verify` does not call that drift; no settings for another allocator are set."""
    plan = plan_of(f"Environment=LD_PRELOAD={preload}")
    assert plan.allocator == allocator and plan.environment["LD_PRELOAD"] == preload
    assert "MALLOC_CONF" not in plan.environment
    assert why(plan, "Allocator") == f"set by Environment=LD_PRELOAD={preload}"


def test_settings_for_jemalloc_without_jemalloc_are_said_to_do_nothing() -> None:
    """AllocatorConf= would otherwise be lost without a word."""
    plan = plan_of("Allocator=glibc\nAllocatorConf=narenas:1")
    warning = "/c:7: [Train a] AllocatorConf= has no effect: it is for jemalloc, and this service has glibc"
    assert plan.warnings == (warning,)
    plan = plan_of("AllocatorConf=narenas:1")
    assert plan.allocator == "jemalloc" and plan.environment["MALLOC_CONF"] == "narenas:1"


def test_a_library_of_another_architecture_is_not_preloaded() -> None:
    """The loader would skip it, and nobody would notice."""
    foreign = Library("jemalloc", "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2", 183)
    plan = plan_of("", make_host(libraries=(foreign,)))
    assert plan.allocator == "glibc" and "LD_PRELOAD" not in plan.environment
    assert plan.warnings == (
        "[Train a]: no tcmalloc nor jemalloc is installed for the architecture of /usr/bin/python3, only"
        " /usr/lib/aarch64-linux-gnu/libjemalloc.so.2; glibc with larger thresholds instead;"
        " apt install libtcmalloc-minimal4",
    )
    assert plan_of("", make_host(libraries=(foreign, TCMALLOC))).allocator == "tcmalloc"


def test_threads_spin_only_on_cpus_of_their_own() -> None:
    """Two spinning jobs on one core are twenty times slower."""
    assert "OMP_WAIT_POLICY" not in plan_of("").environment
    assert plan_of("").environment["GOMP_SPINCOUNT"] == "50000"
    assert "GOMP_SPINCOUNT" not in plan_of("Environment=OMP_WAIT_POLICY=PASSIVE").environment
    shared = plan_of("CPUs=shared")
    assert shared.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert plan_of("", make_host(cpu_limit=3.5)).environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert plan_of("WaitPolicy=passive").environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_what_the_admin_sets_wins_and_explain_says_so() -> None:
    """Environment= is the last word."""
    plan = plan_of("Environment=OMP_NUM_THREADS=1 X=y")
    assert plan.environment["OMP_NUM_THREADS"] == "1" and plan.environment["X"] == "y"
    plan = plan_of("Environment=GOMP_SPINCOUNT=1")
    assert why(plan, "GOMP_SPINCOUNT") == "set by Environment=; torchpar would set 50000"


@pytest.mark.parametrize(
    ("settings", "threads", "workers"),
    [
        ("Environment=OMP_NUM_THREADS=1\nLoaderWorkers=9", 1, 3),
        ("Environment=OMP_NUM_THREADS=2,1\nThreads=3", 2, 0),
        ("Environment=OMP_NUM_THREADS=1 OMP_NUM_THREADS=4", 4, 0),
        ("Environment=OMP_NUM_THREADS=9", 9, 0),
        ("Environment=OMP_NUM_THREADS=", 4, 0),
    ],
)
def test_threads_of_the_services_own_environment_are_what_is_planned(settings: str, threads: int, workers: int) -> None:
    """torch computes with them, so loader workers, explain and verify must count on them; more than fit are told."""
    plan = plan_of(settings)
    assert (plan.ranks[0].threads, plan.ranks[0].loader_workers) == (threads, workers)
    assert ("OMP_NUM_THREADS in Environment= says so" in why(plan, "Threads")) == (not settings.endswith("="))
    told = [warning for warning in plan.warnings if "OMP_NUM_THREADS" in warning]
    assert told == (
        ["/c:6: [Train a] OMP_NUM_THREADS=9: more than its 4 cores; what Environment= sets is left alone, and the "
         "service will be slow"]
        if threads == 9
        else []
    )  # fmt: skip


def test_explain_says_the_wait_policy_of_the_services_own_environment() -> None:
    """Not the one that torchpar would have chosen, nor WaitPolicy=, which has no effect then."""
    for settings in ("", "\nWaitPolicy=active"):
        plan = plan_of(f"Environment=OMP_WAIT_POLICY=PASSIVE{settings}")
        (reason,) = (reason for reason in plan.reasons if reason.key in ("WaitPolicy", "OMP_WAIT_POLICY"))
        assert (reason.value, reason.why) == ("passive", "OMP_WAIT_POLICY in Environment= says so, and wins")
        assert plan.environment["OMP_WAIT_POLICY"] == "PASSIVE" and "GOMP_SPINCOUNT" not in plan.environment


def test_openmp_threads_are_never_bound_one_by_one() -> None:
    """It would pin every loader worker to one core."""
    assert not {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"} & set(plan_of("").environment)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("MemoryMax=8G", []),
        ("MemoryMax=100%\nMemoryHigh=90%", []),
        ("MemoryMax=infinity\nMemoryHigh=infinity", []),
        ("MemoryMax=64G", ["/c:6: [Train a] MemoryMax=64G: is above the 16.0 GiB that this host has"]),
        ("MemoryHigh=17G", ["/c:6: [Train a] MemoryHigh=17G: is above the 16.0 GiB that this host has"]),
        ("MemoryMax=64G\nMemoryHigh=32G", ["/c:7: [Train a] MemoryHigh=32G: ", "/c:6: [Train a] MemoryMax=64G: "]),
        ("MemoryMax=2G\nMemoryHigh=3G", ["/c:7: [Train a] MemoryHigh=3G: is above MemoryMax=2G"]),
        ("MemoryMax=200M", ["MemoryMax=200M: to import torch alone takes about 256 MiB; the service is killed before"]),
        ("MemoryHigh=1M", ["MemoryHigh=1M: to import torch alone takes about 256 MiB; the service is slowed down"]),
    ],
)
def test_a_memory_limit_that_does_not_do_what_it_seems_to_is_told(settings: str, words: list[str]) -> None:
    """More than there is, the two the wrong way round, and less than torch needs."""
    told = [w for w in plan_of(settings, make_host(memory_bytes=16 * 2**30)).warnings if "Memory" in w]
    assert len(told) == len(words) and all(word in warning for word, warning in zip(words, told, strict=True))


def test_what_no_kernel_starts_is_refused_before_it_is_a_unit() -> None:
    """Not with 203/EXEC at night; the message has the line and what to do."""
    with pytest.raises(PlacementError) as error:
        plan_of("Arguments=" + "1 " * 25_000)
    assert str(error.value) == (
        "/c:6: [Train a] Arguments=: it has 25,004 words, and systemd is too slow with more than 20,000; write it to a "
        "file and pass the file's name"
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("".join(f"Environment=A{n}=1\n" for n in range(6000)), "Environment=: it has 6,0"),
        ("Environment=" + " ".join(f"A{n}=1" for n in range(6000)), "Environment=: it has 6,0"),
        ("".join(f"ReadWritePaths=/a/{n}\n" for n in range(1001)), "ReadWritePaths=: it has 1,001 paths"),
        ("Service.ReadWritePaths=" + " ".join(f"/a/{n}" for n in range(1001)), "ReadWritePaths=: it has 1,001 paths"),
        ("Service.DeviceAllow=/dev/a rw\n" * 5001, "Service.DeviceAllow=: it has 5,001 lines"),
        ("Service.LimitSTACK=8M\nArguments=" + " ".join(["x" * 100_000] * 22), "the kernel takes 2,097,152"),
    ],
)
def test_what_systemd_reads_for_seconds_at_every_reload_is_refused(lines: str, words: str) -> None:
    """It does nothing else meanwhile, for no service of the host."""
    with pytest.raises(PlacementError, match=words):
        plan_of(lines)


def test_four_thousand_words_are_planned() -> None:
    """A job may be given its files by name."""
    words = [f"/data/shards/part-{number:06d}-of-004000.tar.zst.parquet.of.the.year" for number in range(4000)]
    assert plan_of(f"Arguments={' '.join(words)}").command[-4000:] == tuple(words)


def test_a_plan_is_the_same_from_exported_facts() -> None:
    """A fleet is planned on one laptop."""
    host = dataclasses.replace(TWO_NODES, gpus=(make_gpu(0, None),))
    exported = parse_facts(json.loads(json.dumps(facts_json(host))))
    assert exported == host
    assert plan_of("", exported).environment == plan_of("", host).environment


def test_the_plan_as_json_has_what_the_manual_promises() -> None:
    """Its shape is an interface."""
    config = parse_config([ConfFile("/c", "[Train a]\nScript=/a.py\n[Infer a]\nModel=/m.pt\n")], FOUR)
    plan: Plan = make_plan(config, FOUR)
    data = plan_json(plan)
    assert sorted(data) == ["host", "services", "unassigned_cpus", "version", "warnings"]
    assert [service["unit"] for service in data["services"]] == ["torchpar-infer@a.service", "torchpar-train@a.service"]
    train = data["services"][1]
    assert train["command"] == ["/usr/bin/python3", "/usr/lib/torchpar/run.py", "--", "/a.py"]
    assert train["ranks"][0] == {
        "local_rank": 0, "cpus": "1-3", "numa_nodes": "0", "threads": 3, "loader_workers": 0, "loader_cpus": "",
        "budget": 3, "gpus": [],
    }  # fmt: skip
    assert data["unassigned_cpus"] == "1-3" and data["host"]["left_out"] == {
        "0": "kept for the system ([Host] ReserveCores=)"
    }


def test_more_gpus_than_cores_are_no_ranks() -> None:
    """Ranks=gpu obeys the same rule: each rank needs a core."""
    host = make_host(cores_per_complex=1, gpu_nodes=(0, 0))
    with pytest.raises(PlacementError, match=r"Ranks=gpu: it has 1 cores \(0\), and each of 2 ranks needs one"):
        plan_of("Ranks=gpu", host)


def test_a_rank_of_several_gpus_has_those_of_its_own() -> None:
    """GPUsPerRank=2 on four GPUs of two nodes: two ranks, each with the two that are near to it."""
    host = make_host(packages=2, cores_per_complex=4, gpu_nodes=(0, 0, 1, 1))
    ranks = plan_of("Ranks=gpu\nGPUsPerRank=2", host).ranks
    assert [[gpu.numa_node for gpu in rank.gpus] for rank in ranks] == [[0, 0], [1, 1]]
    assert [str(rank.cpus) for rank in ranks] == ["0-3", "4-7"]


def test_what_the_conf_says_of_torch_reaches_the_job() -> None:
    """In the one variable that the runtime reads."""
    plan = plan_of("PrefetchFactor=7\nPinMemory=no\nCudnnBenchmark=no\nInteropThreads=3\nCheckpointGrace=9min")
    job = parse_job_environment(plan.environment)
    assert job and (job.prefetch_factor, job.pin_memory, job.cudnn_benchmark) == (7, False, False)
    assert (job.interop_threads, job.checkpoint_grace) == (3, 540)


ALL = "each rank has all of the service's CPUs"
SHARED = "; ranks 0-3 share CPUs with each other, and each keeps to its own number of threads"


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("auto", "exclusive: each rank has a share of its own: CPUs 0-1; 2-3; 4-5; 6-7"),
        ("exclusive", "each rank has a share of its own: CPUs 0-1; 2-3; 4-5; 6-7"),
        ("node", f"{ALL} on the NUMA node of its share: CPUs 0-3; 4-7{SHARED}"),
        ("socket", f"{ALL} in the package of its share: CPUs 0-7{SHARED}"),
        ("core-complex", f"{ALL} in the L3 group of its share: CPUs 0-1; 2-3; 4-5; 6-7"),
        ("none", f"no rank is bound; each has all of the service's CPUs: CPUs 0-7{SHARED}"),
    ],
)
def test_binding_is_explained_with_its_cpus_and_who_shares_them(binding: str, expected: str) -> None:
    """PyTorch's five meanings, on one package with two nodes of two L3 groups each."""
    host = make_host(nodes_per_package=2, complexes_per_node=2, cores_per_complex=2)
    assert why(plan_of(f"Ranks=4\nBinding={binding}", host), "Binding") == expected


def test_one_process_has_a_reason_for_its_binding_only_if_that_is_set() -> None:
    """There is nothing to bind it to but its service's CPUs."""
    assert "Binding" not in {reason.key for reason in plan_of("").reasons}
    assert why(plan_of("Binding=node"), "Binding").endswith(": CPUs 0-3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("Ranks=9", "/c:6: [Train a] Ranks=9: it has 4 cores (0-3), and each of 9 ranks needs one at least"),
        ("Ranks=gpu", "/c:6: [Train a] Ranks=gpu: it has 0 accelerators here and GPUsPerRank=1"),
        ("GPUs=2", "/c:6: [Train a] GPUs=2: of the 0 accelerators of this host 0 are free"),
        ("GPUs=0000:17:00.0", "/c:6: [Train a] GPUs=0000:17:00.0: no such accelerator on this host; it has: none"),
        ("CPUs=node:1", "/c:6: [Train a] CPUs=node:1: NUMA node 1 has no CPUs; those with CPUs are 0"),
        ("CPUs=node:7", "/c:6: [Train a] CPUs=node:7: NUMA node 7 does not exist on this host"),
        ("NUMAMask=7", "/c:6: [Train a] NUMAMask=7: node 7 is not there or not allowed"),
        ("CPUs=3-1", "/c:6: [Train a] CPUs=3-1: '3-1' is reversed"),
        ("CPUs=0-99999999", "/c:6: [Train a] CPUs=0-99999999: '0-99999999' is out of range"),
        ("CPUs=0-4000", "/c:6: [Train a] CPUs=0-4000: this host has no CPU 4-4000 (online: 0-3)"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_key_and_the_fact(settings: str, message: str) -> None:
    """File, line, section and key; what it clashes with; never a plan outside of the host."""
    host = dataclasses.replace(FOUR, numa_nodes=(*FOUR.numa_nodes, NumaNode(1, CpuSet(), 2**34)))
    with pytest.raises((PlacementError, ConfigError)) as error:
        plan_of(settings, host)
    assert message in str(error.value)


def test_hosts_that_train_together_agree_on_a_port_without_asking() -> None:
    """It follows from the service's name; an elastic job may begin again within one run."""
    job = parse_job_environment(plan_of("Nodes=2\nEndpoint=gpu1").environment)
    assert job and (job.nodes, job.endpoint, job.max_restarts) == ("2", "gpu1:28227", 0)
    elastic = plan_of("Nodes=2:4\nEndpoint=[2001:db8::1]:29500\nElastic=yes")
    job = parse_job_environment(elastic.environment)
    assert job and (job.nodes, job.endpoint, job.max_restarts) == ("2:4", "[2001:db8::1]:29500", 3)
    assert elastic.command[1] == "/usr/lib/torchpar/launch.py"
    assert why(elastic, "Endpoint") == "as asked for; 2:4 hosts meet there"

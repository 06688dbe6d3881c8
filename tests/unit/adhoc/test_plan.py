"""Ad-hoc jobs: which CPUs they get beside what is declared, and what their unit is told."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hosts import make_gpu, make_host, make_hybrid_host
from tests.unit.placement import test_properties as many
from torchpar.adhoc.plan import conf_of, inherited, job_name, own_problems, plan_job, replaced, take_job
from torchpar.adhoc.systemd_run import environment_file, make_command
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import ConfigError, PlacementError
from torchpar.facts.topology import CpuKind, HostFacts
from torchpar.plan.plan import ServicePlan
from torchpar.units.drop_ins import placement_settings

FOUR = make_host()


def planned(
    conf: str = "",
    *settings: tuple[str, str],
    facts: HostFacts = FOUR,
    running: tuple[str, ...] = (),
    used: str = "",
    used_gpus: tuple[str, ...] = (),
    arguments: tuple[str, ...] = (),
    own: HostFacts | None = None,
) -> ServicePlan:
    """The plan of an ad-hoc job beside a conf."""
    files = [ConfFile("/c", f"[Host]\nReserveCores=0\n{conf}"), conf_of(settings)]
    config, job = take_job(
        parse_config(files, facts), "x-1", script="x.py", module=None, arguments=arguments
    )
    return plan_job(config, job, facts, running=running, used=CpuSet.parse(used), used_gpus=used_gpus, own=own)


ONE = "[Train a]\nScript=/a.py\nEnabled=yes\nCPUs=1\n"
STARTED = "[Train b]\nScript=/b.py\n"


def test_a_job_gets_what_nobody_uses() -> None:
    """All of the host, without what enabled services hold and other ad-hoc jobs run on; threads follow."""
    assert str(planned().cpus) == "0-3"
    assert str(planned(ONE).cpus) == "1-3"
    assert str(planned(ONE, used="3").cpus) == "1-2"
    job = planned(ONE, ("CPUs", "1"), used="1-2")
    assert (str(job.cpus), job.ranks[0].threads, job.own, job.warnings) == ("3", 1, True, ())
    why = "no enabled service holds them and no other job runs on them: 1 core of one L3 group on NUMA node 0"
    assert job.reasons[0].why == why


def test_a_job_that_is_kept_to_a_part_of_the_host_leaves_the_services_where_they_are() -> None:
    """By taskset or in a container: they are not squeezed into the part, which they may not fit."""
    two = "[Train a]\nScript=/a.py\nEnabled=yes\nCPUs=2\n"
    job = planned(two, own=dataclasses.replace(FOUR, allowed_cpus=CpuSet.parse("1-2")))
    assert (str(job.cpus), job.own) == ("2", True)
    job = planned(two, own=dataclasses.replace(FOUR, allowed_cpus=CpuSet.parse("1")))
    assert str(job.cpus) == "1" and "shares CPUs with torchpar-train@a.service" in job.warnings[0]


@pytest.mark.parametrize(
    ("settings", "used", "ranks"),
    [
        ((), "0-2", ["4-7"]),
        ((), "0-1", ["2-3", "4-6"]),
        ((("CPUs", "4"),), "0", ["4-7"]),
        ((("CPUs", "3-7"),), "", ["3", "4-7"]),
    ],
)
def test_the_ranks_of_nodes_are_equal_in_what_is_left(
    settings: tuple[tuple[str, str], ...], used: str, ranks: list[str]
) -> None:
    """As for a service; a job that names its CPUs has a rank for each of their nodes."""
    host = make_host(packages=2, cores_per_complex=4)
    job = planned("", ("Ranks", "numa"), *settings, facts=host, used=used)
    assert [str(rank.cpus) for rank in job.ranks] == ranks


def test_a_declared_service_counts_only_where_it_is_enabled_or_runs() -> None:
    """One that holds nothing and does not run takes nothing from a job."""
    assert planned(STARTED).own and str(planned(STARTED).cpus) == "0-3"
    shared = planned(STARTED, running=("torchpar-train@b.service",))
    assert not shared.own and shared.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert shared.warnings == (
        "no core is left, so this job shares CPUs with torchpar-train@b.service; all of them will be slower",
    )


def test_a_slot_keeps_what_its_largest_service_needs() -> None:
    """Also where that one is not enabled and does not run: its turn may come while the job computes."""
    slot = "[Train a]\nScript=/a.py\nEnabled=yes\nCPUs=1\nSlot=s\n[Train b]\nScript=/b.py\nCPUs=3\nSlot=s\n"
    assert str(planned(slot).cpus) == "3" and planned(slot).own


def test_a_job_shares_where_its_ranks_are_more_than_the_cores_that_nobody_uses() -> None:
    """Each rank has a core at least."""
    job = planned(ONE, ("Ranks", "2"), used="2-3")
    assert [str(rank.cpus) for rank in job.ranks] == ["1-2", "3"] and not job.own
    assert job.warnings[0] == (
        "1 of 4 cores is left, so this job shares CPUs with other ad-hoc jobs; all of them will be slower"
    )


@pytest.mark.parametrize(
    ("conf", "settings", "used", "cpus", "who"),
    [
        ("", (), "0-3", "0-3", "no core is left, so this job shares CPUs with other ad-hoc jobs"),
        (ONE, (("CPUs", "2"),), "1-2", "1,3", "1 of 4 cores is left, so this job shares CPUs with other ad-hoc jobs"),
        ("[Train a]\nScript=/a.py\nEnabled=yes\n", (), "", "0-3", "shares CPUs with torchpar-train@a.service"),
    ],
)
def test_where_nothing_is_left_a_job_shares_and_says_with_whom(
    conf: str, settings: tuple[tuple[str, str], ...], used: str, cpus: str, who: str
) -> None:
    """It runs, slower, and sleeps between operations; enabled services' CPUs come last."""
    job = planned(conf, *settings, used=used)
    assert str(job.cpus) == cpus and who in job.warnings[0]
    assert not job.own and job.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    number = f"{job.cores} cores of one L3 group on NUMA node 0"
    assert job.reasons[0].why == f"others run on some of them, as too few are left: {number}"


@pytest.mark.parametrize(
    ("conf", "gpus", "used", "expected", "warning"),
    [
        ("", "auto", (), "0 1", ""),
        ("", "auto", (0,), "1", ""),
        ("", "1", (0,), "1", ""),
        ("", "auto", (0, 1), "", "other jobs compute on 0000:10:00.0 0000:11:00.0; --gpus 1 shares one"),
        ("", "2", (1,), "0 1", "this job shares accelerators with other jobs: 0000:11:00.0; all of them"),
        ("", "0000:10:00.0", (0,), "0", "this job shares accelerators with other jobs: 0000:10:00.0"),
        ("", "none", (0, 1), "", ""),
        (f"{STARTED}GPUs=1\n", "auto", (), "1", ""),
        (f"{ONE}GPUs=1\n", "auto", (1,), "", "no accelerator is left for it, other jobs compute on 0000:11:00.0"),
        (f"{ONE}GPUs=1\n", "1", (), "1", ""),
    ],
)
def test_a_job_keeps_away_from_accelerators_that_others_compute_on(
    conf: str, gpus: str, used: tuple[int, ...], expected: str, warning: str
) -> None:
    """Two jobs on one GPU are slow, or one of them has no memory there; who asks for it gets it, with a warning."""
    running = ("torchpar-train@b.service",)
    names = tuple(f"0000:{0x10 + number:02x}:00.0" for number in used)
    job = planned(
        conf, ("CPUs", "1"), ("GPUs", gpus), facts=make_host(gpu_nodes=(0, 0)), running=running, used_gpus=names
    )
    assert " ".join(str(int(gpu.pci[5:7]) - 10) for gpu in job.gpus) == expected
    told = [text for text in job.warnings if "accelerator" in text]
    assert (len(told) == 1 and warning in told[0]) if warning else told == []


@pytest.mark.parametrize(
    ("conf", "settings_", "facts", "cpus", "why", "warnings"),
    [
        (
            "ReserveCores=auto\n",
            (("CPUs", "4"),),
            FOUR,
            "0-3",
            "no enabled service holds them and no other job runs on them: 4 cores",
            ["run: this job CPUs=4: CPUs 0 are kept for the system, but it needs 4 cores"],
        ),
        (
            "",
            (("CPUs", "4"),),
            make_host(cpu_limit=2.0),
            "0-3",
            "no enabled service holds them and no other job runs on them: 4 cores",
            ["run: this job CPUs=4: CPUs 2-3 are beyond the CPU quota of 2 CPUs, but it needs 4 cores"],
        ),
        (
            "[Train a]\nScript=/a.py\nEnabled=yes\n",
            (),
            make_hybrid_host(),
            "8-11",
            "no enabled service holds them and no other job runs on them, and too few faster ones are left: 4 cores",
            ["run: this job CPUs=auto: all of its cores are slower (0.50 of the fastest), as no others are left"],
        ),
    ],
    ids=["kept for the system", "beyond a quota", "slower ones"],
)
def test_a_job_that_gets_cores_which_were_kept_back_shares_them_with_nobody(  # noqa: PLR0913 - a column of the table each
    conf: str, settings_: tuple[tuple[str, str], ...], facts: HostFacts, cpus: str, why: str, warnings: list[str]
) -> None:
    """It is not told of others that are not there, and spins as alone."""
    job = planned(conf, *settings_, facts=facts)
    assert (str(job.cpus), job.own, list(job.warnings)) == (cpus, True, warnings)
    assert job.reasons[0].why.startswith(why)


@given(
    many.hosts(),
    st.lists(st.sampled_from([{"Enabled": "yes", "CPUs": "1"}, {"Enabled": "yes"}, {}]), max_size=2) | many.SERVICES,
    st.fixed_dictionaries(
        {},
        optional={
            "CPUs": st.sampled_from(["auto", "1", "2", "3", "5", "shared", "0-1"]),
            "Ranks": st.sampled_from(["2", "3", "numa"]),
            "GPUs": st.sampled_from(["auto", "none", "1", "2"]),
        },
    ),
    st.just(set()) | st.sets(st.integers(0, 12), max_size=8),
    st.sets(st.integers(0, 5)),
)
def test_what_a_job_is_told_is_so(
    host: HostFacts, services: list[dict[str, str]], asked: dict[str, str], used: set[int], running: set[int]
) -> None:
    """On any host beside any conf: who shares CPUs or accelerators is told, and who is told so does share them."""
    busy = tuple(gpu.name for number, gpu in enumerate(host.accelerators()) if number in running)
    units = [f"torchpar-{kind}@s{number}.service" for number in running for kind in ("train", "infer")]
    try:
        job = planned(
            f"ReserveCores=auto\n{many.conf_of(services)}",
            *asked.items(),
            facts=host,
            running=tuple(units),
            used=str(CpuSet(used)),
            used_gpus=busy,
        )
    except PlacementError:
        return
    told = [warning for warning in job.warnings if "shares CPUs" in warning]
    assert not any(re.search(r"(with|and) ?;|with and", warning) for warning in told)
    assert len(told) <= 1 and not (told and job.own)
    if asked.get("CPUs") not in ("shared", "0-1") and not job.cpus.isdisjoint(CpuSet(used)):
        assert "other ad-hoc jobs" in told[0] and not job.own
    names = [warning for warning in job.warnings if "shares accelerators with" in warning]
    assert all(any(gpu.name in text for text in names) == (gpu.name in busy) for gpu in job.gpus)
    if asked.get("CPUs", "auto").isdigit() and job.cores != int(asked["CPUs"]):
        assert any(f"of its {asked['CPUs']} cores" in warning for warning in job.warnings)


@pytest.mark.parametrize(
    ("conf", "asked", "used", "cpus", "warnings"),
    [
        ("CPUs=3", "3", "", "0-3", ["1 of 4 faster cores is left, so this job shares CPUs with torchpar-train@a"]),
        ("CPUs=4", "2", "", "4-5", ["all of its cores are slower (0.30 of the fastest), as no others are left"]),
        ("CPUs=4", "2", "4", "0-3", ["no faster core is left, so this job shares CPUs with torchpar-train@a.service;"]),
        (
            "CPUs=4",
            "5",
            "",
            "0-3",
            [
                "no faster core is left, so this job shares CPUs with torchpar-train@a.service",
                "1 of its 5 cores is so slow that it is faster without; it computes on the 4 others",
            ],
        ),
    ],
)
def test_a_job_gets_as_many_cores_as_it_asks_for_or_is_told(
    conf: str, asked: str, used: str, cpus: str, warnings: list[str]
) -> None:
    """Slower ones are no part of its number where faster ones would wait for them."""
    host = make_host(
        cores_per_complex=6,
        cpu_kinds=(CpuKind(CpuSet.parse("4-5"), 0, 0.3), CpuKind(CpuSet.parse("0-3"), 1, 1.0)),
    )
    job = planned(f"[Train a]\nScript=/a.py\nEnabled=yes\n{conf}\n", ("CPUs", asked), facts=host, used=used)
    assert job.cpus <= CpuSet.parse(cpus) and job.cores in (int(asked), len(CpuSet.parse(cpus)))
    assert all(told in warning for told, warning in zip(warnings, job.warnings, strict=True))


@pytest.mark.parametrize(
    ("facts", "asked", "used", "cpus"),
    [
        (make_host(complexes_per_node=2), "3", "0-3,6-7", "4-6"),
        (make_host(complexes_per_node=2), "3", "0-5", "4,6-7"),
        (make_host(packages=2), "4", "0-2,4-5", "4-7"),
        (make_host(packages=2), "3", "0-2,4-6", "0-1,3"),
        (make_host(packages=2), "5", "0-6", "0,4-7"),
        (make_host(), "4", "0-3", "0-3"),
    ],
)
def test_a_job_that_has_to_share_shares_no_more_than_it_must(
    facts: HostFacts, asked: str, used: str, cpus: str
) -> None:
    """What is left is among its cores, as far as they then lie no worse together."""
    job = planned("", ("CPUs", asked), facts=facts, used=used)
    assert str(job.cpus) == cpus and "shares CPUs with other ad-hoc jobs" in job.warnings[0]


def test_the_cores_of_enabled_services_are_shared_last() -> None:
    """After those of other jobs; so it is for a service that is not enabled."""
    job = planned(ONE, ("CPUs", "4"), facts=make_host(cores_per_complex=6), used="1-4")
    assert job.cores == 4 and 5 in job.cpus and 0 not in job.cpus
    two = "[Train a]\nScript=/a.py\nEnabled=yes\nCPUs=0-1\n"
    job = planned(two, ("CPUs", "3"), used="2")
    assert CpuSet.parse("2-3") <= job.cpus


@given(
    st.builds(
        make_host,
        complexes_per_node=st.integers(1, 3),
        cores_per_complex=st.integers(1, 5),
        gpu_nodes=st.just((0, 0, None)),
    ),
    st.sampled_from(["", f"{ONE}GPUs=none\n", f"{ONE}GPUs=1\n"]),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sets(st.integers(0, 14)),
    st.sets(st.integers(0, 2)),
)
def test_on_one_node_nothing_is_shared_while_something_is_left(  # noqa: PLR0913 - a value of the host or job each
    facts: HostFacts, conf: str, cores: int, gpus: int, used: set[int], used_gpus: set[int]
) -> None:
    """Neither cores nor accelerators."""
    names = [gpu.name for gpu in facts.accelerators()]
    busy = {names[number] for number in used_gpus}
    try:
        job = planned(
            conf,
            ("CPUs", str(cores)),
            ("GPUs", str(gpus)),
            facts=facts,
            used=str(CpuSet(used)),
            used_gpus=tuple(busy),
        )
    except PlacementError:
        return
    held = CpuSet([0] if conf else []) | CpuSet(used)
    taken = busy | set(names[:1] if "GPUs=1" in conf else [])
    assert len(job.cpus & held) == max(0, cores - len(facts.online_cpus - held))
    assert sum(gpu.name in taken for gpu in job.gpus) == max(0, gpus - len(set(names) - taken))


@pytest.mark.parametrize(
    ("used", "expected"),
    [((0, 1, 2), (2, 3)), ((0, 2, 3), (0, 1)), ((1, 2, 3), (0, 1)), ((0, 1, 3), (2, 3))],
)
def test_an_accelerator_that_has_to_be_shared_is_near_the_one_that_is_left(
    used: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """One of two is left, and the other is of the same node."""
    host = make_host(packages=2, gpu_nodes=(0, 0, 1, 1))
    names = [gpu.name for gpu in host.accelerators()]
    job = planned("", ("CPUs", "1"), ("GPUs", "2"), facts=host, used_gpus=tuple(names[number] for number in used))
    assert [names.index(gpu.name) for gpu in job.gpus] == list(expected)


PARTS = dataclasses.replace(
    make_host(),
    gpus=tuple(
        dataclasses.replace(make_gpu(number, 0), uuid=f"GPU-{number}", mig_instances=parts)
        for number, parts in enumerate([(), ("1/0", "2/0")])
    ),
)
WHOLE, FIRST, SECOND = "0000:10:00.0", "MIG-GPU-1/1/0", "MIG-GPU-1/2/0"


@pytest.mark.parametrize(
    ("gpus", "used", "expected", "warnings"),
    [
        ("auto", "", [FIRST], []),
        ("auto", FIRST, [SECOND], []),
        ("1", FIRST, [SECOND], []),
        ("2", FIRST, [FIRST, SECOND], ["shares accelerators with other jobs: MIG-GPU-1/1/0;", "MIG instances among"]),
        ("3", FIRST, [WHOLE, FIRST, SECOND], [f"{WHOLE} is held by [Train a]", f"with other jobs: {FIRST};", "MIG"]),
        (WHOLE, WHOLE, [WHOLE], [f"{WHOLE} is held by [Train a]", f"shares accelerators with other jobs: {WHOLE};"]),
    ],
)
def test_an_instance_that_an_enabled_service_has_no_use_for_is_free(
    gpus: str, used: str, expected: list[str], warnings: list[str]
) -> None:
    """The service with CPUs=1 has the whole GPU, and CUDA would show it no instance besides. Who computes on what a job
    gets is told, whoever holds it."""
    job = planned(ONE, ("CPUs", "1"), ("GPUs", gpus), facts=PARTS, used_gpus=tuple(used.split()))
    assert [gpu.name for gpu in job.gpus] == expected
    assert all(told in warning for told, warning in zip(warnings, job.warnings, strict=True))


def test_a_job_does_not_move_what_is_declared() -> None:
    """What it names may be others': it is told so, and they keep what they have."""
    job = planned(ONE, ("CPUs", "0-1"))
    assert str(job.cpus) == "0-1"
    (warning,) = job.warnings
    assert warning == "run: this job CPUs=0-1: CPU 0 is held by [Train a], which is enabled; both will be slower"


def test_what_a_host_does_not_have_is_refused() -> None:
    """With the number that is there."""
    why = r"^run: this job CPUs=9: it asks for 9 cores, but 4 of the 4 usable cores are left; --cpus 4 for this job"
    with pytest.raises(PlacementError, match=why):
        planned("", ("CPUs", "9"))
    with pytest.raises(PlacementError, match=r"; --ranks 4 for this job would fit$"):
        planned("", ("Ranks", "9"))


def test_defaults_come_from_train_and_the_command_line_wins() -> None:
    """But a job never is a part of the boot, nor of a slot, and waits for no other host."""
    defaults = "[Train]\nThreads=2\nPython=/v/python\nEnabled=yes\nSlot=s\nAllocator=glibc\nNodes=2\nEndpoint=gpu1\n"
    job = planned(defaults, ("Threads", "1"))
    settings = job.service.settings
    assert (settings.threads, settings.python, settings.enabled, settings.slot) == (1, "/v/python", False, None)
    assert job.command == ("/v/python", "/usr/lib/torchpar/run.py", "--", "x.py") and job.allocator == "glibc"


def test_a_mistake_on_the_command_line_is_named_without_a_line_number() -> None:
    """There is no file to open."""
    with pytest.raises(ConfigError) as error:
        parse_config([conf_of([("CPUs", "x")])], FOUR)
    (problem,) = own_problems(error.value.found)
    assert problem.startswith("CPUs=x: 'x' is not a CPU number")
    with pytest.raises(ConfigError) as error:
        parse_config([conf_of([("Thread", "1")])], FOUR)
    assert own_problems(error.value.found) == ("Thread=1: unknown key; did you mean Threads?",)
    with pytest.raises(ConfigError, match="must be one line"):
        conf_of([("Threads", "1\n[Host]")])


@pytest.mark.parametrize(
    ("what", "name"), [("/srv/a b/train it.py", "train-it-7"), ("pkg.train", "pkg.train-7"), ("é.py", "job-7")]
)
def test_a_unit_is_named_after_its_script(what: str, name: str) -> None:
    """Whatever the script is called, the name is one that systemd takes."""
    assert job_name(what, 7) == name


def test_the_unit_is_placed_as_a_drop_in_would_place_it() -> None:
    """The same settings with the same values; `$` in arguments stays what it is."""
    job = planned("[Train]\nMemoryMax=2G\nService.DeviceAllow=a rw\nService.DeviceAllow=b rw\n", arguments=("$HOME",))
    argv = make_command(job, unit=job.unit, user="ml", directory="/home/ml", environment_file="/run/e")
    properties = [word.removeprefix("--property=") for word in argv if word.startswith("--property=")]
    for key, value in placement_settings(job):
        assert not value or f"{key}={value}" in properties
    assert {"MemoryMax=2G", "EnvironmentFile=-/run/e"} <= set(properties)
    # It is asked to save as a declared one is.
    asked = {"RuntimeDirectory=torchpar-jobs/torchpar-run-x-1", "ExecStop=:/usr/lib/torchpar/stop 120"}
    assert asked | {"TimeoutStopSec=135s"} <= set(properties)
    assert [p for p in properties if p.startswith("DeviceAllow")] == ["DeviceAllow=a rw", "DeviceAllow=b rw"]
    assert {"--uid=ml", "--working-directory=/home/ml", "--unit=torchpar-run-x-1.service"} <= set(argv)
    assert {f"--setenv={name}={value}" for name, value in job.environment.items()} <= set(argv)
    assert argv[argv.index("--") + 1 :] == ("/usr/bin/python3", "/usr/lib/torchpar/run.py", "--", "x.py", "$$HOME")


def test_a_job_inherits_the_shells_environment_but_not_its_state() -> None:
    """What is planned is not in it, nor what belongs to the caller's service or home."""
    environ = {"PATH": "/bin", "KEY": "s", "HOME": "/root", "OMP_NUM_THREADS": "1", "SUDO_USER": "a", "_": "x"}
    planned_variables = {"OMP_NUM_THREADS": "4"}
    assert inherited(environ, planned_variables, same_user=False) == {"PATH": "/bin", "KEY": "s"}
    assert inherited(environ, planned_variables, same_user=True)["HOME"] == "/root"
    assert replaced(environ, planned_variables) == (
        "OMP_NUM_THREADS=1 in the environment is replaced by 4; to keep it: --set Environment=OMP_NUM_THREADS=1",
    )


def test_an_environment_file_holds_any_value_that_systemd_takes() -> None:
    """systemd.exec(5), EnvironmentFile=: in double quotes, with a backslash before four characters."""
    text = environment_file({"A": 'a "b" $c `d` \\e\nf', "BASH_FUNC_x%%": "() {}", "BAD": "\udc80", "BELL": "\a"})
    assert text == 'A="a \\"b\\" \\$c \\`d\\` \\\\e\nf"\n'
    assert re.sub(r'\\([\\"`$])', r"\1", text[3:-2]) == 'a "b" $c `d` \\e\nf'

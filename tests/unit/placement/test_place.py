"""Cores to services: the rules of placement on hosts of every shape."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.hosts import make_gpu, make_host, make_hybrid_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.facts.topology import CpuKind, HostFacts, NumaNode
from torchpar.placement.place import Placement, place
from torchpar.plan.plan import make_plan


def place_text(text: str, facts: HostFacts) -> Placement:
    """Places the services of such a conf."""
    return place(parse_config([ConfFile("/c", conf_text(text))], facts), facts)


def conf_text(text: str) -> str:
    """The conf that a short text stands for: "a CPUs=2 Enabled=yes" is a section of a training service."""
    lines = []
    for line in text.strip().splitlines():
        name, *settings = line.split()
        if name == "Host":
            lines += ["[Host]", *settings]
        else:
            lines += [f"[Train {name}]", f"Script=/{name}.py", *settings]
    return "\n".join(lines)


def cpus(text: str, facts: HostFacts) -> dict[str, str]:
    """The CPUs of each service, by name."""
    shares = place_text(text, facts).shares
    return {unit.removeprefix("torchpar-train@").removesuffix(".service"): str(s.cpus) for unit, s in shares.items()}


def refused(text: str, facts: HostFacts) -> str:
    """The message of what does not fit."""
    with pytest.raises(PlacementError) as error:
        make_plan(parse_config([ConfFile("/c", conf_text(text))], facts), facts)
    return str(error.value)


SMALL = make_host(cores_per_complex=2)
TWO_NODES = make_host(packages=2, complexes_per_node=2, cores_per_complex=4, smt=2)  # 16 cores, 32 CPUs


def test_one_enabled_service_has_the_machine() -> None:
    """Nothing is left idle, and nothing reserved on a small host."""
    assert cpus("a Enabled=yes", SMALL) == {"a": "0-1"}


def test_two_enabled_services_share_no_core() -> None:
    """SMT siblings stay together, so no core is split."""
    shares = cpus("a Enabled=yes\nb Enabled=yes", make_host(cores_per_complex=2, smt=2))
    assert shares == {"a": "0,2", "b": "1,3"}


def test_auto_services_share_by_weight_with_the_largest_remainder() -> None:
    """Three of four cores for weight 300."""
    assert cpus("Host ReserveCores=0\na Enabled=yes Weight=300\nb Enabled=yes", make_host()) == {"a": "0-2", "b": "3"}


def test_every_enabled_auto_service_gets_a_core_however_small_its_weight() -> None:
    """A weight of 1 beside 10000 still runs."""
    assert cpus("Host ReserveCores=0\na Enabled=yes Weight=10000\nb Enabled=yes Weight=1", make_host())["b"] == "3"


def test_more_enabled_services_than_cores_is_refused_by_name() -> None:
    """The message says who asked and where."""
    message = refused("a Enabled=yes\nb Enabled=yes\nc Enabled=yes", SMALL)
    assert message.startswith("/c:7: [Train c] CPUs=auto: it asks for 1 core, but 0 of the 2 usable cores are left")


@pytest.mark.parametrize("asked", ["CPUs=3", "Ranks=3"])
def test_one_job_alone_that_asks_for_more_than_the_quota_is_not_told_of_others(asked: str) -> None:
    """There is none that could be switched off."""
    host = make_host(cores_per_complex=8, cpu_limit=2.0)
    assert place_text(f"a {asked} Enabled=yes", host).usable.warnings == (
        "CPUs 3 are beyond the CPU quota of 2 CPUs, but [Train a] asks for so many by CPUs= or Ranks=; it may be as "
        "fast with fewer",
    )


@pytest.mark.parametrize("ranks", ["CPUs=1\nb Slot=s Ranks=3", "Ranks=3\nb Slot=s CPUs=1"])
def test_a_slot_has_room_for_the_ranks_of_each_of_its_services(ranks: str) -> None:
    """A number of cores in one section and ranks in another: the more of both."""
    host = make_host()
    config = conf_text(f"Host ReserveCores=0\na Slot=s {ranks}\nc Slot=t CPUs=1".replace("Slot", "Enabled=yes Slot"))
    plan = make_plan(parse_config([ConfFile("/c", config)], host), host)
    assert [service.cores for service in plan.services] == [3, 3, 1]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("a CPUs=3\nb CPUs=2", "CPUs=1 for [Train b] would fit"),
        ("a CPUs=3\nb CPUs=1\nc", "CPUs=2 for [Train a] would fit"),
        ("a CPUs=3\nb CPUs=3\nc", "Enabled=no or CPUs=shared for [Train b] would fit"),
        ("a\nb\nc\nd\ne", "Enabled=no or CPUs=shared for [Train e] would fit"),
        ("a CPUs=900", "CPUs=4 for [Train a] would fit"),
        ("a CPUs=0-3\nb CPUs=900", "CPUs=shared for [Train b] would fit"),
        ("a Ranks=4\nb Ranks=2", "Ranks=2 for [Train a] would fit"),
        ("a CPUs=2\nb Ranks=2\nc", "Ranks=1 for [Train b] would fit"),
        ("a CPUs=4 Ranks=5", "Ranks=4 for [Train a] would fit"),
        ("a CPUs=shared Ranks=5", "Ranks=4 for [Train a] would fit"),
        ("a CPUs=900\nb CPUs=900", "CPUs=1 for [Train a] and CPUs=3 for [Train b] would fit"),
        ("a\nb\nc\nd\ne\nf", "Enabled=no for [Train e] and Enabled=no or CPUs=shared for [Train f] would fit"),
        (
            "\n".join("abcdefghi"),
            "CPUs=shared for [Train a] and [Train b] and [Train c] and [Train d] and [Train e] would fit",
        ),
        ("a\nb\nc CPUs=9 Ranks=9\nd CPUs=9 Ranks=9\ne", "CPUs=shared Ranks=1 for [Train c] and [Train d] would fit"),
        ("\n".join("abcdefghijklm"), "CPUs=shared for 9 of the enabled services with CPUs=auto would fit"),
    ],
)
def test_a_refusal_names_the_smallest_change_that_fits(text: str, change: str) -> None:
    """By name, on four cores."""
    enabled = "\n".join(f"{line} Enabled=yes" for line in text.splitlines())
    message = refused(enabled, make_host())
    assert message.endswith(f"; {change}")


@pytest.mark.parametrize(
    ("text", "expected", "told"),
    [
        ("a CPUs=shared\nb CPUs=shared", "0-1 0-1", None),
        ("a CPUs=1\nb CPUs=shared\nc CPUs=shared", "0 1 1", "[Train b] and [Train c] have CPUs=shared and 1 core"),
        ("a CPUs=shared\nb CPUs=shared\nc CPUs=shared", "0-1 0-1 0-1", "[Train a], [Train b] and [Train c] have CPUs="),
        ("a CPUs=shared\nb CPUs=shared Slot=s\nc CPUs=shared Slot=s", "0-1 0-1 0-1", None),
        ("a CPUs=shared\nb CPUs=shared Ranks=2", "0-1 0-1", "[Train a] and [Train b] have CPUs=shared and 2 cores"),
        ("b CPUs=shared Ranks=2", "0-1", None),
    ],
)
def test_services_that_are_more_than_the_cores_that_they_share_are_told(
    text: str, expected: str, told: str | None
) -> None:
    """Once, though each of them knows it; the conf says that they share."""
    host = make_host(cores_per_complex=2)
    enabled = "\n".join(f"{line} Enabled=yes" for line in text.splitlines())
    plan = make_plan(parse_config([ConfFile("/c", conf_text(enabled))], host), host)
    assert " ".join(str(service.cpus) for service in plan.services) == expected
    assert [warning.startswith(told or "-") for warning in plan.warnings] == ([True] if told else [])
    assert all(told in "".join(one.warnings) for one in plan.services if told and one.service.section in told)


def test_a_service_that_is_not_enabled_shares_no_more_than_it_must() -> None:
    """What the enabled ones leave is among its cores."""
    assert cpus("a Enabled=yes CPUs=0-1\nb CPUs=3", make_host()) == {"a": "0-1", "b": "1-3"}
    assert cpus("a Enabled=yes CPUs=0-3\nb CPUs=3", make_host(complexes_per_node=2, cores_per_complex=3))["b"] == "3-5"
    assert cpus("a Enabled=yes CPUs=0-3\nb CPUs=4", make_host(packages=2, cores_per_complex=3))["b"] == "1,3-5"


def test_a_service_that_is_not_enabled_gets_what_the_enabled_leave() -> None:
    """Ten jobs that are run one at a time do not shrink each other."""
    text = "Host ReserveCores=0\na CPUs=2 Enabled=yes\nb\nc"
    assert cpus(text, make_host()) == {"a": "0-1", "b": "2-3", "c": "2-3"}


def test_a_guest_shares_with_a_warning_when_nothing_is_left() -> None:
    """It can be started, but not in silence."""
    share = place_text("a Enabled=yes\nb", SMALL).shares["torchpar-train@b.service"]
    assert str(share.cpus) == "0-1" and not share.own
    assert "both will be slower" in share.warnings[0]


@pytest.mark.parametrize("keys", ["Ranks=4", "CPUs=4"])
def test_a_guest_has_the_cores_that_it_cannot_do_without(keys: str) -> None:
    """As an enabled service would; it is told whose they are, and not that it shares them where nobody has them."""
    share = place_text(f"x {keys}", make_host()).shares["torchpar-train@x.service"]
    assert str(share.cpus) == "0-3"
    (warning,) = share.warnings
    assert warning.endswith(": CPUs 0 are kept for the system, but it needs 4 cores")
    assert share.reasons[0].why.startswith("not enabled, so it holds nothing")


def test_the_ranks_of_a_guest_share_cores_rather_than_be_refused() -> None:
    """With those of the pool; the system keeps its own."""
    share = place_text("a Enabled=yes CPUs=2\nx Ranks=3", make_host()).shares["torchpar-train@x.service"]
    assert str(share.cpus) == "1-3" and "shares CPUs with them" in share.warnings[0]


def test_shared_services_get_what_no_enabled_service_holds() -> None:
    """And never CPUs of their own."""
    placement = place_text("Host ReserveCores=0\na CPUs=3 Enabled=yes\nb CPUs=shared Enabled=yes", make_host())
    assert str(placement.shares["torchpar-train@b.service"].cpus) == "3"
    assert not placement.shares["torchpar-train@b.service"].own


def test_cpus_are_a_services_own_unless_another_may_run_there() -> None:
    """A shared service that is not enabled is a guest and yields."""
    alone = place_text("a\nb CPUs=shared", SMALL).shares["torchpar-train@a.service"]
    beside = place_text("a\nb", SMALL).shares["torchpar-train@a.service"]
    assert alone.own and not beside.own


def test_an_enabled_service_owns_its_cpus_whoever_else_is_declared() -> None:
    """A job that is started by hand beside it is warned of, and does not slow it down before."""
    shares = place_text("a Enabled=yes\nb\nc CPUs=shared", SMALL).shares.values()
    assert [share.own for share in shares] == [True, False, False]
    shares = place_text("a Enabled=yes CPUs=0-1\nc CPUs=shared Enabled=yes", SMALL).shares.values()
    assert [share.own for share in shares] == [False, False]


def test_counts_take_a_whole_node_before_anything_else() -> None:
    """Eight cores are one node, not halves of two."""
    assert cpus("Host ReserveCores=0\na CPUs=8 Enabled=yes", TWO_NODES) == {"a": "0-7,16-23"}


def test_counts_take_a_whole_core_complex_before_parts() -> None:
    """Four cores share an L3."""
    text = "Host ReserveCores=0\na CPUs=2 Enabled=yes\nb CPUs=4 Enabled=yes"
    assert cpus(text, TWO_NODES) == {"b": "0-3,16-19", "a": "4-5,20-21"}


def test_the_place_with_the_fewest_leftovers_is_taken() -> None:
    """Two cores go where three are free rather than break a whole group."""
    text = "Host ReserveCores=0\nx CPUs=0,16 Enabled=yes\na CPUs=2 Enabled=yes"
    assert cpus(text, TWO_NODES)["a"] == "1-2,17-18"


def test_more_than_a_node_takes_the_nearest_node_for_the_rest() -> None:
    """Ten cores are a node and two cores of one group of the next."""
    text = "Host ReserveCores=0\na CPUs=10 Enabled=yes"
    assert cpus(text, TWO_NODES) == {"a": "0-9,16-25"}


def test_cores_are_near_the_services_gpus() -> None:
    """A GPU on node 1 draws its service there."""
    host = dataclasses.replace(TWO_NODES, gpus=(make_gpu(0, 1),))
    assert cpus("Host ReserveCores=0\na CPUs=4 GPUs=1 Enabled=yes", host) == {"a": "8-11,24-27"}


def test_gpus_are_shared_out_by_weight_like_cores() -> None:
    """No accelerator has two owners."""
    host = dataclasses.replace(TWO_NODES, gpus=tuple(make_gpu(i, i // 2) for i in range(4)))
    shares = place_text("a Enabled=yes Weight=300\nb Enabled=yes", host).shares.values()
    assert [[gpu.pci for gpu in share.gpus] for share in shares] == [
        ["0000:10:00.0", "0000:11:00.0", "0000:12:00.0"],
        ["0000:13:00.0"],
    ]


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    """The key and the fact it clashes with."""
    host = dataclasses.replace(SMALL, gpus=(make_gpu(0, 0),))
    message = refused("a GPUs=0000:99:00.0", host)
    assert message == "/c:3: [Train a] GPUs=0000:99:00.0: no such accelerator on this host; it has: 0000:10:00.0"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("0-9", "this host has no CPU 2-9 (online: 0-1)"),
        ("node:4", "NUMA node 4 does not exist on this host; those with CPUs are 0"),
        ("package:7", "package 7 does not exist on this host; those with CPUs are 0"),
        ("9", "it asks for 9 cores, but 2 of the 2 usable cores are left"),
    ],
)
def test_what_the_host_does_not_have_is_refused_with_what_it_has(request_: str, message: str) -> None:
    """Enabled or not: it cannot be started as asked for."""
    for enabled in ("yes", "no"):
        assert message in refused(f"a CPUs={request_} Enabled={enabled}", SMALL)


def test_an_offline_cpu_is_called_offline() -> None:
    """It exists, so the admin can bring it online."""
    host = make_host(
        cores_per_complex=2, cores=(CpuSet([0]),), online_cpus=CpuSet([0]), allowed_cpus=CpuSet([0]),
        offline_cpus=CpuSet([1]),
    )  # fmt: skip
    assert "CPU 1 is offline" in refused("a CPUs=0-1", host)


def test_two_enabled_lists_may_not_overlap() -> None:
    """Both are named, with the CPU they quarrel over."""
    message = refused("a CPUs=0-1 Enabled=yes\nb CPUs=1 Enabled=yes".replace("CPUs=1 ", "CPUs=1-1 "), SMALL)
    assert "CPU 1 is also named by /c:3: [Train a] CPUs=0-1" in message


def test_services_of_a_slot_share_their_cpus_and_are_each_others_own() -> None:
    """They take turns, so neither disturbs the other."""
    placement = place_text("Host ReserveCores=0\na Slot=s Enabled=yes CPUs=2\nb Slot=s\nc Enabled=yes", make_host())
    shares = {unit[15:16]: share for unit, share in placement.shares.items()}
    assert str(shares["a"].cpus) == str(shares["b"].cpus) == "0-1"
    assert shares["a"].own and shares["b"].own and str(shares["c"].cpus) == "2-3"


def test_a_hybrid_host_computes_on_performance_cores() -> None:
    """One slow thread would hold up every parallel region."""
    host = make_hybrid_host()
    placement = place_text("a Enabled=yes\nb CPUs=shared", host)
    assert str(placement.shares["torchpar-train@a.service"].cpus) == "0-7"
    assert str(placement.shares["torchpar-train@b.service"].cpus) == "9-11"
    assert "a slower core (0.50 of the fastest)" in placement.usable.left_out[9]
    assert "kept for the system" in placement.usable.left_out[8]


@pytest.mark.parametrize(
    ("nodes", "cores_of_each", "reserved"),
    [(1, 3, ""), (1, 4, "0"), (1, 15, "0"), (2, 8, "0"), (2, 16, "0,16"), (16, 2, "0-1"), (1, 64, "0")],
)
def test_reserved_cores_grow_with_the_host(nodes: int, cores_of_each: int, reserved: str) -> None:
    """None below 4, one below 16, then one for each NUMA node, and no more than a sixteenth."""
    host = make_host(packages=nodes, cores_per_complex=cores_of_each)
    assert str(CpuSet(place_text("a", host).usable.left_out)) == reserved


@pytest.mark.parametrize(
    ("allowed", "usable"),
    [("0-3", "0-3"), ("32-63", "32-63"), ("0-30,32-63", "0-30,33-63")],
)
def test_cores_that_a_cpuset_leaves_out_are_the_system_s(allowed: str, usable: str) -> None:
    """Of a container, or of a slice that is kept to a part of the host, where two are kept of both nodes."""
    host = dataclasses.replace(make_host(packages=2, cores_per_complex=32), allowed_cpus=CpuSet.parse(allowed))
    assert cpus("a Enabled=yes", host) == {"a": usable}


def test_a_thread_of_a_core_is_none_that_a_cpuset_leaves_to_the_system() -> None:
    """The other thread of it computes with the job."""
    host = dataclasses.replace(make_host(smt=2), allowed_cpus=CpuSet.parse("0-3"))
    assert str(CpuSet(place_text("a", host).usable.left_out)) == "0,4-7"


def test_a_virtual_machine_with_a_package_for_each_cpu_keeps_one_core() -> None:
    """As QEMU's plain -smp 32 makes it."""
    host = make_host(packages=32, cores_per_complex=1)
    host = dataclasses.replace(host, numa_nodes=(NumaNode(0, host.online_cpus, 2**34),))
    assert cpus("a Enabled=yes", host) == {"a": "1-31"}


def test_more_reserved_cores_than_there_are_is_said() -> None:
    """Services get one core at least, which is less than was asked for the system."""
    usable = place_text("Host ReserveCores=99\na", make_host()).usable
    assert usable.warnings == ("[Host] ReserveCores=99: reduced to 3, as services need a core at least",)
    assert not place_text("Host ReserveCores=3\na", make_host()).usable.warnings
    assert not place_text("a", make_host(cores_per_complex=3)).usable.warnings


def test_a_cpu_quota_limits_the_pool_rounded_down() -> None:
    """More cores than the quota would only be throttled."""
    placement = place_text("Host ReserveCores=0\na Enabled=yes", make_host(cpu_limit=2.9))
    assert str(placement.shares["torchpar-train@a.service"].cpus) == "0-1"
    assert placement.usable.left_out[3] == "beyond the CPU quota of 2.9 CPUs"


def test_isolated_cpus_are_only_for_who_names_them() -> None:
    """The kernel balances nothing onto them."""
    host = make_host(isolated_cpus=CpuSet([3]))
    assert cpus("Host ReserveCores=0\na Enabled=yes", host) == {"a": "0-2"}
    assert cpus("a CPUs=3-3 Enabled=yes", host) == {"a": "3"}


def test_the_hosts_cpus_bound_everything() -> None:
    """[Host] CPUs= is the fence, for lists too."""
    assert cpus("Host CPUs=1-2 ReserveCores=0\na Enabled=yes", make_host()) == {"a": "1-2"}
    assert "not in [Host] CPUs=1-2" in refused("Host CPUs=1-2\na CPUs=3-3", make_host())
    assert "none of them is usable" in refused("Host CPUs=8-9\na", make_host())


def kinds_of(*kinds: tuple[int, int]) -> HostFacts:
    """A host with kinds of cores: (capacity of 1024, number), the slowest first."""
    host = make_host(cores_per_complex=sum(number for _, number in kinds))
    found, start = [], 0
    for rank, (capacity, number) in enumerate(kinds):
        found.append(CpuKind(CpuSet(range(start, start + number)), rank, capacity / 1024))
        start += number
    return dataclasses.replace(host, cpu_kinds=tuple(found))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (((280, 3), (855, 4), (1024, 1)), "3-7"),
        (((280, 4), (820, 2), (1024, 2)), "4-7"),
        (((512, 8), (1024, 8)), "8-15"),
        (((700, 10), (1000, 5), (1024, 5)), "1-19"),
        (((200, 7), (1024, 1)), "1-7"),
    ],
)
def test_a_job_has_the_set_of_cores_that_is_the_fastest(kinds: tuple[tuple[int, int], ...], expected: str) -> None:
    """From the fastest core down, the number times the slowest capacity; the system has the slowest core."""
    assert cpus("a Enabled=yes", kinds_of(*kinds)) == {"a": expected}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [("CPUs=1", "19"), ("CPUs=2", "15-16"), ("CPUs=4", "15-18"), ("CPUs=5", "15-19"), ("CPUs=8", "5-9,15-16,19")],
)
def test_no_core_of_a_count_is_slower_than_it_must_be(request_: str, expected: str) -> None:
    """Five kinds of cores, of which the pool has all: the slowest cores are for who needs that many."""
    host = kinds_of((710, 5), (930, 5), (720, 5), (1000, 4), (1024, 1))
    assert cpus(f"a {request_} Enabled=yes", host) == {"a": expected}


def test_the_cores_of_a_quota_are_the_fastest() -> None:
    """Which of the pool they are, as for a count."""
    host = dataclasses.replace(kinds_of((900, 6), (1024, 6)), cpu_limit=4.0)
    assert cpus("a Enabled=yes", host) == {"a": "6-9"}


def test_further_services_have_slower_cores_before_anything_is_refused() -> None:
    """Then what is kept for the system, with a warning."""
    host = kinds_of((100, 3), (1024, 1))
    assert cpus("a CPUs=1 Enabled=yes\nb Enabled=yes", host) == {"a": "3", "b": "1-2"}
    four = "\n".join(f"{name} Enabled=yes" for name in "abcd")
    placement = place_text(four, host)
    assert sorted(str(share.cpus) for share in placement.shares.values()) == ["0", "1", "2", "3"]
    assert placement.usable.warnings == (
        "CPUs 0 are kept for the system, but services need them to have what they ask for; ask for less, or set "
        "Enabled=no for one",
    )
    assert "it asks for 1 core, but 0 of the 4 usable cores are left" in refused(f"{four}\ne Enabled=yes", host)
    assert "but 0 of the 3 usable" in refused(f"Host ReserveCores=1\n{four}", host)


def warnings(placement: Placement) -> list[str]:
    """Those of the services."""
    return [warning for share in placement.shares.values() for warning in share.warnings]


def test_no_more_slower_cores_are_taken_than_make_up_for_a_faster_one() -> None:
    """Whoever comes last has them, and is told; the others load data."""
    host = kinds_of((300, 8), (1024, 8))
    nine = "\n".join(f"{name} Enabled=yes" for name in "abcdefghi")
    placement = place_text(f"Host ReserveCores=0\n{nine}", host)
    assert [str(share.cpus) for share in placement.shares.values()] == [*map(str, range(8, 16)), "0-3"]
    assert warnings(placement) == [
        "/c:27: [Train i] CPUs=auto: all of its cores are slower (0.29 of the fastest), as no others are left"
    ]
    placement = place_text("Host ReserveCores=0\na CPUs=9 Enabled=yes", host)
    share = placement.shares["torchpar-train@a.service"]
    assert (str(share.cpus), str(share.loader_cpus)) == ("8-15", "0-7")
    assert warnings(placement) == [
        "/c:5: [Train a] CPUs=9: 1 of its 9 cores is so slow that it is faster without; it computes on the 8 others, "
        "and loads data on slower ones"
    ]


def test_who_finds_no_faster_core_has_all_slower_ones() -> None:
    """Counts take the fast ones; none of the slower ones has anybody wait for it."""
    shares = cpus("Host ReserveCores=0\na CPUs=8 Enabled=yes\nb Enabled=yes", kinds_of((300, 8), (1024, 8)))
    assert shares == {"a": "8-15", "b": "0-7"}


def test_a_shared_service_has_a_core_where_others_need_the_slower_ones() -> None:
    """One that auto services could have."""
    host = kinds_of((300, 2), (1024, 4))
    text = "Host ReserveCores=0\na CPUs=4 Enabled=yes\nb Enabled=yes\nc CPUs=shared Enabled=yes"
    assert cpus(text, host) == {"a": "2-5", "b": "0", "c": "1"}


def test_a_quota_is_exceeded_rather_than_a_service_refused() -> None:
    """Each has a core, and the kernel throttles all of them."""
    placement = place_text("a Enabled=yes\nb Enabled=yes", make_host(cores_per_complex=3, cpu_limit=1.5))
    assert [str(share.cpus) for share in placement.shares.values()] == ["0", "1"]
    assert placement.usable.warnings[0].startswith("CPUs 1 are beyond the CPU quota of 1.5 CPUs, but")


def test_cores_beyond_the_quota_are_given_away_before_any_other() -> None:
    """They are idle and as fast as those of the quota; the system's core is the last one."""
    three = "\n".join(f"{name} Enabled=yes" for name in "abc")
    placement = place_text(three, make_host(cores_per_complex=6, cpu_limit=2.0))
    assert [str(share.cpus) for share in placement.shares.values()] == ["1", "2", "3"]
    assert placement.usable.warnings[0].startswith("CPUs 3 are beyond the CPU quota of 2 CPUs, but")
    hybrid = dataclasses.replace(kinds_of((200, 4), (1024, 4)), cpu_limit=2.0)
    assert [str(share.cpus) for share in place_text(three, hybrid).shares.values()] == ["4", "5", "6"]


def test_a_core_that_was_given_away_is_not_called_kept() -> None:
    """Where it is listed with the reasons of the others, its own says who has it."""
    usable = place_text("\n".join(f"{name} Enabled=yes" for name in "abcd"), make_host()).usable
    assert usable.left_out == {0: "kept for the system while every service has a core, and given to [Train a]"}
    usable = place_text("a Enabled=yes\nb Enabled=yes", make_host(cores_per_complex=3, cpu_limit=1.0)).usable
    assert usable.left_out == {
        1: "beyond the CPU quota of 1 CPUs while every service has a core, and given to [Train b]",
        2: "beyond the CPU quota of 1 CPUs",
    }


def test_each_rank_has_a_core_before_weights_count() -> None:
    """A light service with three ranks runs."""
    shares = cpus("Host ReserveCores=0\na Enabled=yes Weight=10000\nb Enabled=yes Weight=1 Ranks=3", make_host())
    assert shares == {"a": "3", "b": "0-2"}


def test_a_reserved_core_that_the_conf_names_was_not_given_away() -> None:
    """The system's core is CPU 0; naming it is no shortage of cores."""
    placement = place_text("a CPUs=0-3 Enabled=yes\nb Enabled=yes", make_host(cores_per_complex=8))
    assert placement.usable.warnings == ()


@pytest.mark.parametrize("ranks", ["numa", "2"])
def test_a_service_with_several_ranks_is_placed_before_one_that_has_the_same_share(ranks: str) -> None:
    """Whatever their names: its ranks have a node where all of them fit, and the other one what they leave."""
    host = make_host(packages=2, cores_per_complex=20)
    shares = cpus(f"Host ReserveCores=0\nz Enabled=yes Ranks={ranks}\nb Enabled=yes CPUs=8\na Enabled=yes", host)
    on_nodes = [len(CpuSet.parse(shares["z"]) & node.cpus) for node in host.numa_nodes]
    assert sorted(on_nodes) == [0, 16]

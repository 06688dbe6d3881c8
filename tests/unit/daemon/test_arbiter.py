"""Services that run on CPUs of others are moved, and are given their own back; on a host that is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.hosts import make_host
from tests.unit.verify.fake_host import FakeHost, make_fake_host
from torchpar.arbitration.divide import Tenant
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank, read_given
from torchpar.daemon import arbiter as module
from torchpar.daemon import tenants
from torchpar.daemon.arbiter import Arbiter, Doors
from torchpar.daemon.moves import read_moved
from torchpar.facts.running import RunningUnit
from torchpar.host.affinity import UnitMove
from torchpar.verify.compare import Verdict, verify

# Four cores; a and b are started by hand, c is enabled.
TEXT = "[Host]\nReserveCores=0\n[Train a]\nScript=/a.py\n[Train b]\nScript=/b.py\nWeight=300\n"
ENABLED = "[Train c]\nScript=/c.py\nEnabled=yes\nCPUs=2\n"
A, B, C = (f"torchpar-train@{name}.service" for name in "abc")


class Host:
    """Such a host with an arbiter, what it tells, and which ranks it moves where."""

    def __init__(self, folder: Path, text: str = TEXT) -> None:
        self.made: FakeHost = make_fake_host(folder)
        self.made.text = text
        self.made.apply()
        self.folder = folder / "given"
        self.told: list[str] = []
        self.moves: list[UnitMove] = []
        self.refuses = False
        self.idle: set[str] = set()
        # What the control group of a allows.
        self.cpuset: CpuSet | None = None
        self.seconds: list[float] = []
        self.at_move: Callable[[], object] = lambda: None
        self.arbiter = self.begin()

    def begin(self) -> Arbiter:
        """One that knows nothing yet."""
        doors = Doors(
            lambda: self.made.facts, self.move, lambda group: group, self.idle.__contains__, lambda group: self.cpuset
        )
        tell = lambda _, line, fields: self.told.append(line)  # noqa: E731
        self.arbiter = Arbiter(self.made.store, self.made.systemd, doors, tell, folder=str(self.folder))
        return self.arbiter

    def move(self, move: UnitMove, seconds: float) -> int:
        self.seconds.append(seconds)
        self.at_move()
        if self.refuses:
            raise PermissionError(1, "Operation not permitted")
        self.moves.append(move)
        if self.cpuset and move.unit == A:
            self.cpuset = move.group_cpus(self.cpuset)
        return 1

    def start(self, *units: str) -> None:
        for unit in units:
            self.made.systemd.runs[unit] = f"run of {unit}"
            self.made.systemd.properties[unit] = {"MainPID": 1}
        self.look()

    def end(self, unit: str) -> None:
        del self.made.systemd.runs[unit]
        self.look()

    def look(self) -> None:
        lines: list[bytes] = []
        self.arbiter.look(lines.append)
        self.arbiter.take(lines)

    def given(self, unit: str) -> Given | None:
        return read_given(unit, str(self.folder))

    def cpus(self, unit: str) -> str:
        given = self.given(unit)
        assert given and given.invocation == self.made.systemd.runs[unit]
        return str(given.cpus)

    def taken_moves(self) -> list[tuple[str, str]]:
        moves = [(move.unit, " ".join(str(rank.to) for rank in move.ranks)) for move in self.moves]
        self.moves.clear()
        return moves


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_one_that_starts_gets_its_part_and_the_other_makes_room(host: Host) -> None:
    host.start(A)
    assert host.cpus(A) == "0-3"
    assert not host.moves and not host.told
    host.start(B)
    assert (host.cpus(A), host.cpus(B)) == ("3", "0-2")
    assert host.taken_moves() == [(A, "3"), (B, "0-2")]
    assert host.told == [
        "train@a has CPUs 3 of its 0-3, which it shares with train@b",
        "train@b has CPUs 0-2 of its 0-3, which it shares with train@a",
    ]
    rows = [(row["unit"], row["cpus"], row["threads"]) for row in host.arbiter.moved]
    assert rows == [(A, "3", [1]), (B, "0-2", [3])]


def test_where_services_are_can_be_read_without_the_daemon(host: Host) -> None:
    """By whoever may not ask it; of a run that has ended nothing is said."""
    host.start(A)
    host.start(B)
    rows = [{"unit": unit, "invocation": host.made.systemd.runs[unit]} for unit in (A, B)]
    assert read_moved(rows, str(host.folder)) == host.arbiter.moved
    assert [row["cpus"] for row in host.arbiter.moved] == ["3", "0-2"]
    assert read_moved([{"unit": A, "invocation": "another"}, {"unit": C, "invocation": ""}], str(host.folder)) == []


def test_when_one_ends_the_other_has_all_again(host: Host) -> None:
    host.start(A, B)
    host.told.clear()
    host.moves.clear()
    host.end(B)
    assert host.cpus(A) == "0-3"
    (move,) = host.moves
    assert CpuSet.parse("3") in move.ranks[0].known
    assert host.told == ["train@a has all of its CPUs 0-3 again"]
    given = host.given(B)
    assert given and not given.invocation, "the next start waits for its part"


def test_cpus_that_go_offline_are_nobodys_and_come_back(host: Host) -> None:
    """Its threads follow at its next step; the kernel has moved them, or will."""
    host.start(A)
    host.made.facts = make_host(cores_per_complex=3)
    host.look()
    assert host.cpus(A) == "0-2" and host.taken_moves() == [(A, "0-2")]
    host.made.facts = make_host()
    host.look()
    assert host.cpus(A) == "0-3" and host.taken_moves() == [(A, "0-3")]
    assert host.told == [
        "train@a has CPUs 0-2 of its 0-3: the others are offline",
        "train@a has all of its CPUs 0-3 again",
    ]


def test_nothing_is_told_twice(host: Host) -> None:
    """Threads are looked at again: new ones may have been started by one that was not moved yet."""
    host.start(A, B)
    host.told.clear()
    host.moves.clear()
    host.look()
    assert not host.told
    assert len(host.moves) == 2


def test_nobody_waits_while_another_is_moved(host: Host) -> None:
    """A job can make that last, as it has as many threads as it likes."""
    words: list[object] = []
    host.at_move = lambda: words.append((host.cpus(A), host.cpus(B)))
    host.start(A)
    host.start(B)
    assert words == [("3", "0-2")] * 2


def test_nobody_takes_the_time_in_which_others_are_moved(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    host.start(A, B)
    assert host.seconds == [2.5, 5.0]
    host.seconds.clear()
    host.at_move = lambda: clock.append(clock.pop() + host.seconds[-1])
    host.look()
    assert host.seconds == [2.5, 2.5]


def test_of_many_that_share_few_are_named(tmp_path: Path) -> None:
    """And nothing is told of one that stays where it is while others come."""
    names = [f"s{number:02}" for number in range(12)]
    host = Host(tmp_path, "[Host]\nReserveCores=0\n" + "".join(f"[Train {name}]\nScript=/a.py\n" for name in names))
    units = [f"torchpar-train@{name}.service" for name in names]
    host.start(*units[:-1])
    given = host.given(units[0])
    assert given and given.why == "train@s01, train@s02, train@s03 and 7 others"
    host.told.clear()
    host.start(units[-1])
    later = host.given(units[0])
    assert later and (later.ranks, later.since) == (given.ranks, given.since)
    assert later.why == "train@s01, train@s02, train@s03 and 8 others"
    assert len(host.told) == 1 and host.told[0].startswith("train@s11 has CPUs ")


def test_an_enabled_service_is_never_moved_and_never_waits(tmp_path: Path) -> None:
    host = Host(tmp_path, TEXT + ENABLED)
    host.start(A, B, C)
    assert host.given(C) is None
    assert {unit for unit, _ in host.taken_moves()} == {A, B}
    assert (host.cpus(A), host.cpus(B)) == ("2", "3")


@pytest.mark.parametrize(
    ("settings", "cpus"), [("", "2-3 0-1"), ("Weight=300\n", "3 0-2"), ("CPUs=shared\n", "2-3 0-1")]
)
def test_an_inference_service_makes_room_as_a_job_does(tmp_path: Path, settings: str, cpus: str) -> None:
    host = Host(tmp_path, TEXT + f"[Infer d]\nModel=/d.pt\n{settings}")
    d = "torchpar-infer@d.service"
    host.start(A, d)
    assert f"{host.cpus(A)} {host.cpus(d)}" == cpus
    host.end(A)
    assert host.cpus(d) == "0-3"


def test_a_plan_that_makes_no_sense_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was given stays."""
    host.start(A, B)
    host.moves.clear()

    def refuse(rank: object) -> object:
        raise ValueError("a rank without CPUs")

    monkeypatch.setattr(tenants, "_as_rank", refuse)
    host.look()
    assert host.told[-1] == "the CPUs of what runs are not divided: a rank without CPUs" and not host.moves


def test_one_that_becomes_enabled_while_it_runs_has_its_cpus_back(host: Host) -> None:
    host.start(A, B)
    host.made.text = TEXT.replace("/a.py\n", "/a.py\nEnabled=yes\n")
    host.made.apply()
    host.moves.clear()
    host.look()
    assert host.taken_moves()[0] == (A, "0-3")


def test_a_newer_plan_moves_nobody_who_runs(host: Host) -> None:
    """It holds from the next start on, as for all that a unit says."""
    host.start(A)
    host.made.text = TEXT.replace("/a.py\n", "/a.py\nCPUs=0-1\n")
    host.made.apply()
    host.look()
    assert host.cpus(A) == "0-3" and not host.moves and not host.told
    host.made.text = TEXT.replace("/a.py\n", "/a.py\nThreads=2\n")
    host.made.apply()
    host.look()
    assert [rank.threads for rank in given_ranks(host, A)] == [4] and not host.moves
    host.start(B)
    assert (host.cpus(A), host.cpus(B)) == ("3", "0-2")


@pytest.mark.parametrize("later", [ENABLED.replace("2", "2-3"), ENABLED.replace("Enabled=yes\n", ""), ""])
def test_an_enabled_service_that_runs_is_where_it_was_started(tmp_path: Path, later: str) -> None:
    """Until it ends, whatever a newer conf says of it, also that it is no longer enabled, or nothing."""
    text = TEXT.replace("[Train b]", "CPUs=0-3\n[Train b]")
    host = Host(tmp_path, text + ENABLED)
    host.start(C, A)
    rest = CpuSet.parse("0-3") - host.made.compile().services()[-1].cpus
    assert host.cpus(A) == str(rest)
    host.made.text = text + later
    host.made.apply()
    host.begin()
    host.look()
    assert host.cpus(A) == str(rest)
    host.end(C)
    assert host.cpus(A) == "0-3"


def test_one_that_has_left_the_conf_has_its_cpus_back(host: Host) -> None:
    host.start(A, B)
    host.made.text = "[Host]\nReserveCores=0\n[Train a]\nScript=/a.py\n"
    host.made.apply()
    host.look()
    assert host.cpus(A) == host.cpus(B) == "0-3"
    host.end(B)
    assert host.given(B) is None


def test_who_comes_after_one_that_was_killed_knows_what_was_given(host: Host) -> None:
    host.start(A, B)
    given = host.given(A)
    host.begin()
    host.told.clear()
    host.look()
    assert host.given(A) == given and not host.told
    assert [row["unit"] for row in host.arbiter.moved] == [A, B]
    host.begin()
    host.end(B)
    assert host.cpus(A) == "0-3"


def test_the_next_run_has_been_given_nothing_yet(host: Host) -> None:
    host.start(A, B)
    host.made.systemd.runs[A] = "another run"
    host.look()
    given = host.given(A)
    assert given and given.invocation == "another run" and not given.had


def test_at_its_end_everybody_has_all_cpus(host: Host) -> None:
    """Without torchpard nobody else would give them back. systemd has no time for it just then."""
    host.start(A, B)
    host.moves.clear()
    host.made.systemd.refuses = "list"
    host.begin().give_back()
    assert sorted(move.control_group for move in host.moves) == [f"/{A}", f"/{B}"]
    assert sorted(host.taken_moves()) == [(A, "0-3"), (B, "0-3")]
    assert host.cpus(A) == host.cpus(B) == "0-3"


def test_what_cannot_be_done_is_said_once(host: Host) -> None:
    host.refuses = True
    host.start(A, B)
    host.look()
    problem = "train@a cannot be moved to CPUs 3: Operation not permitted"
    assert host.told.count(problem) == 1


def test_a_systemd_that_does_not_answer_changes_nothing(host: Host) -> None:
    host.start(A, B)
    moved = host.arbiter.moved
    host.made.systemd.refuses = "list"
    host.look()
    assert host.arbiter.moved == moved


def test_ad_hoc_jobs_count(host: Host) -> None:
    job = "torchpar-run-job-1.service"
    rank = {"local_rank": 0, "cpus": "0-3", "numa_nodes": "0", "threads": 4, "loader_workers": 0, "gpus": []}
    told = json.dumps({"service": job, "interop_threads": 1, "cudnn_benchmark": None, "ranks": [rank]})
    host.start(A)
    host.start(job)
    host.made.systemd.properties[job]["Environment"] = [f"TORCHPAR_JOB={told}", "B=1"]
    host.look()
    assert (host.cpus(A), host.cpus(job)) == ("2-3", "0-1")
    assert [rank.threads for rank in given_ranks(host, job)] == [2]


def test_a_number_of_threads_that_an_ad_hoc_job_asks_for_stays(host: Host) -> None:
    """As in `torchpar run --set Threads=3`."""
    job = "torchpar-run-job-1.service"
    rank = {"local_rank": 0, "cpus": "0-3", "numa_nodes": "0", "threads": 3, "loader_workers": 0, "gpus": []}
    told = {"service": job, "interop_threads": 1, "cudnn_benchmark": None, "ranks": [rank], "own_threads": True}
    host.made.systemd.runs[job] = "its run"
    host.made.systemd.properties[job] = {"MainPID": 1, "Environment": [f"TORCHPAR_JOB={json.dumps(told)}"]}
    host.start(A)
    assert host.cpus(job) == "0-1"
    assert [rank.threads for rank in given_ranks(host, job)] == [3]


def given_ranks(host: Host, unit: str) -> tuple[GivenRank, ...]:
    given = host.given(unit)
    assert given
    return given.ranks


@pytest.mark.parametrize("told", ["", "{}", "[", '{"ranks": 1}', "CPUS"])
def test_what_a_job_has_that_torchpar_did_not_write_counts_for_nothing(host: Host, told: str) -> None:
    job = "torchpar-run-job-1.service"
    rank = {"local_rank": 0, "cpus": "", "numa_nodes": "0", "threads": 4, "loader_workers": 0, "gpus": []}
    whole = json.dumps({"service": job, "interop_threads": 1, "cudnn_benchmark": None, "ranks": [rank]})
    host.made.systemd.properties[job] = {"Environment": [f"TORCHPAR_JOB={whole if told == 'CPUS' else told}"]}
    host.start(A)
    host.made.systemd.runs[job] = "its run"
    host.look()
    assert host.cpus(A) == "0-3" and host.given(job) is None and not host.told


# a has half of the host, and so has the service d.
LENDING = (
    "[Host]\nReserveCores=0\n[Train a]\nScript=/a.py\nEnabled=yes\nCPUs=2\nBorrow=yes\n"
    "[Infer d]\nModel=/d.pt\nEnabled=yes\nCPUs=2\nLend=yes\n"
)
D = "torchpar-infer@d.service"


def declared(host: Host) -> list[Tenant]:
    return list(tenants.read_declared(host.made.store, host.made.facts).values())


@pytest.fixture
def lending(tmp_path: Path) -> Host:
    return Host(tmp_path, LENDING)


def test_a_stopped_owner_lends_and_its_cpus_are_back_before_it_is_told_that_they_are(lending: Host) -> None:
    lending.start(A)
    theirs = {tenant.unit: str(tenant.cpus) for tenant in declared(lending)}[D]
    assert lending.cpus(A) == "0-3" and [rank.threads for rank in given_ranks(lending, A)] == [4]
    assert lending.told == [f"train@a borrows CPUs {theirs} of infer@d: it has CPUs 0-3"]
    (row,) = lending.arbiter.moved
    assert (row["borrowed_cpus"], row["lenders"], lending.arbiter.owners) == (theirs, "infer@d", {D})
    lending.taken_moves()
    words: list[object] = []
    lending.at_move = lambda: words.append((lending.cpus(A), lending.given(D)))
    lending.start(D)
    (own, waiting), *_ = words
    assert own == str(CpuSet.parse("0-3") - CpuSet.parse(theirs)) and not waiting.invocation  # type: ignore[attr-defined]
    assert lending.cpus(D) == theirs and lending.arbiter.owners == set()
    assert [str(rank.gone) for move in lending.moves if move.unit == A for rank in move.ranks][0] == theirs
    assert lending.told[-1] == f"train@a has given back CPUs {theirs} of infer@d: it has CPUs {own}"
    lending.end(D)
    assert lending.cpus(A) == "0-3"


@pytest.mark.parametrize("key", ["Lend=yes\n", "Borrow=yes\n"])
def test_an_enabled_service_that_lends_or_borrows_is_where_it_was_started_until_it_ends(
    tmp_path: Path, key: str
) -> None:
    """Also where it has left the conf, in which another may have its CPUs."""
    rest = "[Host]\nReserveCores=0\n[Train a]\nScript=/a.py\nEnabled=yes\nCPUs=0-1\nBorrow=yes\n"
    host = Host(tmp_path, f"{rest}[Train c]\nScript=/c.py\nEnabled=yes\nCPUs=2-3\n{key}")
    host.start(A, C)
    assert host.cpus(A) == "0-1"
    host.made.text = rest + "[Infer d]\nModel=/d.pt\nEnabled=yes\nCPUs=2-3\nLend=yes\n"
    host.made.apply()
    host.look()
    assert (host.cpus(A), host.cpus(C)) == ("0-1", "2-3")
    host.end(C)
    assert host.cpus(A) == "0-3"


def take_back(host: Host, *units: str) -> None:
    """As the daemon does once it hears that these need their CPUs."""
    lines: list[bytes] = []
    host.arbiter.wake(frozenset(units) & host.arbiter.owners)
    host.arbiter.take_back(lines.append)
    host.arbiter.took_back(lines)


def test_an_idle_owner_has_them_back_without_a_look_at_anything_else(lending: Host) -> None:
    lending.start(A, D)
    own = lending.cpus(A)
    assert own != "0-3" and not lending.arbiter.has_idle_changed()
    lending.idle.add(D)
    assert lending.arbiter.has_idle_changed()
    lending.look()
    lender = lending.given(D)
    assert lending.cpus(A) == "0-3" and lender and lender.lent_to == "train@a"
    assert lending.arbiter.idle_owners() == {D} and not lending.arbiter.awake_owners()
    assert {row["unit"]: row["lent_to"] for row in lending.arbiter.moved} == {A: "", D: "train@a"}

    lending.idle.clear()
    assert lending.arbiter.awake_owners() == {D}
    lending.made.systemd.runs.clear()
    lending.moves.clear()
    take_back(lending, D)
    given, lender = lending.given(A), lending.given(D)
    assert given and str(given.cpus) == own and not given.loans and lender and not lender.lent_to
    assert lending.taken_moves() == [(A, own)]


def test_what_lasts_is_told_once_whatever_is_taken_back(lending: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(rank: object) -> object:
        raise ValueError("a rank without CPUs")

    lending.start(A, D)
    monkeypatch.setattr(tenants, "_as_rank", refuse)
    for _ in range(3):
        lending.look()
        take_back(lending, D)
    assert lending.told.count("the CPUs of what runs are not divided: a rank without CPUs") == 1


@pytest.mark.parametrize("enabled", ["Enabled=yes\n", ""])
def test_an_owner_that_is_started_again_in_a_moment_lends_nothing(tmp_path: Path, enabled: str) -> None:
    """One that fails again and again would have them lent and taken back each time."""
    host = Host(tmp_path, LENDING.replace("/d.pt\nEnabled=yes\n", f"/d.pt\n{enabled}"))
    host.start(A, D)
    own = host.cpus(A)
    host.made.systemd.restarting.add(D)
    host.end(D)
    assert host.cpus(A) == own
    given = host.given(D)
    assert given and not given.invocation, "its next start waits for its part"
    host.made.systemd.restarting.clear()
    host.look()
    assert host.cpus(A) == "0-3"


def test_an_owner_that_is_idle_all_the_time_lends_no_more_often_than_a_server(
    lending: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a service does with its mark, it has torchpard move others only so often."""
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    lending.start(A, D)
    own = lending.cpus(A)
    lending.idle.add(D)
    lending.look()
    assert lending.cpus(A) == "0-3"
    take_back(lending, D)
    lending.look()
    clock[0] += 9.0
    assert not lending.arbiter.has_idle_changed()
    lending.look()
    assert lending.cpus(A) == own
    clock[0] += 1.0
    assert lending.arbiter.has_idle_changed()
    lending.look()
    assert lending.cpus(A) == "0-3"


def test_an_owner_that_has_a_request_while_its_cpus_are_being_lent_has_them_back_at_once(lending: Host) -> None:
    lending.start(A, D)
    own = lending.cpus(A)
    lending.idle.add(D)
    lending.at_move = lending.idle.clear
    lending.look()
    assert lending.cpus(A) == own


def test_who_comes_after_a_torchpard_that_was_killed_finds_what_is_lent(lending: Host) -> None:
    """Also where the owner has been started, or has had a request, meanwhile."""
    lending.start(A)
    lending.begin()
    lending.told.clear()
    lending.look()
    assert lending.cpus(A) == "0-3" and not lending.told and lending.arbiter.owners == {D}
    lending.begin()
    lending.made.systemd.runs[D] = "run"
    lending.made.systemd.properties[D] = {"MainPID": 1}
    lending.look()
    assert lending.cpus(A) != "0-3" and lending.told[0].startswith("train@a has given back CPUs ")


@pytest.mark.parametrize("is_new", [False, True])
def test_what_is_lent_is_known_where_nothing_can_be_divided(
    lending: Host, monkeypatch: pytest.MonkeyPatch, *, is_new: bool
) -> None:
    """Also by a torchpard that has just been started: it takes back what the owner needs."""
    lending.start(A, D)
    own = lending.cpus(A)
    lending.idle.add(D)
    lending.look()
    moved = lending.arbiter.moved

    def refuse(rank: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tenants, "_as_rank", refuse)
    if is_new:
        lending.begin()
    lending.look()
    assert lending.told[-1] == "the CPUs of what runs are not divided: [Errno 5] Input/output error"
    assert lending.arbiter.owners == lending.arbiter.idle_owners() == {D}
    assert is_new or (lending.arbiter.moved == moved and not lending.arbiter.has_idle_changed())
    lending.idle.clear()
    assert lending.arbiter.awake_owners() == {D}
    take_back(lending, D)
    assert lending.cpus(A) == own


def test_torchpard_gives_back_what_was_lent_at_its_end(lending: Host) -> None:
    lending.start(A, D)
    own = lending.cpus(A)
    lending.idle.add(D)
    lending.look()
    lending.arbiter.give_back()
    lender = lending.given(D)
    assert lending.cpus(A) == own and lender and not lender.lent_to


def test_nothing_is_lent_that_the_control_group_of_a_running_service_does_not_allow(lending: Host) -> None:
    """It was started before the conf had Borrow=."""
    own = {tenant.unit: tenant.cpus for tenant in declared(lending)}[A]
    lending.cpuset = CpuSet([*own, (CpuSet.parse("0-3") - own).first()])
    lending.start(A)
    assert CpuSet.parse(lending.cpus(A)) == lending.cpuset


def test_status_is_told_which_cpus_of_an_idle_owner_are_lent(lending: Host) -> None:
    """Which may be a part of them, as here: the control group of the other allows no more."""
    own = {tenant.unit: tenant.cpus for tenant in declared(lending)}
    one = CpuSet([own[D].first()])
    lending.cpuset = own[A] | one
    lending.idle.add(D)
    lending.start(A, D)
    rows = {row["unit"]: (row["cpus"], row["lent_cpus"]) for row in lending.arbiter.moved}
    assert rows == {A: (str(own[A] | one), ""), D: (str(own[D]), str(one))}


def test_what_was_given_back_can_be_lent_again(lending: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a control group that has no other CPUs than those that torchpard leaves it, and that runs as planned then."""
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.0)
    (plan,) = (service for service in lending.made.compile().services() if service.unit == A)
    lending.cpuset = CpuSet.parse("0-3")
    lending.start(A, D)
    for _ in range(2):
        lending.idle.add(D)
        lending.look()
        assert lending.cpus(A) == "0-3"
        lending.idle.clear()
        take_back(lending, D)
        running = RunningUnit(A, 0, (), has_numa=True, cpuset=lending.cpuset)
        items = {item.what: item.verdict for item in verify(plan, running, lending.given(A))}
        assert lending.cpus(A) == str(plan.cpus) and items["cpuset"] is Verdict.OK
        lending.look()

"""What `torchpar status` sees, on a host whose systemd and processes are made up and whose store is a real one."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.generations.fake_systemd import FakeSystemd
from tests.unit.hosts import make_host
from tests.unit.verify.fake_host import INFER, TEXT, TRAIN, FakeHost, make_fake_host
from torchpar.conf.services import Config
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import FactsError, Place, Problem
from torchpar.contract.fallback import Fallback, Fallen
from torchpar.contract.given import Given, GivenRank, Loan
from torchpar.generations.retry import LACKING
from torchpar.generations.store import Store
from torchpar.host.checkpoints import Checkpoint
from torchpar.host.last_stop import LastStop
from torchpar.verify import observe, service
from torchpar.verify.compare import Verdict, summary
from torchpar.verify.failure import EXIT_CODES
from torchpar.verify.service import Around, verify_unit

STRAY = "torchpar-train@x.service"
NEWER = "the conf is newer than generation 1; see: torchpar diff, then: systemctl reload torchpard"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """A host on which nothing has been applied, and nothing runs."""
    return make_fake_host(tmp_path)


def look(host: FakeHost) -> dict[str, Any]:
    """What is seen of it."""
    return observe.observe(host.store, host.systemd, host.readers)


def told(row: dict[str, Any]) -> list[str]:
    """What is wrong with a service, or with the host."""
    return [wrong["text"] for wrong in row["wrong"]]


def brief(seen: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """Of each service its unit, its state and whether it runs as planned."""
    return [(service["unit"], service["state"], service["placed"]) for service in seen["services"]]


def test_a_host_on_which_nothing_was_applied_has_a_new_conf(host: FakeHost) -> None:
    """And what runs there is out of force."""
    host.systemd.runs[STRAY] = "before"
    seen = look(host)
    assert (seen["generation"], seen["conf"]) == (None, "newer")
    assert brief(seen) == [(STRAY, "out of force, still running", None)]
    nothing, newer, stray = seen["notices"]
    assert nothing == "nothing has been applied on this host yet; run: torchpar apply"
    assert newer == NEWER.replace("generation 1", "what is in force")
    assert stray == (
        f"{STRAY} is out of force and still runs, on CPUs unknown: to end it, systemctl stop {STRAY}; to keep it, "
        "write [Train x] into the conf again and apply it"
    )


def test_what_runs_as_planned_needs_no_notice(host: FakeHost) -> None:
    """Each service is in its row with what was planned, and with a verdict an item where it runs."""
    host.apply()
    host.start(TRAIN)
    seen = look(host)
    assert (seen["generation"], seen["conf"], seen["notices"]) == (1, "in sync", [])
    assert brief(seen) == [(INFER, "stopped", None), (TRAIN, "running", "ok")]
    stopped, running = seen["services"]
    assert (stopped["cpus"], running["cpus"], running["threads"]) == ("0-1", "2-3", [2])
    assert stopped["items"] == [] and {item["verdict"] for item in running["items"]} == {"ok", "n/a"}
    assert host.asked == [(TRAIN, 5.0)]


def test_units_that_systemd_has_not_read_are_told_once_it_is_there(host: FakeHost, tmp_path: Path) -> None:
    """Until it has read them. Whether it is there is asked at each look."""
    generation = host.apply()
    assert look(host)["notices"] == []
    host.loaded = tmp_path / "generator"
    (notice,) = look(host)["notices"]
    assert notice.startswith("generation 1 is active, and systemd has not read torchpar-")
    shutil.copytree(generation.path / "units", host.loaded, symlinks=True)
    assert look(host)["notices"] == []


@pytest.mark.parametrize(
    ("since", "said"),
    [
        (1, f"{TRAIN} runs with what was in force when it started (CPUs): systemctl restart {TRAIN}"),
        (2**60, f"{TRAIN} does not run as planned (CPUs): torchpar verify train@a"),
    ],
)
def test_what_runs_elsewhere_is_told_with_what_to_do(host: FakeHost, since: int, said: str) -> None:
    """A service that started before the generation was in force needs a restart; another one needs to be looked at."""
    host.apply()
    host.start(TRAIN)
    host.systemd.properties[TRAIN]["ActiveEnterTimestamp"] = since
    (process,) = host.processes[TRAIN]
    host.processes[TRAIN] = (dataclasses.replace(process, threads={process.pid: CpuSet([0])}),)
    seen = look(host)
    assert brief(seen)[1] == (TRAIN, "running", "drift") and seen["notices"] == [said]


@pytest.mark.parametrize(("cpus", "what"), [("2-3", "environment"), ("3", "CPUs, environment")])
def test_a_job_that_systemd_has_moved_to_newer_cpus_computes_with_older_settings(
    host: FakeHost, cpus: str, what: str
) -> None:
    """systemd 252 gives a running unit a newer AllowedCPUs= when it reads its units again. Where a thread's own set has
    some of these the kernel leaves it those."""
    text = "[Host]\nReserveCores=0\n[Train a]\nScript=/a.py\nEnabled=yes\nCPUs="
    host.text = f"{text}1-3"
    host.apply()
    host.start(TRAIN)
    host.systemd.properties[TRAIN]["ActiveEnterTimestamp"] = 1
    host.text = f"{text}2-3"
    host.apply()
    (process,) = host.processes[TRAIN]
    host.processes[TRAIN] = (dataclasses.replace(process, threads={process.pid: CpuSet.parse(cpus)}),)
    (row,) = look(host)["services"]
    assert (row["placed"], row["running_cpus"], row["cpus"]) == ("drift", cpus, "2-3")
    assert told(row) == [f"runs with what was in force when it started ({what}): systemctl restart {TRAIN}"]


@pytest.mark.parametrize(("invocation", "placed"), [("0102", "ok"), ("0103", "drift")])
def test_what_torchpard_has_moved_in_this_run_has_not_drifted(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, invocation: str, placed: str
) -> None:
    """What it gave an earlier run of the unit says nothing."""
    host.apply()
    host.start(TRAIN)
    host.systemd.properties[TRAIN]["InvocationID"] = [1, 2]
    (process,) = host.processes[TRAIN]
    host.processes[TRAIN] = (dataclasses.replace(process, threads={process.pid: CpuSet([2])}),)
    ranks = (GivenRank(CpuSet([2]), 1),), (GivenRank(CpuSet([2, 3]), 2),)
    given = Given(TRAIN, invocation, *ranks, since=0.0, why="train@b")
    monkeypatch.setattr(service, "read_given", lambda unit: given)
    assert brief(look(host))[1] == (TRAIN, "running", placed)


@pytest.mark.parametrize(
    ("properties", "state"),
    [
        ({"ActiveState": "activating", "SubState": "start-pre"}, "activating"),
        ({"ActiveState": "deactivating", "SubState": "stop-sigterm"}, "deactivating"),
        ({"ActiveState": "failed", "Result": "timeout"}, "failed"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, "restarting"),
        ({"LoadState": "masked"}, "masked"),
    ],
)
def test_the_state_of_a_service_is_told_in_a_word(host: FakeHost, properties: dict[str, Any], state: str) -> None:
    """systemd's, where it has one that people use."""
    host.apply()
    host.systemd.properties[TRAIN] = properties
    assert brief(look(host))[1] == (TRAIN, state, None)


def test_a_process_that_is_being_started_has_not_drifted(host: FakeHost) -> None:
    """It is executed before its libraries are loaded; later it has. To "torchpar verify", too."""
    host.apply()
    host.start(TRAIN)
    (process,) = host.processes[TRAIN]
    host.processes[TRAIN] = (dataclasses.replace(process, allocator="another"),)
    properties = host.systemd.properties[TRAIN]
    properties["ActiveEnterTimestampMonotonic"] = int(time.monotonic() * 1e6)
    row = look(host)["services"][1]
    assert (row["placed"], row["wrong"]) == ("unknown", [])
    (plan,) = (plan for plan in host.compile().services() if plan.unit == TRAIN)
    found = {**properties, "InvocationID": []}
    assert summary(verify_unit(plan, found, host.read_running_unit)) is Verdict.UNKNOWN
    properties["ActiveEnterTimestampMonotonic"] -= 60_000_000
    row = look(host)["services"][1]
    assert row["placed"] == "drift" and told(row)[0].startswith("does not run as planned (allocator)")
    assert summary(verify_unit(plan, {**found, **properties}, host.read_running_unit)) is Verdict.DRIFT


FAILED = {"ActiveState": "failed", "ExecMainPID": 7, "ExecMainStatus": 1, "ExecMainStartTimestamp": 50_000_000}
TRACE = ["Traceback (most recent call last):", '  File "/a.py", line 1', "ValueError: \x1b[2Jshapes", "torchpar: 1 s"]
# Of the run that began at the second 50, and of one before.
LINES = [*((40.0, line) for line in [*TRACE[:2], "KeyError: 1"]), *((60.0, line) for line in TRACE)]
SAID = "exit status 1: ValueError: \\x1b[2Jshapes; see: torchpar logs train@a"


def test_a_failure_is_wrong_and_says_why(host: FakeHost) -> None:
    """By the last exception of the run that failed, which is escaped; the journal is asked only where one has."""
    host.apply()
    assert look(host)["notices"] == host.journal.asked == []
    host.systemd.properties[TRAIN] = {**FAILED, "StateChangeTimestampMonotonic": 5_000_000}
    host.journal.lines[TRAIN] = LINES
    seen = look(host)
    row = seen["services"][1]
    assert row["failure"] == {"why": "exit status 1", "said": "ValueError: \\x1b[2Jshapes"}
    assert row["since_monotonic_seconds"] == 5
    assert told(row) == [f"has failed: {SAID}"] and seen["notices"] == [f"{TRAIN} has failed: {SAID}"]
    assert seen["wrong"] == [] and host.journal.asked == [TRAIN]


def test_a_start_that_the_guard_has_refused_is_a_failure(host: FakeHost) -> None:
    """The service was not begun, and systemd calls it inactive. Its next start says whether it still is."""
    guard = f"torchpar-guard@{TRAIN}"
    host.text = f"{TEXT}[Train a]\nService.EnvironmentFile=/etc/a\n"
    host.apply()
    assert look(host)["services"][1]["state"] == "stopped"
    ended = {"ExecMainPID": 7, "ExecMainCode": 1, "ExecMainStatus": 78, "Result": "exit-code"}
    host.systemd.properties[guard] = {"ActiveState": "failed", "StateChangeTimestampMonotonic": 5_000_000, **ended}
    host.journal.lines[TRAIN] = LINES
    row = look(host)["services"][1]
    assert (row["state"], row["since_monotonic_seconds"]) == ("failed", 5)
    ends = f"(to forget that: systemctl reset-failed {guard}); see: torchpar logs train@a"
    assert told(row) == [f"has failed: what systemd would open for it is not root's alone, or no file {ends}"]
    host.systemd.properties[guard] |= {"Result": "timeout", "ExecMainCode": 2, "ExecMainStatus": 15}
    why = "what systemd would open for it could not be looked at: it took too long to start or stop"
    assert told(look(host)["services"][1]) == [f"has failed: {why} {ends}"]
    host.text = TEXT
    host.apply()
    assert look(host)["services"][1]["state"] == "stopped"


def test_a_run_that_was_killed_has_no_last_words(host: FakeHost) -> None:
    """What it printed last says nothing of why."""
    host.apply()
    host.systemd.properties[TRAIN] = {**FAILED, "ExecMainCode": 2, "ExecMainStatus": 9, "Result": "signal"}
    host.journal.lines[TRAIN] = [(60.0, "epoch 3")]
    row = look(host)["services"][1]
    assert row["failure"] == {"why": "killed by SIGKILL", "said": None}
    host.systemd.properties[TRAIN] |= {"ExecMainStatus": 6}
    host.journal.lines[TRAIN] = [(60.0, "free(): invalid pointer")]
    assert look(host)["services"][1]["failure"] == {"why": "killed by SIGABRT", "said": "free(): invalid pointer"}


def test_a_crash_loop_is_wrong_while_it_runs_too(host: FakeHost) -> None:
    """One restart may be the cure, as of a malloc that did not fit: it is shown, and is not wrong."""
    host.apply()
    host.start(TRAIN)
    host.systemd.properties[TRAIN]["NRestarts"] = 9
    host.systemd.properties[TRAIN]["ExecMainStartTimestamp"] = 70_000_000
    host.journal.lines[TRAIN] = [*LINES, (80.0, "begins again")]
    host.journal.restarts = {TRAIN: 1}
    row = look(host)["services"][1]
    assert (row["restarts"], row["restarts_in_10_minutes"], row["wrong"]) == (9, 1, [])
    assert row["failure"]["said"].startswith("ValueError")
    host.journal.restarts = {TRAIN: 4}
    row = look(host)["services"][1]
    assert row["restarts_in_10_minutes"] == 4
    assert told(row) == [f"fails again and again: {SAID.replace('exit status 1', 'its last run failed')}"]
    host.journal.restarts = {}
    assert look(host)["services"][1]["wrong"] == [], "it was long ago"


def test_without_the_journal_a_loop_is_one_while_the_unit_is_restarted(host: FakeHost) -> None:
    """The number that systemd has is of all time since it was started by hand."""
    host.apply()
    host.start(TRAIN)
    host.systemd.properties[TRAIN]["NRestarts"] = 50
    host.journal.restarts = None
    row = look(host)["services"][1]
    assert (row["state"], row["restarts_in_10_minutes"], row["failure"], row["wrong"]) == ("running", None, None, [])
    host.systemd.properties[TRAIN] |= {"ActiveState": "activating", "SubState": "auto-restart", "MainPID": 0}
    row = look(host)["services"][1]
    assert (row["state"], row["restarts_in_10_minutes"]) == ("restarting", None)
    assert told(row)[0].startswith("fails again and again: ")


def test_what_is_set_beside_the_conf_is_wrong(host: FakeHost) -> None:
    """A mask, a start at boot that holds no CPUs, and a drop-in that wins."""
    host.text = TEXT.replace("Script=/a.py\nEnabled=yes", "Script=/a.py")
    host.apply()
    path = "/etc/systemd/system/torchpar-train@a.service.d/override.conf"
    ours = f"/run/systemd/generator/{TRAIN}.d/20-torchpar.conf"
    properties = {"LoadState": "masked", "UnitFileState": "enabled", "DropInPaths": [ours, path]}
    host.systemd.properties[TRAIN] = properties
    host.unit_files[path] = "[Service]\nCPUAffinity=0\nNice=5\n"
    assert told(look(host)["services"][1]) == [
        f"is masked, so nothing starts it: systemctl unmask {TRAIN}",
        "starts at boot by systemctl enable, and holds no CPUs: write Enabled=yes into [Train a] of the conf and apply"
        f" it, then: systemctl disable {TRAIN}",
        f"has CPUAffinity from {path}, which wins over the conf: write it into the conf and remove that file, then:"
        " systemctl daemon-reload",
    ]
    # One that is there before ours, or sets nothing of ours, or has gone again.
    for paths, text in (([path, ours], "CPUAffinity=0"), ([ours, path], "Nice=5"), ([ours, "/gone"], "")):
        host.systemd.properties[TRAIN] = {"DropInPaths": paths, "UnitFileState": "enabled-runtime"}
        host.unit_files[path] = text
        assert look(host)["services"][1]["wrong"] == []


def test_services_on_the_same_cpus_are_wrong_both(host: FakeHost) -> None:
    """Where they are, and not where they were planned to be; two that ask for it are left alone."""
    host.text = "[Host]\nReserveCores=0\n[Train a]\nScript=/a.py\n[Train b]\nScript=/b.py\n"
    host.apply()
    other = TRAIN.replace("@a", "@b")
    host.start(TRAIN)
    assert look(host)["notices"] == []
    host.start(other)
    first, second = look(host)["services"]
    assert told(first) == [
        "shares CPUs 0-3 with train@b: all are slower; stop the others, or write Enabled=yes or CPUs= of its own for"
        " each into the conf"
    ]
    assert told(second)[0].startswith("shares CPUs 0-3 with train@a")
    for unit, cpus in ((TRAIN, "0-1"), (other, "2-3")):
        (process,) = host.processes[unit]
        host.processes[unit] = (dataclasses.replace(process, threads={process.pid: CpuSet.parse(cpus)}),)
    assert not any("shares" in notice for notice in look(host)["notices"])
    host.processes = {}
    host.text = host.text.replace(".py\n", ".py\nCPUs=shared\n")
    host.apply()
    host.start(TRAIN)
    host.start(other)
    assert look(host)["notices"] == []


@pytest.mark.parametrize("idle", [True, False])
def test_what_is_lent_is_shared_with_nobody_until_its_owner_needs_it(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    """Where torchpard does not run, nobody takes it back then."""
    host.text = TEXT.replace("/a.py\n", "/a.py\nBorrow=yes\n").replace("/b.pt\n", "/b.pt\nLend=yes\n")
    host.apply()
    host.start(TRAIN)
    host.start(INFER)
    host.systemd.properties[TRAIN]["InvocationID"] = [1, 2]
    (process,), (other,) = host.processes[TRAIN], host.processes[INFER]
    own, lent = process.threads[process.pid], other.threads[other.pid]  # type: ignore[index]
    host.processes[TRAIN] = (dataclasses.replace(process, threads={process.pid: own | lent}),)
    ranks = (GivenRank(own | lent, 4),), (GivenRank(own, 2),)
    given = Given(TRAIN, "0102", *ranks, since=0.0, had=(own,), own=ranks[1], loans=(Loan(INFER, lent),))
    monkeypatch.setattr(service, "read_given", {TRAIN: given}.get)
    monkeypatch.setattr(service, "is_idle", {INFER: idle}.get)
    seen = look(host)
    assert [row["placed"] for row in seen["services"]] == ["ok", "ok"]
    assert bool(seen["notices"]) is not idle


def test_many_that_share_cpus_are_one_line_each(host: FakeHost) -> None:
    """Of the first few by name; a shared one among them has another cure."""
    names = [f"j{number}" for number in range(7)]
    sections = "".join(f"[Train {name}]\nScript=/x.py\n" for name in names)
    host.text = f"[Host]\nReserveCores=0\n{sections}CPUs=shared\n"
    host.apply()
    for name in names:
        host.start(TRAIN.replace("@a", f"@{name}"))
    rows = look(host)["services"]
    assert all(len(row["wrong"]) == 1 for row in rows)
    beside = "train@j1, train@j2, train@j3, train@j4 and 2 more"
    assert told(rows[0])[0].startswith(f"shares CPUs 0-3 with {beside}: all are slower")
    assert "CPUs=shared found none" in told(rows[6])[0]


def test_ad_hoc_jobs_are_listed(host: FakeHost) -> None:
    """And what they share CPUs with; they are in no generation, and nothing is wrong with that."""
    host.apply()
    host.start(TRAIN)
    job = "torchpar-run-x-7.service"
    host.systemd.runs[job] = "now"
    host.systemd.properties[job] = {"MainPID": 7}
    host.processes[job] = (dataclasses.replace(host.processes[TRAIN][0], pid=7, threads={7: CpuSet([3])}),)
    seen = look(host)
    row = seen["services"][-1]
    assert [row[key] for key in ("unit", "kind", "name", "cpus", "in_force")] == [job, "run", "x-7", "3", True]
    assert [line.partition(":")[0] for line in seen["notices"]] == [
        f"{TRAIN} shares CPUs 3 with run-x-7",
        f"{job} shares CPUs 3 with train@a",
    ]


def test_a_conf_that_changes_is_newer_and_one_that_is_broken_says_where(host: FakeHost) -> None:
    """What is in force stays; the first problem has its place, and the others are counted."""
    host.apply()
    host.text = TEXT.replace("ReserveCores=0", "ReserveCores=1\nAutoApply=yes")
    seen = look(host)
    assert (seen["conf"], seen["auto_apply"], seen["notices"]) == ("newer", True, [NEWER])
    host.text = f"{TEXT}Foo=1\nBar=2\n"
    seen = look(host)
    assert (seen["conf"], seen["auto_apply"]) == ("broken", False)
    assert seen["conf_problem"].startswith("at /etc/torchpar.conf:9: [Infer b] Foo=1: unknown key")
    assert seen["notices"] == [
        f"the conf is broken {seen['conf_problem']} (and 1 more; see: torchpar validate); generation 1 stays in force"
    ]
    host.text = f"{TEXT}CPUs=7\n"
    assert look(host)["conf"] == "broken", "one that does not fit this host would be refused, too"
    host.text = None
    assert look(host)["conf_problem"] == "at /etc/torchpar.conf: cannot be read"
    host.text = TEXT
    assert (look(host)["conf"], look(host)["notices"]) == ("in sync", [])


def test_a_conf_in_force_that_apply_would_refuse_now_is_broken(host: FakeHost) -> None:
    """What systemd opens may be another file than it was, and nobody has edited the conf. Nothing else is asked."""
    asked = []

    def refuse(config: Config) -> tuple[Problem, ...]:
        asked.append(config)
        return (Problem(Place("/etc/torchpar.conf", 9), "/etc/b.env: is a pipe (FIFO)"),)

    readers = dataclasses.replace(host.readers, find_refused_files=refuse)
    host.apply()
    host.readers = readers
    assert look(host)["conf"] == "in sync" and not asked
    host.text = f"{TEXT}Service.EnvironmentFile=/etc/b.env\n"
    host.apply()
    seen = look(host)
    assert (seen["conf"], seen["notices"]) == (
        "broken",
        ["the conf is broken at /etc/torchpar.conf:9: /etc/b.env: is a pipe (FIFO); generation 2 stays in force"],
    )
    host.readers = dataclasses.replace(readers, find_refused_files=lambda config: ())
    assert look(host)["conf"] == "in sync"


def test_a_host_whose_facts_cannot_be_read_has_a_conf_of_which_nothing_is_known(host: FakeHost) -> None:
    """Neither that it is broken nor that it fits."""

    def fail() -> None:
        raise FactsError("/sys: shows no machine")

    host.apply()
    host.text = f"{TEXT}# newer\n"
    host.readers = dataclasses.replace(host.readers, read_facts=fail)
    seen = look(host)
    assert (seen["conf"], seen["notices"]) == ("unknown", ["/sys: shows no machine"])


@pytest.mark.parametrize(
    ("host_cpus", "tries", "said"),
    [
        (
            "0-2",
            1,
            "is placed for CPUs 0-2 of this host, which had CPUs 0-3, since its start had failed: its CPUs cannot be"
            " set (CPU affinity); it goes back when they are back",
        ),
        (
            "0-3",
            2,
            "runs without what systemd could not set, since its start had failed: its CPUs cannot be set (CPU"
            " affinity); until this host boots, or has other CPUs or memory nodes",
        ),
        ("0-3", 1, None),
    ],
)
def test_what_runs_on_less_than_it_had_is_marked(
    host: FakeHost, host_cpus: str, tries: int, said: str | None
) -> None:
    """Not where a placement for the host as it is was all that it took."""
    host.apply()
    host.start(TRAIN)
    before, now = ({"cpus_online": cpus, "nodes_online": "0"} for cpus in ("0-3", host_cpus))
    fallback = Fallback(before, now, 1, (Fallen(TRAIN, 215, "run", tries),))
    host.readers = dataclasses.replace(host.readers, read_fallback=lambda: fallback)
    seen = look(host)
    (row,) = (row for row in seen["services"] if row["unit"] == TRAIN)
    assert [wrong["text"] for wrong in row["wrong"] if wrong["what"] == "fallback"] == ([said] if said else [])
    assert seen["fallback"] and not row["misplaced"]


def test_a_generation_of_other_cpus_is_told(host: FakeHost) -> None:
    """Until a new one is made."""
    host.apply()
    host.manifest, host.facts = {"cpus_online": "0-1", "nodes_online": "0"}, make_host(cores_per_complex=2)
    (notice,) = look(host)["notices"]
    assert notice == "generation 1 was made for CPUs 0-3, this host has CPUs 0-1 now; make a new one: torchpar apply"
    host.apply()
    assert look(host)["notices"] == []


@pytest.mark.parametrize("damage", ["a link that leads nowhere", "another text", "a plan that is none"])
def test_a_damaged_store_does_not_say_that_services_are_out_of_force(host: FakeHost, damage: str) -> None:
    """It does not say that they are in force either: it is unknown, and the damage is told until it is mended."""
    path = host.apply().path
    host.start(TRAIN)
    if damage == "a plan that is none":
        with host.store.locked():
            host.store.activate(host.store.write(dataclasses.replace(host.compile(), plan="{")))
    if damage == "another text":
        (path / "plan.json").write_text("x")
    if damage == "a link that leads nowhere":
        path.rename(path.with_name("x"))
    seen = look(host)
    assert seen["services"] == []
    assert sum("damaged" in notice or "is not there" in notice for notice in seen["notices"]) == 1
    host.apply()
    assert brief(look(host))[1] == (TRAIN, "running", "ok")
    assert not any("damaged" in notice for notice in look(host)["notices"])


def test_a_link_that_goes_while_it_is_looked_at_ends_no_look(host: FakeHost) -> None:
    """Whoever changes the store does not wait for whoever looks at it; the services are shown as they were planned."""
    host.apply()
    host.start(TRAIN)
    manifest = host.manifest

    def meanwhile() -> dict[str, str]:
        host.store.link.unlink()
        return manifest

    host.readers = dataclasses.replace(host.readers, read_manifest=meanwhile)
    assert brief(look(host)) == [(INFER, "stopped", None), (TRAIN, "running", "ok")]


def test_a_systemd_that_does_not_answer_leaves_the_states_unknown(host: FakeHost) -> None:
    """What was planned is shown all the same."""
    host.apply()
    host.systemd.refuses = "list"
    seen = look(host)
    assert brief(seen) == [(INFER, "unknown", "unknown"), (TRAIN, "unknown", "unknown")]
    assert seen["notices"] == ["systemd does not answer"] * 3


def test_a_service_may_be_called_like_a_socket(tmp_path: Path) -> None:
    """The socket of what is in force is in force."""
    sockets = ("torchpar-infer@a.socket.socket", "torchpar-infer@b.socket")
    systemd = FakeSystemd(Store(tmp_path), runs=dict.fromkeys(sockets, ""))
    host = make_fake_host(tmp_path)
    around = Around(in_force_since=0.0, until=math.inf)
    known = {"torchpar-infer@a.socket.service"}
    _, wrong = observe.observe_undeclared(systemd, host.read_running_unit, known, around)
    assert [one["text"].partition(" ")[0] for one in wrong] == ["torchpar-infer@b.socket"]


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_an_exit_status_of_a_start_that_lacks_a_file_is_known_everywhere(kind: str) -> None:
    """The status says it in words, and systemd does not try again what only waiting for the file mends."""
    unit = Path(__file__).parents[3] / "systemd" / f"torchpar-{kind}@.service"
    (line,) = (line for line in unit.read_text().splitlines() if line.startswith("RestartPreventExitStatus="))
    assert {*LACKING} <= EXIT_CODES.keys() & {*map(int, line.partition("=")[2].split())}


def test_how_the_last_stop_went_and_how_many_ranks_there_should_be_is_known(host: FakeHost) -> None:
    """Of training jobs."""
    host.text = TEXT.replace("Script=/a.py", "Script=/a.py\nRanks=2\nNodes=2:3\nEndpoint=a\nElastic=yes")
    host.apply()
    readers = dataclasses.replace(host.readers, read_last_stop={"a": LastStop(7, 1)}.get)
    rows = {row["unit"]: row for row in observe.observe(host.store, host.systemd, readers)["services"]}
    assert (rows[TRAIN]["last_stop"], rows[TRAIN]["planned_world_size"]) == ({"seconds": 7, "forced": 1}, 6)
    assert (rows[INFER]["last_stop"], rows[INFER]["planned_world_size"]) == (None, None)


def test_when_a_job_has_saved_last_in_this_run_is_known(host: FakeHost) -> None:
    """Not of an earlier run, whose files are there still."""
    host.apply()
    host.start(TRAIN)
    began = time.time() - 1000
    host.systemd.properties[TRAIN] |= {"ExecMainStartTimestamp": began * 1e6, "WorkingDirectory": "!/srv/a"}
    found = {}
    readers = dataclasses.replace(host.readers, newest_checkpoint=found.get)
    for saved, age in ((began + 900, 100), (began - 5, None), (None, None), (began + 2000, 0)):
        found["/srv/a"] = None if saved is None else Checkpoint(saved, complete=False)
        rows = {row["unit"]: row for row in observe.observe(host.store, host.systemd, readers)["services"]}
        at = rows[TRAIN]["checkpoint_monotonic_seconds"]
        assert at is None if age is None else abs(time.monotonic() - at - age) < 60
        assert rows[TRAIN]["checkpoint_complete"] is (None if age is None else False)

"""What Prometheus reads: the names, the values, and that alerts, dashboard and manual page name no others."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from torchpar.daemon.metrics import FAMILIES, Sample, render_metrics
from torchpar.daemon.metrics_server import CONNECTIONS, MetricsServer
from torchpar.facts.counters import UnitCounters
from torchpar.host.clocks import TimeOfDay
from torchpar.verify.trouble import add_overlaps

TREE = Path(__file__).resolve().parents[3]
UNIT, OTHER = "torchpar-train@a.service", "torchpar-infer@b.service"
# Those of `torchpar doctor --format prom` are written by it.
OF_DOCTOR = {"torchpar_doctor_check_status", "torchpar_doctor_last_run_timestamp_seconds"}
NAMES = {f"torchpar_{family.name}" for family in FAMILIES} | OF_DOCTOR
NAME = re.compile(r"\btorchpar_[a-z_]+\b")


def service(unit: str, **changes: Any) -> dict[str, Any]:
    row = {
        "unit": unit, "in_force": True, "placed": "ok", "cpus": "0-3", "threads": [2, 2], "running_cpus": "0-3",
        "shared": False, "wrong": [], "torch": None, "memory_local_share": None, "checkpoint_age_seconds": None,
        "checkpoint_complete": None,
        "items": [{"what": "CPUs", "verdict": "ok"}, {"what": "memory policy", "verdict": "unknown"}],
        "state": "running",
        "throughput": None, "rank_states": [], "world_size": None, "planned_world_size": None, "last_stop": None,
    }  # fmt: skip
    return {**row, **changes}


def answer(*services: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"generation": 7, "conf": "in sync", "notices": ["x"], "services": list(services), **changes}


JOB = {
    "steps": 120, "steps_per_second": 2.5, "samples_per_second": 80.0, "loader_wait_share": 0.25, "silent_seconds": 1.5,
    "ranks": 2,
}  # fmt: skip
RANKS = [
    {"local_rank": 0, "affinity_ok": True, "memory_local_share": 0.5, "runnable_threads": 2},
    {"local_rank": 1, "affinity_ok": False, "memory_local_share": None, "runnable_threads": 0},
]
COUNTERS = UnitCounters("active", 3, 12.5, 40, 2**20, {"memory": 1.5})
WHOLE = Sample(
    "0.1.0",
    1700000000.5,
    answer(
        service(
            UNIT,
            throughput=JOB,
            torch="2.6.0+debian",
            memory_local_share=0.75,
            checkpoint_age_seconds=90.0,
            checkpoint_complete=False,
            rank_states=RANKS,
            world_size=4,
            planned_world_size=8,
            last_stop={"seconds": 7, "forced": 2},
            wrong=[{"what": "outdated", "text": "x"}],
            items=[{"what": "CPUs", "verdict": "ok"}, {"what": "memory policy", "verdict": "drift"}],
        ),
        service(OTHER, running_cpus="3-5", last_stop={"seconds": None, "forced": 0}),
    ),
    {UNIT: COUNTERS, OTHER: UnitCounters("active", 0)},
    1690000000.0,
    "0123456789ab",
    True,
    TimeOfDay(True, -0.0125, 0.75),
    (False, 1695000000.0),
)


def values(text: str) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_the_whole_of_it_is_what_was_said_of_host_services_and_jobs() -> None:
    found = values(render_metrics(WHOLE))
    unit = f'unit="{UNIT}"'
    assert found['torchpar_build_info{version="0.1.0"}'] == "1"
    assert found["torchpar_last_check_timestamp_seconds"] == "1700000000.5"
    assert found['torchpar_config_info{generation="7",sha256="0123456789ab"}'] == "1"
    assert found["torchpar_config_valid"] == found["torchpar_config_applied"] == "1"
    assert found[f"torchpar_unit_restarts_total{{{unit}}}"] == "3"
    assert found[f"torchpar_unit_affinity_ok{{{unit}}}"] == "1"
    assert found[f"torchpar_unit_memory_policy_ok{{{unit}}}"] == "0"
    assert found[f'torchpar_rank_threads{{{unit},local_rank="1"}}'] == "2"
    assert found[f'torchpar_unit_pressure_waiting_seconds_total{{{unit},resource="memory"}}'] == "1.5"
    assert found[f"torchpar_unit_shared_cpus{{{unit}}}"] == "1"
    assert found[f"torchpar_job_loader_wait_ratio{{{unit}}}"] == "0.25"
    assert found[f"torchpar_job_steps_total{{{unit}}}"] == "120"
    assert found[f"torchpar_restart_required{{{unit}}}"] == "1"
    assert found[f'torchpar_restart_required{{unit="{OTHER}"}}'] == "0"
    assert found[f'torchpar_unit_info{{{unit},torch="2.6.0+debian"}}'] == "1"
    assert found[f"torchpar_unit_memory_local_ratio{{{unit}}}"] == "0.75"
    assert found[f"torchpar_job_checkpoint_age_seconds{{{unit}}}"] == "90"
    assert found[f"torchpar_job_last_checkpoint_complete{{{unit}}}"] == "0"
    assert f'torchpar_job_last_checkpoint_complete{{unit="{OTHER}"}}' not in found
    assert found[f"torchpar_job_ranks{{{unit}}}"] == "2"
    assert found["torchpar_last_apply_success"] == "0"
    ranks = [found[f'torchpar_rank_affinity_ok{{{unit},local_rank="{rank}"}}'] for rank in (0, 1)]
    assert ranks == ["1", "0"]
    assert found[f'torchpar_rank_memory_local_ratio{{{unit},local_rank="0"}}'] == "0.5"
    assert found[f'torchpar_rank_runnable_threads{{{unit},local_rank="1"}}'] == "0"
    assert found[f"torchpar_job_world_size{{{unit}}}"] == "4"
    assert found[f"torchpar_job_world_size_expected{{{unit}}}"] == "8"
    assert found[f"torchpar_graceful_stop_seconds{{{unit}}}"] == "7"
    stops = [found[f'torchpar_graceful_stop_forced_total{{unit="{each}"}}'] for each in (UNIT, OTHER)]
    assert stops == ["2", "0"]
    assert f'torchpar_graceful_stop_seconds{{unit="{OTHER}"}}' not in found, "it was never stopped"
    assert found["torchpar_clock_offset_seconds"] == "-0.0125"
    assert found["torchpar_clock_max_error_seconds"] == "0.75"


def test_every_metric_is_among_them() -> None:
    """A family that nothing fills is a name without a metric."""
    told = {line.split()[2] for line in render_metrics(WHOLE).splitlines() if line.startswith("# TYPE")}
    assert told == {f"torchpar_{family.name}" for family in FAMILIES}


def test_without_torchpard_there_is_only_what_is_known_without_it() -> None:
    found = values(render_metrics(Sample("0.1.0", 1.0, None)))
    assert found["torchpar_torchpard_up"] == "0"
    assert not [name for name in found if "unit" in name or "config" in name]


@pytest.mark.parametrize(
    ("conf", "valid", "applied"),
    [("in sync", "1", "1"), ("newer", "1", "0"), ("broken", "0", "0"), ("unknown", None, None)],
)
def test_a_conf_is_valid_and_in_force_or_not(conf: str, valid: str | None, applied: str | None) -> None:
    found = values(render_metrics(Sample("0", 1.0, answer(conf=conf))))
    assert (found.get("torchpar_config_valid"), found.get("torchpar_config_applied")) == (valid, applied)


def test_a_service_that_drifts_or_is_out_of_force_is_not_in_sync() -> None:
    text = render_metrics(
        Sample("0", 1.0, answer(service("a", placed="drift"), service("b", in_force=False), service("c")))
    )
    assert [values(text)[f'torchpar_config_in_sync{{unit="{unit}"}}'] for unit in "abc"] == ["0", "0", "1"]


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ({}, {}, 4),
        ({}, {"running_cpus": "2-5"}, 2),
        ({"running_cpus": "0-1"}, {"running_cpus": "2-3"}, 0),
        ({}, {"running_cpus": ""}, 0),
        ({"shared": True}, {}, 4),
        ({"shared": True}, {"shared": True}, 0),
    ],
)
def test_cpus_are_shared_where_status_tells_of_an_overlap(
    one: dict[str, Any], other: dict[str, Any], common: int
) -> None:
    """Both are planned for the same CPUs; torchpard may have moved them apart, or one does not run."""
    rows = [service("a", **one), service("b", **other)]
    told = values(render_metrics(Sample("0", 1.0, answer(*rows))))
    assert told['torchpar_unit_shared_cpus{unit="a"}'] == str(common)
    assert ('torchpar_unit_shared_cpus{unit="b"}' in told) == bool(rows[1]["running_cpus"])
    for row in rows:
        row |= {"main_pid": 1, "wrong": []}
    add_overlaps(rows)
    assert bool(rows[0]["wrong"]) == bool(common)


def test_a_start_that_was_refused_is_a_failure_too() -> None:
    """systemd knows nothing of it: the unit has not begun."""
    counters = {UNIT: UnitCounters("inactive", 0), OTHER: UnitCounters("inactive", 0)}
    rows = answer(service(UNIT, state="failed"), service(OTHER, state="stopped"))
    found = values(render_metrics(Sample("0.1.0", 1.0, rows, counters)))
    assert [found[f'torchpar_unit_failed{{unit="{unit}"}}'] for unit in (UNIT, OTHER)] == ["1", "0"]


def test_an_older_torchpard_that_says_less_is_understood() -> None:
    """As while a package is upgraded: the timer goes on."""
    row = service("a")
    for key in ("checkpoint_complete", "rank_states", "world_size", "planned_world_size", "last_stop"):
        del row[key]
    assert render_metrics(Sample("0", 1.0, answer(row))) == render_metrics(Sample("0", 1.0, answer(service("a"))))


def test_a_name_cannot_break_out_of_its_label() -> None:
    text = render_metrics(Sample("0", 1.0, answer(service('x"} 1\ny\\\x1b'))))
    assert 'torchpar_config_in_sync{unit="x\\"} 1?y\\\\?"} 1\n' in text


@pytest.mark.subprocess
@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's prometheus")
def test_prometheus_own_checker_has_no_objection() -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=render_metrics(WHOLE), capture_output=True, text=True, timeout=300
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# ---- alerts, dashboard and manual page ----


def expressions() -> list[str]:
    dashboard = json.loads((TREE / "src/monitoring/torchpar-dashboard.json").read_text(encoding="utf-8"))
    variables = [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]
    return [*variables, *(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))]


def test_every_metric_of_the_dashboard_exists() -> None:
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert used and used <= NAMES


def test_every_panel_has_its_place_and_its_own_number() -> None:
    panels = json.loads((TREE / "src/monitoring/torchpar-dashboard.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = {(x, y) for panel in panels for x, y in cells(panel["gridPos"])}
    assert len(taken) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)


def cells(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]


def rules() -> str:
    return (TREE / "src/monitoring/torchpar.rules.yml").read_text(encoding="utf-8")


def test_every_metric_of_the_alerts_exists() -> None:
    used = {name for line in rules().splitlines() if not line.lstrip().startswith("#") for name in NAME.findall(line)}
    assert used and used <= NAMES


def test_every_alert_is_tested_with_and_without_its_fault() -> None:
    tests = (TREE / "tests/unit/daemon/torchpar.rules.test.yml").read_text(encoding="utf-8")
    for alert in re.findall(r"alert: (\w+)", rules()):
        parts = re.findall(rf"alertname: {alert}\n\s+exp_alerts:( \[\])?", tests)
        assert set(parts) == {"", " []"}, alert


def test_the_manual_page_has_every_metric_and_every_alert() -> None:
    page = (TREE / "debian/man/torchpar-metrics.7").read_text(encoding="utf-8").replace("\\-", "-")
    told = set(NAME.findall(page))
    assert NAMES <= told
    assert set(re.findall(r"alert: (\w+)", rules())) <= set(re.findall(r"Torchpar\w+", page))


@pytest.mark.subprocess
@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's prometheus")
def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    shutil.copy(TREE / "src/monitoring/torchpar.rules.yml", tmp_path)
    shutil.copy(TREE / "tests/unit/daemon/torchpar.rules.test.yml", tmp_path)
    tested = subprocess.run(
        ["promtool", "test", "rules", "torchpar.rules.test.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.subprocess
@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's prometheus")
def test_prometheus_can_parse_what_the_dashboard_asks(tmp_path: Path) -> None:
    asked = [re.sub(r"\$\w+", "x", each) for each in expressions() if not each.startswith("label_values")]
    lines = [f"      - record: r{number}\n        expr: {json.dumps(each)}\n" for number, each in enumerate(asked)]
    (tmp_path / "dashboard.yml").write_text("groups:\n  - name: dashboard\n    rules:\n" + "".join(lines))
    checked = subprocess.run(
        ["promtool", "check", "rules", "dashboard.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# ---- over HTTP ----


def test_the_server_answers_one_page_and_has_nothing_else() -> None:
    with MetricsServer(("127.0.0.1", 0), lambda: "a 1\n") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_address[1]}"
            with urllib.request.urlopen(f"{base}/metrics", timeout=300) as reply:
                assert reply.read() == b"a 1\n"
                assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{base}/etc/passwd", timeout=300)
            assert refused.value.code == 404
            refused.value.close()
        finally:
            server.shutdown()
            thread.join()


def test_who_says_nothing_takes_a_place_and_no_more_than_there_are() -> None:
    """Each connection is a thread; those of others who wait for nothing must not become thousands."""
    with MetricsServer(("127.0.0.1", 0), lambda: "a 1\n") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        held = []
        try:
            for _ in range(CONNECTIONS):
                held.append(socket.create_connection(server.server_address[:2]))
            with socket.create_connection(server.server_address[:2]) as one_more:
                one_more.settimeout(60)
                assert one_more.recv(1) == b""
        finally:
            for each in held:
                each.close()
            server.shutdown()
            thread.join()


def test_who_goes_on_saying_a_letter_is_cut_off() -> None:
    """Each read succeeds, and the request never ends."""
    with MetricsServer(("127.0.0.1", 0), lambda: "a 1\n", seconds=0.2) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with socket.create_connection(server.server_address[:2]) as client:
                client.settimeout(0.02)
                assert any(_is_cut_after_a_letter(client) for _ in range(1000))
        finally:
            server.shutdown()
            thread.join()


def _is_cut_after_a_letter(client: socket.socket) -> bool:
    try:
        client.send(b"G")
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_who_serves_them_is_a_member_of_the_group_that_torchpard_answers() -> None:
    """By the user database, as torchpard asks it: not a user that systemd makes up, and not that of jobs."""
    unit = (TREE / "systemd/torchpar-metrics-http.service").read_text(encoding="utf-8")
    (user,) = re.findall(r"^User=(\S+)$", unit, re.MULTILINE)
    users = (TREE / "systemd/torchpar.sysusers").read_text(encoding="utf-8")
    assert user != "torchpar" and re.search(rf"^m +{user} +torchpar$", users, re.MULTILINE)

"""`torchpar doctor`: its four formats, its exit statuses, and what it mends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from tests.unit.doctor.cases import CASES
from tests.unit.doctor.made import CONF, Made
from torchpar.cli import doctor as command
from torchpar.cli import textfile
from torchpar.cli.findings import as_json, as_nagios, as_prom, as_text, list_checks
from torchpar.cli.main import run
from torchpar.doctor.check import Result, all_checks, examine
from torchpar.doctor.host import Host

# The first of each check.
FAULTS = {case.check: case.fault for case in reversed(CASES)}


def results(folder: Path, *names: str, made: Made | None = None) -> tuple[Result, ...]:
    """Runs these checks, or all, on a host with the fault of the first."""
    host = (made or FAULTS[names[0]]).make(folder)
    return examine(host, [check for check in all_checks() if not names or check.name in names])


def shown(found: tuple[Result, ...]) -> str:
    """What stands in a pipe, to which click writes no colours."""
    return click.unstyle(as_text(found))


def on(monkeypatch: pytest.MonkeyPatch, folder: Path, made: Made) -> None:
    """Lets the command look at a made-up host."""
    host: Host = made.make(folder)
    monkeypatch.setattr(command, "read_host", lambda root: host)


def test_what_fails_comes_first_and_what_passed_is_named(tmp_path: Path) -> None:
    text = shown(results(tmp_path, "blas.alternative", "kern.overcommit", "obs.journal"))
    assert text.splitlines() == [
        "FAIL     blas.alternative: the reference BLAS is in force: matrices are",
        "         multiplied 14 to 50 times slower than they could be",
        "         seen:   /etc/alternatives/libblas.so.3-x86_64-linux-gnu ->",
        "                 /usr/lib/x86_64-linux-gnu/blas/libblas.so.3",
        "         source: measured on two cores, 1024² float32: libblas3 4.5 GFLOP/s,",
        "                 libopenblas0-openmp 65 (Debian 12), 243 (13)",
        "         run:    apt-get install --yes libopenblas0-openmp && for name in"
        " libblas.so.3 liblapack.so.3 libopenblas.so.0; do update-alternatives --set"
        " $name-x86_64-linux-gnu /usr/lib/x86_64-linux-gnu/openblas-openmp/$name; done",
        "",
        "note     obs.journal: the journal is gone after a restart of the host, and with",
        "         it why a job has failed",
        "         seen:   there is no /var/log/journal",
        "         source: journald.conf(5): Storage=auto keeps it where /var/log/journal",
        "                 is there",
        "         cure:   mkdir /var/log/journal && systemd-tmpfiles --create --prefix",
        "                 /var/log/journal && journalctl --flush",
        "",
        "1 check passed:",
        "  kern.overcommit",
        "",
        "1 failed, 1 noted",
    ]


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_no_line_but_a_command_is_longer_than_80_columns(name: str, tmp_path: Path) -> None:
    for line in (*shown(results(tmp_path, name)).splitlines(), *click.unstyle(list_checks(all_checks())).splitlines()):
        assert len(line) <= 80 or " run:" in line or " " not in line.strip(), line


def test_what_is_not_for_this_host_says_why(tmp_path: Path) -> None:
    (result,) = results(tmp_path, "rdma.closed", made=Made())
    assert result.findings[0].found == "only where this host has an RDMA device and a job of several hosts"
    assert shown((result,)) == "1 check for what this host does not have:\n  rdma.closed\n\nnothing to mend"


def test_a_host_without_a_service_has_a_summary_that_says_what_was_looked_at(tmp_path: Path) -> None:
    """What waits for a service is not called unfit for the host."""
    text = shown(results(tmp_path, made=Made(conf="")))
    assert re.search(r"\d checks passed:\n  cfg.doubts cfg.sync cfg.valid ", text), text
    waiting = re.search(r"(\d+) checks for services that are not declared here, or do not run:\n((?:  .*\n)+)", text)
    assert waiting and int(waiting[1]) > 40, text
    assert {"aff(4)", "cg(5)", "unit(5)", "time.sync"} <= set(waiting[2].split())
    lacking = re.search(r"\d checks for what this host does not have:\n((?:  .*\n)+)", text)
    assert lacking and "kern.thermal" in lacking[1] and "mem." not in lacking[1], text


def test_json_has_evidence_source_and_cure(tmp_path: Path) -> None:
    data = as_json(results(tmp_path, "kern.overcommit", "cfg.valid"))
    assert data["status"] == "warn"
    assert [check["status"] for check in data["checks"]] == ["ok", "warn"]
    finding = data["checks"][1]["findings"][0]
    (command,) = finding["commands"]
    assert "vm.overcommit_memory = 0" in command and finding["evidence"] and data["checks"][1]["source"]


def test_nagios_has_a_status_and_performance_data_on_its_first_line(tmp_path: Path) -> None:
    first = as_nagios(results(tmp_path, "blas.alternative", "cfg.valid")).splitlines()[0]
    assert re.fullmatch(r"TORCHPAR CRITICAL - blas.alternative: the ref[^|]* \| fail=1 warn=0 unknown=0", first)
    assert as_nagios(results(tmp_path / "x", made=Made(conf=""))).startswith("TORCHPAR OK - ")


def test_prometheus_gets_a_number_for_each_check(tmp_path: Path) -> None:
    text = as_prom(results(tmp_path, "blas.alternative", "cfg.valid"))
    assert 'torchpar_doctor_check_status{check="blas.alternative"} 2\n' in text
    assert 'torchpar_doctor_check_status{check="cfg.valid"} 0\n' in text


@pytest.mark.parametrize(
    ("name", "arguments", "status"),
    [
        ("blas.alternative", [], 1),
        ("kern.overcommit", [], 0),
        ("kern.overcommit", ["--strict"], 1),
        ("lim.visible", [], 3),
        ("obs.journal", ["--strict"], 0),
        ("blas.alternative", ["--format", "nagios"], 2),
        ("kern.overcommit", ["--format", "nagios"], 1),
        ("lim.visible", ["--format", "nagios"], 3),
        ("obs.journal", ["--format", "nagios"], 0),
        ("blas.alternative", ["--format", "prom"], 1),
    ],
)
def test_the_exit_status_says_how_bad_it_is(
    name: str, arguments: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, tmp_path, FAULTS[name])
    assert run(["doctor", "--only", name, *arguments]) == status


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("colour", "colour; see: torchpar doctor --list"),
        ("blas.alternatives", "blas.alternatives; did you mean blas.alternative?"),
        ("netw", "netw; did you mean net?"),
    ],
)
def test_a_mistyped_check_is_a_usage_error(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--only", typed]) == 64
    assert f"no check is called {said}" in capsys.readouterr().err


def test_a_group_of_checks_can_be_chosen_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(monkeypatch, tmp_path, Made())
    run(["doctor", "--json", "--only", "shm,cfg", "--skip", "cfg.cpus,shm.size"])
    names = [check["check"] for check in json.loads(capsys.readouterr().out)["checks"]]
    assert names == ["cfg.doubts", "cfg.nccl_conf", "cfg.sync", "cfg.unused", "cfg.valid", "shm.leftovers"]


def test_fix_runs_the_commands_of_faults_and_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    hosts = iter([FAULTS["kern.overcommit"].make(tmp_path / "a"), Made().make(tmp_path / "b")])
    monkeypatch.setattr(command, "read_host", lambda root: next(hosts))
    monkeypatch.setattr(command, "require_root", lambda what: None)
    monkeypatch.setattr(command, "run_shown", lambda line: ran.append(line) or 0)
    assert run(["doctor", "--only", "kern.overcommit", "--fix", "--yes"]) == 0
    assert len(ran) == 1 and "vm.overcommit_memory = 0" in ran[0]
    assert "1 check passed" in capsys.readouterr().out


def test_fix_does_nothing_that_was_not_answered_with_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    on(monkeypatch, tmp_path, FAULTS["kern.overcommit"])
    monkeypatch.setattr(command, "_check_fix", lambda *arguments: None)
    monkeypatch.setattr(command.click, "confirm", lambda question: False)
    monkeypatch.setattr(command, "run_shown", lambda line: ran.append(line) or 0)
    run(["doctor", "--only", "kern.overcommit", "--fix"])
    assert not ran


def test_fix_without_a_terminal_asks_for_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "require_root", lambda what: None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert run(["doctor", "--fix"]) == 64
    assert "--fix --yes" in capsys.readouterr().err


def test_what_a_file_is_named_does_not_reach_the_terminal(tmp_path: Path) -> None:
    made = Made(problems=("/etc/torchpar.conf:1: \x1b]0;x\x07 \u202e",), conf=CONF)
    text = shown(results(tmp_path, "cfg.valid", made=made))
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b" in text


def test_a_textfile_of_checks_is_written_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is in the file; the service that writes it has not failed."""
    on(monkeypatch, tmp_path / "host", FAULTS["blas.alternative"])
    monkeypatch.setattr(textfile, "configured_metrics", lambda: "textfile")
    assert run(["doctor", "--only", "blas.alternative", "--textfile", str(tmp_path)]) == 0
    assert 'check="blas.alternative"} 2' in (tmp_path / "torchpar-doctor.prom").read_text()
    monkeypatch.setattr(textfile, "configured_metrics", lambda: "no")
    assert run(["doctor", "--only", "blas.alternative", "--textfile", str(tmp_path)]) == 0
    assert not (tmp_path / "torchpar-doctor.prom").exists()

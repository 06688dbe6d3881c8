"""Many hosts from their facts: what each would run, what is said first, and that no bad input is passed over."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hosts import exported, make_gpu, make_host
from torchpar.cli.main import run
from torchpar.contract.typed_json import Text
from torchpar.facts.topology import HostFacts
from torchpar.fleet.host import HostPlan, Planner
from torchpar.plan.export import Export, UnitsInForce, Versions

VERSIONS = Versions({"torchpar": "0.1.0", "python3-torch": "2.6.0"}, {"/usr/bin/python3": "2.6.0"}, "openblas-openmp")

CONF = "[Train a]\nScript=/a.py\nEnabled=yes\n[Infer b]\nModel=/b.pt\nEnabled=yes\n"

Said = tuple[int, str, str]


def named(name: str, **changes: Any) -> HostFacts:
    """A host of four cores with a name."""
    return dataclasses.replace(make_host(), hostname=name, **changes)


class Place:
    """A folder with a conf and facts, and the commands on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.facts, self.conf, self.capsys = folder / "facts", folder / "conf", capsys
        self.facts.mkdir()
        (self.conf / "torchpar.conf.d").mkdir(parents=True)
        self.write("torchpar.conf", CONF)

    def write(self, name: str, text: str) -> None:
        """Writes a file of the conf."""
        (self.conf / name).write_text(text)

    def add(self, name: str, **rest: Any) -> None:
        """Adds a host."""
        facts = rest.pop("facts", {})
        (self.facts / f"{name}.json").write_text(exported(named(name, **facts), **{"versions": VERSIONS, **rest}))

    def say(self, *command: str) -> Said:
        """Runs a command on the fleet."""
        status = run(["fleet", *command, "--facts", str(self.facts), "--config", str(self.conf)])
        return (status, *self.capsys.readouterr())

    def data(self, command: str) -> dict[str, Any]:
        """Runs a command on the fleet and reads its JSON, which is one line and more."""
        status, out, err = self.say(command, "--json")
        answer: dict[str, Any] = json.loads(out)
        assert answer["exit_status"] == status and not err
        return answer


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    """A fleet that has no hosts yet."""
    monkeypatch.delenv("COLUMNS", raising=False)
    return Place(tmp_path, capsys)


def test_each_host_is_shown_with_what_it_would_run(place: Place) -> None:
    """A line for each that a program can search, and JSON with all of it."""
    for name in ("n2", "n1"):
        place.add(name)
    assert place.say("plan") == (
        0,
        "  n1  4 cores, quality 1.00, 5 changes; infer@b on 1-2, train@a on 3\n"
        "  n2  4 cores, quality 1.00, 5 changes; infer@b on 1-2, train@a on 3\n"
        "2 hosts, 4 services\n",
        "",
    )
    hosts = place.data("plan")["hosts"]
    assert [host["name"] for host in hosts] == ["n1", "n2"] and hosts[0]["services"][1]["cpus"] == "3"


@pytest.mark.subprocess
def test_more_hosts_than_a_process_gets_are_the_same(place: Place) -> None:
    """Whether they are planned here or in processes, alike or not; in the order of their names."""
    for number in range(40):
        place.add(f"n{number:02}", facts={"memory_bytes": 2**34 + 4096 * (number % 3)})
    answer = place.data("plan")
    assert [host["name"] for host in answer["hosts"]] == [f"n{number:02}" for number in range(40)]
    assert len({json.dumps(host["services"]) for host in answer["hosts"]}) == 1


def test_what_a_host_has_in_force_is_compared(place: Place) -> None:
    """Each change once with the hosts that have it, what runs and would restart, and 2 as the exit status."""
    place.write("torchpar.conf", "[Train a]\nScript=/a.py\nEnabled=yes\nThreads=1\n")
    rendered = run(["render", "--json", "--facts", str(make_facts(place)), "--config", str(place.conf)])
    made = json.loads(place.capsys.readouterr().out)
    assert rendered == 0
    files = {path: Text(text) for path, text in made["files"].items()}
    in_force = UnitsInForce(3, files, made["links"], ("torchpar-train@a.service",))
    for name in ("n1", "n2", "n3"):
        place.add(name, in_force=in_force)
    assert place.say("diff")[0] == 0 and place.say("check")[0] == 0
    place.write("torchpar.conf", "[Train a]\nScript=/a.py\nEnabled=yes\nThreads=2\n")
    status, out, _ = place.say("diff")
    assert status == 2 and place.say("check")[0] == 2 and place.say("plan")[0] == 0
    assert "  n1, n2, n3: train@a: " in out and "Threads 1 → 2" in out and out.count("train@a") == 1
    assert "it is running there, and gets this when it restarts" in out
    assert out.endswith("3 hosts of 3 would change, 3 running services would have to restart\n")
    (change,) = place.data("diff")["hosts"][0]["changes"]
    assert change["restart_required"] and change["name"] == "torchpar-train@a.service"


def test_what_runs_with_older_settings_is_counted_where_nothing_changes(place: Place) -> None:
    """An apply that restarts nothing leaves it so."""
    unit = "torchpar-train@a.service"
    place.add("n1", in_force=UnitsInForce(1, {}, {}, (unit,), (unit,)))
    place.write("torchpar.conf", "[Host]\n")
    status, out, _ = place.say("diff")
    assert status == 0 and out.endswith(" 1 running service would have to restart\n")
    assert "warning: n1: train@a is running with older settings than are in force, until it restarts" in out


def make_facts(place: Place) -> Path:
    """The facts of a host, beside the fleet."""
    file = place.conf / "facts"
    file.write_text(exported(named("n"), versions=VERSIONS))
    return file


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ({"facts": {"libraries": ()}}, "no tcmalloc nor jemalloc is installed"),
        ({"versions": dataclasses.replace(VERSIONS, blas="blas")}, "the reference BLAS is in force"),
        ({"versions": dataclasses.replace(VERSIONS, torch={"/usr/bin/python3": None})}, "has no torch"),
        ({"facts": {"cpu_limit": 1.0}}, "warning: n0: "),
        ({"problems": ("the conf of the host is invalid: /etc/torchpar.conf:1: x",)}, "n0: the conf of the host is "),
        ({"exported_at": 0}, "n0: the facts are 30 days older than the newest"),
        (
            {"versions": dataclasses.replace(VERSIONS, packages={"torchpar": "0.1.0~rc1"})},
            "torchpar has 2 versions, the oldest first: 0.1.0~rc1 on n0; 0.1.0 on n1, n2",
        ),
        ({"in_force": UnitsInForce(1, {}, {}, None)}, "systemd did not say what runs"),
    ],
)
def test_warnings_come_first_with_their_hosts(place: Place, host: dict[str, Any], said: str) -> None:
    """They are no failure."""
    for number in range(3):
        place.add(f"n{number}", **(host if number == 0 else {}))
    status, out, err = place.say("plan")
    first, _, rest = out.partition("\n\n")
    assert (status, err) == (0, "") and said in first and "warning: " in first and "  n1  4 cores" in rest


def test_a_plan_that_is_poor_is_named(place: Place) -> None:
    """Below 0.85 of what its services could have."""
    place.write("torchpar.conf", "[Train a]\nScript=/a.py\nEnabled=yes\nThreads=1\n")
    place.add("n")
    assert "n: its services have only 0.33 of what they could have of it (good is 0.85)" in place.say("plan")[1]


def test_files_and_hosts_that_miss_each_other_are_named(place: Place) -> None:
    """A [Match] that fits no host, a host that none fits, and one that is named and has no facts."""
    place.write("torchpar.conf", "[Host]\n")
    place.write("torchpar.conf.d/10.conf", f"[Match]\nHost=n1 gone\n{CONF}")
    place.write("torchpar.conf.d/20.conf", f"[Match]\nGPUs=>= 8\n{CONF}")
    place.add("n1")
    place.add("n2")
    status, out, _ = place.say("plan")
    assert status == 3
    first = "! gone: /etc/torchpar.conf.d/10.conf: [Match] Host= names it, and there are no facts of it"
    assert out.splitlines()[0] == first
    assert "warning: /etc/torchpar.conf.d/20.conf: its [Match] fits none of these hosts\n" in out
    assert "warning: n2: no file with a [Match] is for it\n" in out
    assert "warning: n2: no service is declared for it\n" in out
    # A load balancer would never ask it.
    status, out, err = place.say("haproxy")
    assert (status, out) == (3, "") and first.removeprefix("! ") in err


def damage(place: Place) -> dict[str, str]:
    """Puts what is no facts among them; returns what is to be said of each file."""
    facts, whole = place.facts, exported(named("x"))
    texts = {
        "cut.json": (whole[:500], "is not JSON"),
        "deep.json": ("[" * 100_000, "nested too deep"),
        "new.json": (whole.replace('"format": 1', '"format": 2'), "has format 2, of a newer torchpar"),
        "old.json": (whole.replace('"format": 1, ', ""), "was exported by an older torchpar"),
        "escape.json": (whole.replace('"hostname": "x"', '"hostname": "\\u001b[2J"'), "has a letter that no text has"),
        "odd\x1b[2J.json": ("{}", "odd\\x1b[2J.json: is not the facts of a host"),
        "large.json": ("0" * (2**24 + 1), "is larger than 16384 KiB"),
        "README": ("facts of all", "is not JSON"),
    }
    for name, (text, _) in texts.items():
        (facts / name).write_text(text)
    (facts / ".hidden").write_text("{}")
    (facts / "gone.json").symlink_to("/nowhere")
    (facts / "below").mkdir()
    (facts / "below/empty.json").write_text("")
    return {name: said for name, (_, said) in texts.items()} | {"gone.json": "No such file", "empty.json": "not JSON"}


@pytest.mark.subprocess
def test_no_bad_facts_are_passed_over_and_none_stop_the_others(place: Place) -> None:
    """Each is named with what is wrong, nothing reaches a terminal unescaped, and the exit status is 3."""
    for number in range(12):
        place.add(f"n{number:02}")
    said = damage(place)
    for command in ("plan", "diff", "check"):
        status, out, err = place.say(command)
        assert (status, err) == (3, "") and "\x1b" not in out
        for name, what in said.items():
            (line,) = [line for line in out.splitlines() if name.encode("unicode_escape").decode() in line]
            assert line.startswith("! ") and what in line
        assert "12 hosts" in out and ".hidden" not in out
    errors = [host for host in place.data("plan")["hosts"] if host["errors"]]
    assert len(errors) == len(said) and {host["exit_status"] for host in errors} == {3}


def test_a_bug_with_one_host_does_not_stop_the_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of that host, with what is to be reported."""
    place.add("n1")
    place.add("n2")
    plan = Planner.plan

    def fail(planner: Planner, file: str, export: Export) -> HostPlan:
        if file == "n1.json":
            raise ValueError("empty\x1b[2J")
        return plan(planner, file, export)

    monkeypatch.setattr(Planner, "plan", fail)
    for command in ("plan", "diff", "check"):
        status, out, err = place.say(command)
        assert (status, err) == (3, "") and "1 host" in out
        said = "! n1.json: cannot be planned, which is a bug of torchpar: ValueError: empty\\x1b[2J (test_fleet.py:"
        assert said in out


def test_two_hosts_of_one_name_are_named(place: Place) -> None:
    """Nobody knows which of them is the host."""
    place.add("n1")
    (place.facts / "copy.json").write_text((place.facts / "n1.json").read_text())
    said = "n1: 2 files are the facts of a host of this name: copy.json, n1.json; "
    status, out, _ = place.say("check")
    assert status == 3 and f"! {said}" in out
    status, out, err = place.say("haproxy")
    assert (status, out) == (3, "") and said in err


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ("[Train a]\nScript=/a.py\nThreds=2\n", "! n1, n2: /etc/torchpar.conf:3: "),
        ("[Train a]\nScript=/a.py\nCPUs=9\nEnabled=yes\n", "! n1, n2: /etc/torchpar.conf:3: "),
    ],
)
def test_a_conf_that_fits_no_host_is_an_error_of_the_conf(place: Place, conf: str, said: str) -> None:
    """Once, with all hosts; a host that it fits goes on."""
    place.add("n1")
    place.add("n2")
    place.write("torchpar.conf", conf)
    for command in ("plan", "diff", "check"):
        status, out, _ = place.say(command)
        assert status == 78 and said in out
    place.write("torchpar.conf.d/9.conf", "[Match]\nHost=n2\n[Train a]\nCPUs=\nThreds=\n")
    status, out, _ = place.say("plan")
    assert status == 78 and "! n1" in out


def test_no_facts_and_no_conf_are_said(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what to do."""
    status, _, err = place.say("plan")
    assert status == 3 and err.endswith("facts: has no facts in it; on each host: torchpar facts\n")
    place.add("n")
    assert run(["fleet", "plan", "--facts", str(place.facts), "--config", str(tmp_path / "nowhere")]) == 78
    assert run(["fleet", "plan", "--facts", str(tmp_path / "nowhere")]) == 3
    assert run(["fleet", "plan"]) == 64 and run(["fleet", "plna"]) == 64
    assert "did you mean plan?" in capsys.readouterr().err


def nodes(count: int, more: str = "") -> str:
    """A job of so many hosts."""
    return f"[Train big]\nScript=/a.py\nEnabled=yes\nNodes={count}\nEndpoint=n1\n{more}"


def worse(place: Place, number: int, **rest: Any) -> Callable[[], None]:
    """Replaces a host by one that does not fit."""
    return lambda: place.add(f"n{number}", **rest)


def test_parts_of_a_job_that_fit_are_said_to(place: Place) -> None:
    """With where they meet."""
    place.write("torchpar.conf", nodes(3))
    for number in (1, 2, 3):
        place.add(f"n{number}")
    status, out, _ = place.say("check")
    assert status == 2 and "  train@big: 3 hosts fit: n1, n2, n3; they meet at n1:" in out and "torch 2.6.0" in out
    assert place.data("check")["jobs"] == [{"service": "train@big", "hosts": ["n1", "n2", "n3"], "problems": []}]


@pytest.mark.parametrize(
    ("hostname", "endpoint", "fits"),
    [
        ("n1", "n1.example.org", True),
        ("n1.example.org", "N1", True),
        ("n1.example.org", "n1.example.org", True),
        ("n1.example.org", "n1.example.com", False),
        ("n1", "n10.example.org", False),
        ("192", "192.0.2.7", False),
    ],
)
def test_a_host_is_called_by_its_name_with_and_without_the_domain(
    place: Place, hostname: str, endpoint: str, fits: bool
) -> None:
    """Debian has the short one in /etc/hostname; an address is no name."""
    place.write("torchpar.conf", nodes(2).replace("=n1", f"={endpoint}:29500"))
    place.add(hostname)
    place.add("n2")
    assert ("is none of its hosts" not in place.say("check")[1]) is fits


@pytest.mark.parametrize(
    ("conf", "change", "said"),
    [
        (nodes(4), {}, "Nodes=4, and 3 of these hosts have it: n1, n2, n3"),
        (nodes(2), {}, "Nodes=2, and 3 hosts have it: n1, n2, n3"),
        (nodes(3).replace("=n1", "=head:29500"), {}, "Endpoint=head:29500: head is none of its hosts"),
        (
            nodes(3),
            {"versions": dataclasses.replace(VERSIONS, torch={"/usr/bin/python3": "2.10.0"})},
            "the version of torch differs between its hosts: 2.6.0 on n1, n2; 2.10.0 on n3",
        ),
        (
            nodes(3),
            {"versions": dataclasses.replace(VERSIONS, packages={"torchpar": "0.1.0~rc1"})},
            "the version of torchpar differs between its hosts: 0.1.0~rc1 on n3; 0.1.0 on n1, n2",
        ),
        (
            nodes(3, "Ranks=gpu\n"),
            {"facts": {"gpus": (make_gpu(0, 0), make_gpu(1, 0))}},
            "the number of ranks differs between its hosts: 1 on n1, n2; 2 on n3",
        ),
        (nodes(3, "Interface=ib0\n"), {}, "Interface=ib0: is not there on n3"),
        (
            nodes(3, "Interface=ib0\n"),
            {"facts": {"nics": (dataclasses.replace(make_gpu(9, 0), class_code="0x020000", netdevs=("ib0",)),)}},
            "Interface= is of other kinds on its hosts: Ethernet on n3; InfiniBand on n1, n2",
        ),
        (
            nodes(3) + "[Train other]\nScript=/b.py\nNodes=3\nEndpoint=192.0.2.1:26000\n",
            {},
            "train@other: Endpoint=192.0.2.1:26000: train@big meets on that port of n1 too",
        ),
        (
            nodes(3) + "[Infer web]\nModel=/b.pt\nListen=0.0.0.0:26000\n",
            {},
            "Endpoint=n1:26000: infer@web listens on that port of n1",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(place: Place, conf: str, change: dict[str, Any], said: str) -> None:
    """With the hosts; and 1 is the exit status of `check` alone."""
    if "26000" in conf:
        conf = conf.replace("Endpoint=n1\n", "Endpoint=n1:26000\n")
    place.write("torchpar.conf", conf)
    fast = dataclasses.replace(make_gpu(9, 0), class_code="0x020700", netdevs=("ib0",))
    for number in (1, 2, 3):
        facts = {"gpus": (make_gpu(0, 0),)} if "gpu" in conf else {"nics": (fast,) if number < 3 else ()}
        rest = {"facts": facts, **(change if number == 3 else {})}
        place.add(f"n{number}", addresses={"eth0": (f"192.0.2.{number}",)}, **rest)
    status, out, _ = place.say("check")
    assert status == 1 and any(said in line and line.startswith("! train@") for line in out.splitlines()), out
    assert place.say("plan")[0] == 0

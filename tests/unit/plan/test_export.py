"""The facts of a host, exported and read again: the same, or a message that says what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hosts import exported, make_gpu, make_host
from torchpar.cli import facts as facts_command
from torchpar.cli.main import run
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import FactsError
from torchpar.contract.typed_json import Text
from torchpar.facts.topology import Held
from torchpar.fleet.host import Planner
from torchpar.plan.export import FORMAT, Export, UnitsInForce, Versions, export_json, parse_export
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict

WHOLE = Export(
    dataclasses.replace(make_host(gpu_nodes=(0,)), in_force={"torchpar-train@a.service": Held(make_host().cores[0])}),
    1_700_000_000,
    Versions({"torchpar": "0.1.0"}, {"/usr/bin/python3": "2.6.0", "/x": None}, "openblas-openmp"),
    {"eth0": ("192.0.2.1", "2001:db8::1")},
    UnitsInForce(
        7,
        {"torchpar-train@a.service.d/20-torchpar.conf": Text("[Service]\nNice=1\n")},
        {},
        ("a.service", "b.service"),
        ("a.service",),
    ),
    {
        Identity("a", None, ("video",)): Found(False, ("video",), {}),
        Identity(None): Found(
            answers={
                Question("/srv/a.py", Need.SCRIPT): Answer(Verdict.FOREIGN, "/srv", 0o777, "a", way=("/x",)),
                Question("/srv/a.py", Need.OWN_CODE): Answer(Verdict.MISSING, "/srv/a.py"),
            }
        ),
    },
    ("the conf of the host is invalid: /c:1: x",),
)


@pytest.mark.parametrize("export", [WHOLE, Export(make_host(), 0)])
def test_what_is_exported_is_read_the_same(export: Export) -> None:
    """Facts, versions, addresses, what is in force, and answers."""
    text = json.dumps(export_json(export))
    assert parse_export(text) == export and json.loads(text)["hostname"] == "host"


@pytest.mark.parametrize("wrapping", [("torchpar",), ("ansible_facts", "ansible_local", "torchpar")])
def test_facts_are_read_as_others_hand_them_on(wrapping: tuple[str, ...]) -> None:
    """Facter, and `ansible -m setup --tree`."""
    data = export_json(WHOLE)
    for name in reversed(wrapping):
        data = {name: data, "changed": False}
    assert parse_export(json.dumps(data)) == WHOLE
    with pytest.raises(FactsError, match="is not the facts of a host"):
        parse_export(json.dumps({wrapping[0]: [data]}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}, of a newer torchpar; this one reads {FORMAT}: "),
        ({"format": 0}, "has format 0, of an older torchpar; "),
        ({"format": None}, "was exported by an older torchpar; upgrade that host"),
        ({"format": "1"}, "is not the facts of a host; "),
        ({"generation": {"number": "1"}}, "generation.number: '1' is not what is expected there; "),
        ({"found": [{**export_json(WHOLE)["found"][1], "answers": [{}]}]}, "found[0].answers[0]: field "),
        ({"versions": {"packages": {"a": "\x1b]0;x"}}}, "versions.packages.a: has a letter that no text has: \\x1b; "),
        ({"hostname": "\x1b[2J"}, "hostname: has a letter that no text has: \\x1b; "),
        ({"online_cpus": [10**9]}, "online_cpus: 1000000000 is no number from "),
    ],
)
def test_what_is_wrong_with_facts_is_named(change: dict[str, object], said: str) -> None:
    """With the field, and what to do."""
    with pytest.raises(FactsError) as caught:
        parse_export(json.dumps({**export_json(WHOLE), **change}))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"format": 1}', '{"a":' * 50_000])
def test_what_is_no_facts_is_named_as_such(text: str) -> None:
    """Whether it is cut short, nested without end, or something else."""
    with pytest.raises(FactsError, match=r"export the facts again: torchpar facts$"):
        parse_export(text)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_facts_that_are_cut_or_changed_are_read_or_refused(data: st.DataObject) -> None:
    """Never anything else."""
    text = json.dumps(export_json(WHOLE))
    at = data.draw(st.integers(0, len(text)))
    change = data.draw(st.sampled_from(["", "0", '"', "[", "-1", "null", "\\u001b", "x" * 20, '"need": "no"']))
    try:
        parse_export(text[:at] + change + text[at + data.draw(st.integers(0, 30)) :])
    except FactsError as error:
        assert str(error).isprintable()


MIG = dataclasses.replace(make_gpu(0, 0), uuid="GPU-1", mig_instances=("1/0", "2/0"))
MANY = dataclasses.replace(make_host(packages=2), gpus=(MIG, make_gpu(1, 1), make_gpu(2, 1)))
JOBS = "[Train a]\nScript=/a.py\nEnabled=yes\nGPUs=1\n[Infer b]\nModel=/b.pt\nEnabled=yes\n"
PLANNER = Planner([ConfFile("/c", JOBS)])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON data that holds a value: its container, and its key there."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from places(inner)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_host_of_facts_that_are_read_is_planned_or_refused(data: st.DataObject) -> None:
    """Whatever one value is replaced by, also by the one beside it: no host's facts stop a fleet."""
    changed = json.loads(json.dumps(export_json(dataclasses.replace(WHOLE, facts=MANY))))
    container, key = data.draw(st.sampled_from(list(places(changed))))
    beside = [container[name] for at, name in places(changed) if at is container]
    container[key] = data.draw(st.sampled_from([*beside, 0, 1, 2**40, None, "", [], {}]))
    try:
        export = parse_export(json.dumps(changed))
    except FactsError:
        return
    assert PLANNER.plan("x.json", export).summary.file == "x.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A conf as it will be in /etc, and the facts of a host."""
    (tmp_path / "etc/torchpar.conf.d").mkdir(parents=True)
    (tmp_path / "etc/torchpar.conf").write_text("[Train a]\nScript=/a.py\nEnabled=yes\n")
    (tmp_path / "etc/torchpar.conf.d/50-b.conf").write_text("[Match]\nHost=host\n[Train a]\nThreads=2\n")
    (tmp_path / "facts.json").write_text(exported(make_host(gpu_nodes=(0,), gpus=(make_gpu(0, 0),))))
    return tmp_path


def test_a_folder_is_read_as_the_conf_that_it_will_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Units and messages name the files as on the host."""
    inputs = ["--facts", str(folder / "facts.json"), "--config", str(folder / "etc")]
    assert run(["render", *inputs, "a"]) == 0
    text = capsys.readouterr().out
    assert "from /etc/torchpar.conf" in text and "OMP_NUM_THREADS=2" in text
    (folder / "etc/torchpar.conf.d/60-c.conf").write_text("[Train a]\nThreds=2\n")
    assert run(["render", *inputs]) == 78
    assert "/etc/torchpar.conf.d/60-c.conf:2: " in capsys.readouterr().err
    assert run(["plan", "--facts", inputs[1], "--config", str(folder)]) == 78
    assert "has neither torchpar.conf nor torchpar.conf.d in it" in capsys.readouterr().err


def test_a_difference_is_to_what_the_host_has_in_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what runs there with other settings is named."""
    conf, facts = ["--config", str(folder / "etc")], folder / "facts.json"
    assert run(["render", "--json", "--facts", str(facts), *conf]) == 0
    made = json.loads(capsys.readouterr().out)
    (path, *_) = [path for path in made["files"] if "@a" in path]
    unit = path.partition(".d/")[0]
    in_force = UnitsInForce(1, made["files"], made["links"], (unit,))
    host = make_host(gpu_nodes=(0,))
    facts.write_text(exported(host, in_force=in_force))
    assert run(["diff", "--facts", str(facts), *conf]) == 0
    capsys.readouterr()
    changed = {**made["files"], path: made["files"][path].replace("NUM_THREADS=2", "NUM_THREADS=1")}
    facts.write_text(exported(host, in_force=dataclasses.replace(in_force, files=changed)))
    assert run(["diff", "--facts", str(facts), *conf]) == 2
    out = capsys.readouterr().out
    assert "OMP_NUM_THREADS 1 → 2" in out and f"{unit} is running; it gets this when it restarts" in out
    # It is from before the generation in force, which was applied without restarting it.
    facts.write_text(exported(host, in_force=dataclasses.replace(in_force, outdated=(unit,))))
    assert run(["diff", "--facts", str(facts), *conf]) == 0
    assert capsys.readouterr().out == f"{unit} is running; it gets this when it restarts\n"


def test_a_host_exports_what_runs_with_older_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the host can see it: by its processes, against what is in force."""
    content = object()

    def find(_: object, given_content: object) -> tuple[str, ...]:
        assert given_content is content
        return ("b.service",)

    monkeypatch.setattr(facts_command, "read_export", lambda *_: WHOLE)
    monkeypatch.setattr(facts_command, "read_active", lambda _: (object(), content))
    monkeypatch.setattr(facts_command, "find_running_outdated", find)
    assert run(["facts"]) == 0
    in_force = parse_export(capsys.readouterr().out).in_force
    assert in_force and in_force.outdated == ("b.service",)


def test_what_an_older_torchpar_exports_has_none_that_is_outdated() -> None:
    """It does not say so."""
    data = export_json(WHOLE)
    del data["generation"]["outdated"]
    assert WHOLE.in_force
    assert parse_export(json.dumps(data)).in_force == dataclasses.replace(WHOLE.in_force, outdated=())


def test_facts_that_do_not_know_an_interpreter_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be another architecture's, or conda's: the host itself would see that."""
    (folder / "etc/torchpar.conf").write_text("[Train a]\nScript=/a.py\nPython=/srv/venv/bin/python3\n")
    assert run(["plan", "--facts", str(folder / "facts.json"), "--config", str(folder / "etc")]) == 0
    assert "warning: the facts say nothing of /srv/venv/bin/python3" in capsys.readouterr().err

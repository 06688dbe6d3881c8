"""The words of the commands: help that fits, and the nearest of a mistyped one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.hosts import exported, make_host
from tests.unit.verify.fake_host import TEXT
from torchpar.cli import fleet
from torchpar.cli.main import COMMANDS, run


@pytest.mark.parametrize(("group", "commands"), [((), COMMANDS), (("fleet",), fleet.COMMANDS)])
def test_the_summary_of_each_command_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, group: tuple[str, ...], commands: list[str]
) -> None:
    """In 80 columns; none is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*group, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in commands) and "..." not in shown.partition("Commands:")[2]
    # A name of a unit that is broken cannot be copied.
    assert "torchpar-\n" not in shown


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("statux", "No such command 'statux'; did you mean status?"),
        ("x", "No such command 'x'."),
        ("\x1b[2J", "No such command '\\x1b[2J'."),
    ],
)
def test_a_mistyped_command_is_told_with_the_nearest(
    capsys: pytest.CaptureFixture[str], typed: str, said: str
) -> None:
    """And ends with 64."""
    assert run([typed]) == 64
    assert capsys.readouterr().err.splitlines()[-1] == f"Error: {said}"


def test_validate_tells_programs_the_place_of_each_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts_file: Path
) -> None:
    """Pure JSON on stdout, and the exit status as for people."""
    conf = tmp_path / "c.conf"
    conf.write_text(TEXT)
    assert run(["validate", "--json", "--facts", str(facts_file), str(conf)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["valid"], answer["services"], answer["problems"]) == (True, 2, [])
    conf.write_text(f"{TEXT}Foo=1\n[Trian x]\n")
    assert run(["validate", "--json", "--facts", str(facts_file), str(conf)]) == 78
    answer = json.loads(capsys.readouterr().out)
    assert not answer["valid"] and [problem["line"] for problem in answer["problems"]] == [9, 10]
    assert answer["problems"][0]["file"] == str(conf) and "unknown key" in answer["problems"][0]["what"]
    conf.write_text(f"{TEXT}CPUs=700\n")
    assert run(["validate", "--json", "--facts", str(facts_file), str(conf)]) == 78
    assert not json.loads(capsys.readouterr().out)["valid"]


def test_two_files_that_name_one_cpu_are_told_before_the_second_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts_file: Path
) -> None:
    """Each is valid alone. Several that change together are looked at together, as they will be; "" is none."""
    folder, (one, two) = tmp_path / "etc/torchpar.conf.d", ("[Train a]\nCPUs=0-1\n", "[Train b]\nCPUs=0-1\n")
    folder.mkdir(parents=True)
    places, files = (folder / "a.conf", folder / "b.conf"), (tmp_path / "new-a", tmp_path / "new-b")
    for path, text in ((places[0], one), (files[0], one.replace("0-1", "2-3")), (files[1], two)):
        path.write_text(f"{text}Script=/srv/job.py\nEnabled=yes\n")
    validate = ["validate", "--facts", str(facts_file)]
    assert run([*validate, str(files[1])]) == 0
    with_b = [*validate, "--root", str(tmp_path), "--replacing", str(places[1])]
    capsys.readouterr()
    assert run([*with_b, str(files[1])]) == 78
    assert f"{places[1]}:2: " in capsys.readouterr().err
    for first in (str(files[0]), ""):
        assert run([*with_b, "--replacing", str(places[0]), str(files[1]), first]) == 0
    for usage in ([*with_b], [*with_b[:-1], str(tmp_path / "b.conf"), str(files[1])]):
        assert run(usage) == 64
    for usage in ([str(files[1])], ["--config", str(one), "--replacing", "/etc/torchpar.conf", str(files[1])]):
        assert run(["diff", *usage]) == 64


def test_render_gives_programs_paths_and_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts_file: Path
) -> None:
    """Of all services, or of those that are named."""
    conf = tmp_path / "c.conf"
    conf.write_text(TEXT)
    assert run(["render", "--json", "--facts", str(facts_file), "--config", str(conf), "a"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (path,) = answer["files"]
    assert path == "torchpar-train@a.service.d/20-torchpar.conf" and "CPUAffinity=" in answer["files"][path]
    assert list(answer["links"]) == ["torchpar.target.wants/torchpar-train@a.service"]


@pytest.fixture
def facts_file(tmp_path: Path) -> Path:
    """The facts of a host of four cores."""
    file = tmp_path / "facts.json"
    file.write_text(exported(make_host()))
    return file

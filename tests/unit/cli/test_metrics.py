"""`torchpar metrics`: where they go."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchpar.cli import metrics as command
from torchpar.cli import textfile
from torchpar.cli.main import run


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(command, "_text", lambda: "a 1\n")
    return "a 1\n"


def configured(monkeypatch: pytest.MonkeyPatch, metrics: str) -> None:
    monkeypatch.setattr(command, "configured_metrics", lambda: metrics)
    monkeypatch.setattr(textfile, "configured_metrics", lambda: metrics)


def test_they_are_printed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["metrics"]) == 0
    assert capsys.readouterr().out == text


def test_a_textfile_is_replaced_and_nothing_is_left_beside_it(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(monkeypatch, "textfile")
    # Of one that was killed.
    (tmp_path / ".torchpar.prom.new").write_text("half")
    for _ in range(2):
        assert run(["metrics", "--textfile", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"torchpar.prom": text}
    assert (tmp_path / "torchpar.prom").stat().st_mode & 0o777 == 0o644


def test_where_they_do_not_go_to_a_textfile_the_old_one_is_taken_away(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(monkeypatch, "no")
    (tmp_path / "torchpar.prom").write_text("old")
    for _ in range(2):
        assert run(["metrics", "--textfile", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(monkeypatch, "textfile")
    assert run(["metrics", "--textfile", str(tmp_path / "none")]) == 1
    assert "torchpar.prom: No such file or directory" in capsys.readouterr().err


def test_without_an_address_nothing_is_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(monkeypatch, "textfile")
    assert run(["metrics", "--listen"]) == 78
    assert "Metrics=127.0.0.1:9435" in capsys.readouterr().err


def test_an_address_that_cannot_be_had_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(monkeypatch, "192.0.2.77:9435")
    assert run(["metrics", "--listen"]) == 1
    assert "Metrics=192.0.2.77:9435: " in capsys.readouterr().err

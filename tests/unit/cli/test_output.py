"""How commands print: tables, blocks and sizes at any width."""

from __future__ import annotations

import pytest

from torchpar.cli.output import echo_block, echo_table, shorten, warn
from torchpar.doctor.words import rate, size


def test_a_table_that_is_too_wide_becomes_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the width of the terminal; a cell that has nothing is left out. In a pipe it stays a table."""
    header = ("SERVICE", "CPUS", "MEMORY", "MALLOC")
    rows = [("train@a", "0,2,4,6,8,10,12,14", "preferred 0", "tcmalloc"), ("infer@web", "1", "", "glibc\x1b[2J")]
    monkeypatch.delenv("COLUMNS", raising=False)
    echo_table(header, rows)
    assert capsys.readouterr().out.splitlines()[1] == "train@a    0,2,4,6,8,10,12,14  preferred 0  tcmalloc"
    monkeypatch.setenv("COLUMNS", "40")
    echo_table(header, rows)
    assert capsys.readouterr().out.splitlines() == [
        "  train@a    cpus 0,2,4,6,8,10,12,14;",
        "             memory preferred 0; malloc",
        "             tcmalloc",
        r"  infer@web  cpus 1; malloc glibc\x1b[2J",
    ]
    monkeypatch.setenv("COLUMNS", "80")
    echo_table(header, rows)
    assert capsys.readouterr().out.startswith("SERVICE ")


def test_a_path_stays_whole_where_a_line_has_room_for_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can be copied; what no line has room for is broken."""
    monkeypatch.setenv("COLUMNS", "40")
    echo_block("train@a", ["stopped", f"has /{'p' * 30} in it", "x" * 60], mark=True, column=9)
    assert capsys.readouterr().out.splitlines() == [
        "! train@a    stopped", f"    has /{'p' * 30}", "    in it", f"    {'x' * 36}", f"    {'x' * 24}"
    ]  # fmt: skip


def test_warnings_are_as_wide_as_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each path whole; in a pipe, and in the journal, each is a line that a program can search."""
    warning = f"[Train a] Script=/{'s' * 50}: no such file on this host; the service fails until it is there"
    warn([warning])
    assert capsys.readouterr().err == f"warning: {warning}\n"
    monkeypatch.setenv("COLUMNS", "40")
    warn([warning])
    assert capsys.readouterr().err.splitlines() == [
        "warning: [Train a]", f"  Script=/{'s' * 50}:",
        "  no such file on this host; the service", "  fails until it is there",
    ]  # fmt: skip
    monkeypatch.setattr("torchpar.cli.output.mark", lambda priority: f"<{priority}>")
    warn([warning])
    assert capsys.readouterr().err == f"<4>warning: {warning}\n"


@pytest.mark.parametrize("columns", ["0", "x", "-5", "1" * 99, ""])
def test_a_width_that_is_none_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """Whatever $COLUMNS is."""
    monkeypatch.setenv("COLUMNS", columns)
    echo_block("a", ["b " * 100, "c"], mark=True)
    assert capsys.readouterr().out.count("\n") == 1


def test_numbers_have_three_digits_or_all_before_the_point() -> None:
    """Bytes are in the unit that fits, CPUs as many as there is room for."""
    assert [rate(value) for value in (0.12345, 43.21, 999.4, 18250.4)] == ["0.123", "43.2", "999", "18250"]
    sizes = [size(number) for number in (0, 2048, 2**20, 1023 * 2**20, 3 * 2**29, 2**43)]
    assert sizes == ["0 KiB", "2 KiB", "1 MiB", "1023 MiB", "1.5 GiB", "8 TiB"]
    assert [shorten("0,2,4,6", most) for most in (7, 6)] == ["0,2,4,6", "0,2,..."]

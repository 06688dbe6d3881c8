"""The standard streams of the commands: full, closed, of a small alphabet; never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from torchpar.cli.main import COMMANDS, torchpar
from torchpar.cli.output import to_json

pytestmark = pytest.mark.subprocess

SOURCE = Path(__file__).resolve().parents[3] / "src"

PROGRAM = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from torchpar.cli.main import main; main()"


def run(arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run `torchpar ARGUMENTS` as a shell does, redirections and all: exit status, stdout, stderr."""
    command = f'exec "$0" -B -c "$1" {arguments}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, PROGRAM],
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )
    output, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    assert "Traceback" not in errors and "Exception ignored" not in errors, errors
    return done.returncode, output, errors


def test_a_full_disk_is_said_in_a_line() -> None:
    """The answer has not arrived, so the command has failed."""
    assert run("--help >/dev/full") == (1, "", "torchpar: stdout cannot be written: No space left on device\n")
    assert run("validate /nowhere 2>/dev/full") == (1, "", "")
    assert run("validate /nowhere >/dev/full 2>/dev/full") == (1, "", "")


def test_a_closed_stream_harms_nobody() -> None:
    """Without stdout nothing is done; the others are not needed. No file that is opened becomes one of them."""
    assert run("--help >&-") == (
        1, "", "torchpar: stdout is closed, and nothing has been done; to do it unheard: >/dev/null\n"
    )  # fmt: skip
    assert run("--help >&- 2>&-")[0] == 1
    assert run("--help <&-")[0] == 0
    assert run("--help 2>&-")[0] == 0
    assert run("validate /nowhere <&- 2>&-") == (78, "", "")


def test_a_reader_that_has_enough_is_no_failure() -> None:
    """As with `| head`: the command goes on to its end, and says by its status how that was."""
    for arguments, status in (("--help", 0), ("validate /nowhere", 78)):
        # The reader is gone before there is anything to read, and the status is not that of the pipe.
        script = f'exec 3>&1; {{ sleep 1; "$0" -B -c "$1" {arguments} 2>&1; echo $? >&3; }} | :'
        done = subprocess.run(
            ["sh", "-c", script, sys.executable, PROGRAM], capture_output=True, timeout=300, check=False, text=True
        )
        assert (done.stdout, done.stderr) == (f"{status}\n", "")


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin1"}])
def test_any_name_can_be_said_in_any_locale(locale: dict[str, str], tmp_path: Path) -> None:
    """Letters that the locale does not have, and bytes that are no text."""
    path = tmp_path / "Übung → x.conf"
    path.write_text("[Train ä]\n")
    status, _, errors = run(f"validate '{path}'", **locale)
    assert status == 78 and "bung" in errors
    status, _, errors = run("validate \"$(printf '/\\377\\n\\033[2J')\"", **locale)
    assert status == 78 and "\033" not in errors and errors.count("\n") == 1


@pytest.mark.parametrize("command", ["explain", "validate", "plan --facts", "x"])
def test_what_is_named_is_one_line_whatever_it_is(command: str) -> None:
    """A name with line breaks, one of 100 kB, and bytes that are no text."""
    for word in ("\"$(printf 'a\\nb\\033[2J\\377')\"", '"$(printf %0100000d 1)"'):
        status, _, errors = run(f"{command} {word} >/dev/null")
        assert status and len(errors.splitlines()) <= 6 and len(errors) < 3000 and "\033" not in errors, errors[:3000]


def test_lines_for_the_journal_have_their_priority(tmp_path: Path) -> None:
    """Only where stderr is what systemd has told (systemd.exec(5), JOURNAL_STREAM)."""
    log = tmp_path / "log"
    log.touch()
    named = f"{os.stat(log).st_dev}:{os.stat(log).st_ino}"
    run(f"validate /nowhere 2>>{log}", JOURNAL_STREAM=named)
    run(f"validate /nowhere 2>>{log}", JOURNAL_STREAM="1:2")
    (tagged, bare) = log.read_text().splitlines()
    assert tagged == f"<3>{bare}" and bare.startswith("torchpar: /nowhere: ")


def test_no_path_is_looked_at_before_the_command_does() -> None:
    """click's own does, and waits for a disk that does not answer."""
    for name in COMMANDS:
        command = torchpar.get_command(click.Context(torchpar), name)
        assert command is not None
        looking = [param.name for param in command.params if type(param.type) is click.Path]
        assert looking == (["what"] if name == "run" else [])


def test_json_moves_no_cursor() -> None:
    """It is the same data, without a byte that a terminal takes for an order, in any alphabet."""
    # Two halves of a letter would make one.
    text = "".join(map(chr, range(0x20, 0x3000))) + " ".join(map(chr, range(0xD800, 0x10000)))
    orders = {*map(chr, [*range(0x7F, 0xA0), 0xAD, 0x200E, 0x2028, 0x202E, 0x2066, 0xD800, 0xDFFF, 0xFEFF])}
    for ensure_ascii in (True, False):
        made = to_json({"a": ["\x1b]0;x\x07\n", text]}, ensure_ascii=ensure_ascii)
        assert json.loads(made) == {"a": ["\x1b]0;x\x07\n", text]}
        assert not {*made} & orders and {c for c in made if c < " "} == {"\n"}
    assert "ü" in made

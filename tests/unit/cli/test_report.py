"""`torchpar report`: what is in the archive, and what is not."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from torchpar.cli import redact, report
from torchpar.cli.main import run
from torchpar.cli.redact import Redactor
from torchpar.generations.rollbacks import RAN, note_rollback
from torchpar.generations.store import Store

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("alpha.example.org said alpha is up", "HOST-1 said HOST-2 is up"),
        ("alphabet and my-alpha stay", "alphabet and my-alpha stay"),
        ("User=ada in /home/ada/x, /home/eve/y", "User=USER-1 in /home/USER-1/x, /home/USER-2/y"),
        ("Environment=WANDB_MODE=on OMP_NUM_THREADS=2", "Environment=WANDB_MODE=*** OMP_NUM_THREADS=2"),
        ("Environment='A_B=c d' \"E_F=g ' h\" x", "Environment='A_B=***' \"E_F=***\" x"),
        (r'"Environment=\"A_B=c d\"\nNice=5"', r'"Environment=\"A_B=***\"\nNice=5"'),
        ('{"HF_HOME": "/x", "OMP_NUM_THREADS": "2"}', '{"HF_HOME": "***", "OMP_NUM_THREADS": "2"}'),
        ("Environment=A_KEY=x\\nCPUAffinity=0-1", "Environment=A_KEY=***\\nCPUAffinity=0-1"),
        ("--api-key s3cr3t --lr 0.1", "--api-key *** --lr 0.1"),
        ("password: hunter2, next", "password: ***, next"),
        ("https://me:pw@example.org/x", "https://***@example.org/x"),
        ("Endpoint=10.1.2.3:29500 10.1.2.4 10.1.2.3", "Endpoint=ADDRESS-1:29500 ADDRESS-2 ADDRESS-1"),
        ("Listen=127.0.0.1:8000 0.0.0.0:80", "Listen=127.0.0.1:8000 0.0.0.0:80"),
        ("fe80::1:2:3 and 2001:db8:1:2:3:4:5:6", "ADDRESS-1 and ADDRESS-2"),
        ("2001:db8::1: refused, [2001:db8::1]:29500", "ADDRESS-1: refused, [ADDRESS-1]:29500"),
        ("fe80::1%eth0, ::ffff:10.0.0.5 and ::1, ::", "ADDRESS-1%eth0, ADDRESS-2 and ::1, ::"),
        ("std::abs c10::Error 12:34:56 dead:beef", "std::abs c10::Error 12:34:56 dead:beef"),
        ("Authorization: Bearer a.b-c ==", "Authorization: ***"),
        ("-H 'Authorization: Basic YTpi' -v", "-H 'Authorization: ***' -v"),
        ("sent Bearer abc.def to it", "sent Bearer *** to it"),
        (f"train.py --wandb-key={HEX} --lr 0.1", "train.py --wandb-key=*** --lr 0.1"),
        (f"wandb: {HEX}\nid {HEX[:32]}", "wandb: ***\nid ***"),
        ('Environment=DB_URL="x y z" A=1', 'Environment=DB_URL="***" A=1'),
        ('Environment=db_pass=hunter2 "db_pass=two words"', 'Environment=db_pass=*** "db_pass=***"'),
        ("password = \"two words\" and 'pwd=a b'", "password = \"***\" and 'pwd=***'"),
        (r'"x \"secret\": \"two words\" y"', r'"x \"secret\": \"***\" y"'),
        ('"key": "Threads", "value": "8"; first pass is over', '"key": "Threads", "value": "8"; first pass is over'),
        ("Endpoint=node17.corp:29500\nsaid node17.corp", "Endpoint=HOST-3:29500\nsaid HOST-3"),
        ("Endpoint=trainer\ntrainer --rdzv-endpoint=b2:1", "Endpoint=HOST-3\nHOST-3 --rdzv-endpoint=HOST-4:1"),
        ("has no Endpoint=; set Endpoint=HOST and", "has no Endpoint=; set Endpoint=HOST and"),
        ("at 00:1b:44:11:3a:b7", "at MAC-1"),
        ("key AbCdEfGhIjKlMnOpQrStUvWxYz0123456789 ends", "key *** ends"),
        ("0000:17:00.0 at 12:34:56, torch 2.1.0, CPUs 0-3", "0000:17:00.0 at 12:34:56, torch 2.1.0, CPUs 0-3"),
        ("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4", "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
    ],
)
def test_what_is_private_is_replaced_and_nothing_else(text: str, redacted: str) -> None:
    """The same by the same, so that one sees that it is."""
    assert Redactor(["alpha.example.org", "alpha", "localhost"], ["ada", "root"]).redact(text) == redacted


def test_no_line_costs_more_than_its_length() -> None:
    """No repetition is without an end, but where a run can begin at one place alone or the name is a bounded one."""
    patterns = {name: value for name, value in vars(redact).items() if isinstance(value, re.Pattern)}
    endless = {
        name
        for name, value in patterns.items()
        if re.search(r"(?<!\\)[*+]|\{\d+,\}", re.sub(r"\[(?:\\.|[^]\\])+\]", "C", value.pattern))
    }
    assert len(patterns) > 10 and endless <= {"_KEY", "_OURS"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write in, on a host whose programs are made up."""

    (tmp_path / "alternatives").mkdir()
    (tmp_path / "alternatives/libblas.so.3-riscv64-linux-gnu").touch()
    (tmp_path / "here").mkdir()

    def answer(argv: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if argv[0] == "journalctl" or (argv[0] == "systemctl" and "--lines=0" not in argv):
            return subprocess.CompletedProcess(argv, 0, "ada@alpha: SECRET_KEY=x\n", "")
        return subprocess.CompletedProcess(argv, int(argv[0] == "uname"), f"{argv[-1]} on alpha\n", "no uname\n")

    monkeypatch.setattr(report, "run", answer)
    monkeypatch.setattr(report, "_hosts", lambda: ["alpha"])
    monkeypatch.setattr(report, "_users", lambda: ["ada"])
    monkeypatch.setattr(report, "_ALTERNATIVES", tmp_path / "alternatives")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_archive_has_what_each_command_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Redacted, and for its owner alone; its name is the answer."""
    assert run(["report"]) == 0
    said = capsys.readouterr()
    (path,) = folder.iterdir()
    assert said.out == f"{path.name}\n" and path.stat().st_mode & 0o777 == 0o600 and "tar -xzOf" in said.err
    with tarfile.open(path) as archive:
        texts = {os.path.basename(name): archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    assert {"version", "facts.json", "units", "status.json", "doctor.json", "journal-services"} <= texts.keys()
    assert texts["libblas-riscv64-linux-gnu"].startswith("libblas.so.3-riscv64-linux-gnu on")
    assert texts["journal-services"] == "USER-1@HOST-1: SECRET_KEY=***\n"
    assert "exit status 1" in texts["uname"] and "no uname" in texts["uname"]
    assert not any("alpha" in text for text in texts.values())


def test_the_journal_can_be_left_out_and_no_file_is_overwritten(folder: Path) -> None:
    """Nor a link followed."""
    assert run(["report", "--no-journal", "--output", "x.tar.gz"]) == 0
    with tarfile.open("x.tar.gz") as archive:
        texts = {os.path.basename(name): archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    assert "systemctl" in texts and not any("journal" in name for name in texts)
    assert not any(b"SECRET_KEY" in text for text in texts.values())
    assert run(["report", "--output", "x.tar.gz"]) == 1
    (folder / "link").symlink_to(folder / "aim")
    assert run(["report", "--output", "link"]) == 1 and not (folder / "aim").exists()


def test_who_took_a_generation_back_is_a_name_to_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only a directory knows the user; not root, who is nobody in particular."""
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store")
    for name in ("ada.lovelace", "root"):
        note_rollback(store, 2, 1, f"{name}{RAN}")
    monkeypatch.setattr(report, "Store", lambda: store)
    assert "ada.lovelace" in set(report._users()) and "root" not in set(report._users())

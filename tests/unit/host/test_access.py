"""What the kernel says that a user can do with a file: modes, links, mounts, names."""

from __future__ import annotations

import errno
import os
import pwd
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchpar.generations.store import Store
from torchpar.host import access
from torchpar.host.access import ask, ask_below
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict

# Each identity is a process of its own.
pytestmark = pytest.mark.subprocess

TORCHPAR = Identity("torchpar")

# Someone without root's rights: who runs the tests, or nobody.
SOMEONE = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
AS_SOMEONE = Identity(SOMEONE)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users can enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="torchpar-access-"))
    path.chmod(0o755)
    yield path
    for place, folders, _ in os.walk(path):
        for name in folders:
            os.chmod(os.path.join(place, name), 0o700)
    shutil.rmtree(path)


def make(path: Path, text: str = "", mode: int = 0o644) -> str:
    """A file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


def asked(path: object, need: Need, identity: Identity = AS_SOMEONE) -> Answer:
    """The kernel's answer to one question."""
    question = Question(str(path), need)
    return ask({identity: (question,)})[identity].answers[question]


def test_a_closed_folder_stops_at_whichever_link_leads_through_it(folder: Path) -> None:
    """A link to a link to a program below a folder that only its owner can enter."""
    program = make(folder / "home/share/bin/python3", "#!/bin/sh\n", 0o755)
    (folder / "home/python3").symlink_to(program)
    (folder / "venv").mkdir()
    (folder / "venv/python3").symlink_to("../home/python3")
    assert asked(folder / "venv/python3", Need.RUN).verdict is Verdict.ALLOWED
    (folder / "home/share").chmod(0)
    answer = asked(folder / "venv/python3", Need.RUN)
    assert (answer.verdict, answer.place, answer.mode) == (Verdict.CLOSED, str(folder / "home/share"), 0)
    assert answer.owner == pwd.getpwuid(os.geteuid()).pw_name


@pytest.mark.parametrize(
    ("need", "mode", "verdict"),
    [
        (Need.READ, 0o644, Verdict.ALLOWED),
        (Need.READ, 0, Verdict.REFUSED),
        (Need.RUN, 0o755, Verdict.ALLOWED),
        (Need.RUN, 0o644, Verdict.REFUSED),
        (Need.ENTER, 0o644, Verdict.BROKEN),
        (Need.OWN, 0o644, Verdict.ALLOWED),
        (Need.OWN, 0o646, Verdict.FOREIGN),
    ],
)
def test_a_files_mode_is_judged_by_what_is_to_be_done_with_it(
    folder: Path, need: Need, mode: int, verdict: Verdict
) -> None:
    """To read a script, to run an interpreter; a file is no working folder."""
    assert asked(make(folder / "file", "#!/bin/sh\n", mode), need).verdict is verdict


def test_whose_a_file_is_counts_only_where_its_user_can_reach_it(folder: Path) -> None:
    """What cannot be reached is told as that; nothing of it runs."""
    (folder / "home").mkdir()
    path = make(folder / "home/s.py", mode=0o666)
    assert asked(path, Need.OWN).verdict is Verdict.FOREIGN and asked(path, Need.OWN).shared
    (folder / "home").chmod(0o777)
    assert asked(folder / "home", Need.OWN).place == str(folder / "home")
    (folder / "home").chmod(0)
    for place in (path, folder / "home"):
        assert asked(place, Need.OWN).verdict is Verdict.ALLOWED


def test_of_code_the_folders_count_in_which_python_looks_for_modules(folder: Path) -> None:
    """That in which a link to it is, and that in which it is itself, both as at the start of a service."""
    (folder / "open").mkdir()
    (folder / "open").chmod(0o1777)
    path = make(folder / "s.py")
    (folder / "open/s.py").symlink_to(path)
    make(folder / "open/t.py")
    (folder / "t.py").symlink_to("open/t.py")
    for name in ("open/s.py", "open/t.py", "t.py", "open/none.py"):
        answer = asked(folder / name, Need.OWN_CODE)
        assert (answer.verdict, answer.place, answer.shared) == (Verdict.FOREIGN, str(folder / "open"), True), name
    for name in ("open/s.py", "open/t.py", "t.py"):
        assert asked(folder / name, Need.OWN).verdict is Verdict.ALLOWED
    assert asked(path, Need.OWN_CODE).verdict is Verdict.ALLOWED


@pytest.mark.parametrize(("mode", "writable"), [(0o777, Verdict.ALLOWED), (0o555, Verdict.REFUSED)])
def test_a_working_folder_is_entered_and_written_apart(folder: Path, mode: int, writable: Verdict) -> None:
    """What is only read is no failure of the start."""
    (folder / "work").mkdir()
    (folder / "work").chmod(mode)
    assert asked(folder / "work", Need.ENTER).verdict is Verdict.ALLOWED
    assert asked(folder / "work", Need.WRITE).verdict is writable


def test_what_leads_nowhere_is_named_where_it_ends(folder: Path) -> None:
    """A file that is not there, a link that dangles, a circle, a file in the place of a folder."""
    (folder / "dangling").symlink_to("none/python3")
    (folder / "circle").symlink_to("circle")
    make(folder / "file")
    assert asked(folder / "absent", Need.READ).verdict is Verdict.MISSING
    assert asked(folder / "dangling", Need.RUN) == Answer(
        Verdict.MISSING, str(folder / "none"), way=(str(folder / "dangling"),)
    )
    os.mkfifo(folder / "pipe", 0o644)
    assert asked(folder / "pipe", Need.READ).why == "is neither a file nor a folder"
    assert asked("/dev/zero", Need.READ).verdict is Verdict.BROKEN
    assert asked(folder / "circle", Need.READ).why == "Too many levels of symbolic links"
    assert asked(folder / "file/x", Need.READ).verdict is Verdict.MISSING
    assert asked(folder / ("x" * 300), Need.READ).why == "File name too long"


def test_a_folder_in_the_place_of_a_script_is_one_with_a_program(folder: Path) -> None:
    """As Python runs it; a model may be a folder without."""
    assert asked(folder, Need.SCRIPT).why == "is a folder without __main__.py, which would be run"
    assert asked(folder, Need.READ).verdict is Verdict.ALLOWED
    make(folder / "__main__.py")
    assert asked(folder, Need.SCRIPT).verdict is Verdict.ALLOWED


def test_of_what_systemd_opens_it_is_asked_whether_it_is_there(folder: Path) -> None:
    """Whatever it is: systemd takes a socket for OpenFile= too."""
    os.mkfifo(folder / "pipe", 0o600)
    assert asked(folder / "pipe", Need.THERE).verdict is Verdict.ALLOWED
    assert asked(folder / "absent", Need.THERE).verdict is Verdict.MISSING
    assert asked(make(folder / "text", "hello", 0o755), Need.RUN).why.startswith("is neither a program nor")
    moved = make(folder / "moved", "#! /no/such/python3 -I\n", 0o755)
    assert asked(moved, Need.RUN).why == "begins with #!/no/such/python3, which is not there"


@pytest.mark.parametrize(
    ("shim", "installed"),
    [("shims", "versions/3.10.2"), ("shims", "installs/python/3.12"), ("shims", "py/cpython@3.12.1")],
)
def test_a_shim_is_seen_through(folder: Path, shim: str, installed: str) -> None:
    """pyenv's, asdf's and rye's, with the newest of the interpreters behind it, or the one that is the default."""
    path = make(folder / shim / "python3", "#!/bin/sh\n", 0o755)
    assert asked(path, Need.RUN).shim and asked(path, Need.RUN).interpreter is None
    older = make((folder / installed).with_name("3.9.1") / "bin/python3", "#!", 0o755)
    newer = make(folder / installed / "bin/python3", "#!", 0o755)
    assert asked(path, Need.RUN).interpreter == newer
    make(folder / "version", "3.9.1\n")
    assert asked(path, Need.RUN).interpreter == older
    (folder / "version").unlink()
    (folder / "version").symlink_to("/dev/zero")
    assert asked(path, Need.RUN).interpreter == newer, "only a regular file is read, and little of it"


def test_names_that_the_host_does_not_know_are_found() -> None:
    """By name and by number; a number that cannot be one is as unknown."""
    for user in ("no-such-user", "4199999", "99999999999999999999"):
        assert ask({Identity(user): ()})[Identity(user)].unknown_user
    identity = Identity(SOMEONE, "no-such-group", ("nor-this",))
    assert ask({identity: ()})[identity].unknown_groups == ("no-such-group", "nor-this")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can take anybody's place")
def test_who_is_not_root_is_told_only_what_is_not_there(folder: Path) -> None:
    """The rights of others cannot be known; that a file is missing can."""
    root = Identity("root")
    secret = make(folder / "secret", mode=0)
    assert asked(secret, Need.READ, root).verdict is Verdict.ALLOWED
    assert asked(folder / "absent", Need.READ, root).verdict is Verdict.MISSING


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take root's place without its rights")
def test_a_service_of_root_has_no_rights_beyond_its_modes(folder: Path) -> None:
    """Its unit leaves it no capability."""
    path = make(folder / "home/file")
    os.chown(folder / "home", 65534, 65534)
    (folder / "home").chmod(0o700)
    assert asked(path, Need.READ, Identity("root")).verdict is Verdict.CLOSED
    assert asked(path, Need.READ, Identity(None)).verdict is Verdict.ALLOWED


def hang_at(monkeypatch: pytest.MonkeyPatch, *dead: str) -> None:
    """Let these paths be on a file system that does not answer."""
    look = access.look
    monkeypatch.setattr(access, "look", lambda asked: time.sleep(600) if asked.path in dead else look(asked))


def test_a_file_system_that_does_not_answer_holds_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered before it counts; it is named; what comes after is not known."""
    hang_at(monkeypatch, "/dead")
    questions = tuple(Question(path, Need.READ) for path in ("/no/such", "/dead", "/etc/passwd"))
    found = ask({AS_SOMEONE: questions}, seconds=2.0)[AS_SOMEONE].answers
    assert {question.path: answer.verdict for question, answer in found.items()} == {
        "/no/such": Verdict.MISSING,
        "/dead": Verdict.SILENT,
    }


def test_a_process_that_the_kernel_holds_holds_no_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor a pipe whose end somebody waits for: it outlives the command, and the next one has its turn."""
    hang_at(monkeypatch, "/dead")
    held: list[int] = []
    monkeypatch.setattr(access.os, "kill", lambda pid, signal: held.append(pid))
    kill = signal.pidfd_send_signal
    reader, writer = os.pipe()
    store = Store(tmp_path / "store")
    with store.locked():
        ask({AS_SOMEONE: (Question("/dead", Need.READ),)}, seconds=2.0)
    os.close(writer)
    process = os.pidfd_open(held[0])
    try:
        assert not select.select([process], [], [], 0)[0], "it is still there"
        with store.locked():
            assert select.select([reader], [], [], 0)[0] and os.read(reader, 1) == b""
    finally:
        kill(process, signal.SIGKILL)
        os.waitpid(held[0], 0)
        os.close(process)
        os.close(reader)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many processes there are after each start and each end of one."""
    counts = [0]
    fork, waitpid = os.fork, os.waitpid

    def start() -> int:
        pid = fork()
        counts.append(counts[-1] + 1)
        return pid

    def end(pid: int, options: int) -> tuple[int, int]:
        counts.append(counts[-1] - 1)
        return waitpid(pid, options)

    monkeypatch.setattr(access.os, "fork", start)
    monkeypatch.setattr(access.os, "waitpid", end)
    return counts


def test_many_users_are_asked_for_a_few_at_a_time(running: list[int]) -> None:
    """Each has an answer, and all have the same seconds."""
    questions = {Identity(SOMEONE, None, (f"no-{number}",)): (Question("/no", Need.READ),) for number in range(40)}
    found = ask(questions, seconds=300.0)
    assert all(found[identity].unknown_groups == identity.groups for identity in questions)
    assert all(answer.verdict is Verdict.MISSING for one in found.values() for answer in one.answers.values())
    assert max(running) <= 8 and running[-1] == 0


def test_where_no_more_processes_can_be_had_those_that_end_make_room(
    monkeypatch: pytest.MonkeyPatch, running: list[int]
) -> None:
    """As in a unit whose TasksMax= is reached; where there can be none at all, there is no answer, and no error."""
    fork, room = os.fork, [1]

    def start() -> int:
        if running[-1] >= room[0]:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(access.os, "fork", start)
    questions = {Identity(SOMEONE, None, (f"no-{number}",)): () for number in range(3)}
    opened = len(os.listdir("/proc/self/fd"))
    found = ask(questions, seconds=300.0)
    assert [found[identity].unknown_groups for identity in questions] == [("no-0",), ("no-1",), ("no-2",)]
    room[0] = 0
    assert ask(questions, seconds=300.0) == dict.fromkeys(questions, Found())
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_bug_is_shown_and_keeps_nothing_from_being_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its traceback; what was answered before it counts."""
    look = access.look
    monkeypatch.setattr(access, "look", lambda asked: look(asked) if asked.path == "/no" else 1 // 0)
    questions = (Question("/no", Need.READ), Question("/etc/passwd", Need.READ))
    assert list(ask({AS_SOMEONE: questions})[AS_SOMEONE].answers) == [questions[0]]
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights that it must not use")
def test_root_opens_nothing_for_a_user_whose_place_it_cannot_take(folder: Path) -> None:
    """A group that is not there keeps it from that; what is missing is told nevertheless."""
    unknown = Identity(SOMEONE, "no-such-group")
    (folder / "shims").mkdir()
    text = make(folder / "shims/python3", "hello", 0o755)
    assert asked(text, Need.RUN, unknown) == Answer(Verdict.ALLOWED)
    assert asked(folder / "absent", Need.RUN, unknown).verdict is Verdict.MISSING


def test_below_a_root_only_what_is_missing_is_known(folder: Path) -> None:
    """Its users are not those of this machine."""
    make(folder / "srv/there.py", mode=0)
    questions = {TORCHPAR: (Question("/srv/there.py", Need.READ), Question("/srv/not.py", Need.READ))}
    found = ask_below(folder, questions)[TORCHPAR]
    assert [answer.verdict for answer in found.answers.values()] == [Verdict.ALLOWED, Verdict.MISSING]
    assert not found.unknown_user

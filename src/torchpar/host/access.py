"""Asks the kernel what users can do with files, as those users: modes, ACLs, groups and mounts count as it says.

A child process for each user takes that user's place and tries. All of them together have a few seconds: one that a
dead file system holds is left behind with what it has answered so far.
"""

from __future__ import annotations

import ctypes
import fcntl
import grp
import json
import os
import pwd
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchpar.host.reach import look, look_for_another, look_whose
from torchpar.host.sysfs import Tree
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict, answer_json, parse_answer

# For all users together. What does not answer within it hangs.
SECONDS = 5.0

# Processes at a time: torchpard's unit has few tasks, and each dead file system costs one for good.
_AT_ONCE = 8


# In the line of a process that came upon a bug.
_BUG = "bug"
_WHOSE = (Need.OWN, Need.OWN_NO_PIPE, Need.OWN_CODE)

Questions = Mapping[Identity, Sequence[Question]]


def ask(questions: Questions, seconds: float = SECONDS) -> dict[Identity, Found]:
    """Asks this host. Anybody but root is told what is missing, and of its own rights.

    An identity that no process could be had for, or no time, has no answers.
    """
    deadline = time.monotonic() + seconds
    found = {identity: Found() for identity in questions}
    left = list(questions)[::-1]
    running: dict[int, tuple[Identity, _Child]] = {}
    poll = select.poll()
    while (left or running) and (wait := deadline - time.monotonic()) > 0:
        while left and len(running) < _AT_ONCE:
            try:
                child = _Child.start(left[-1], questions[left[-1]])
            except OSError:
                if running:  # one that ends makes room
                    break
                left.pop()
            else:
                running[child.pipe] = (left.pop(), child)
                poll.register(child.pipe, select.POLLIN)
        for pipe, _ in poll.poll(wait * 1000) if running else ():
            identity, child = running[pipe]
            if not child.read():
                poll.unregister(pipe)
                del running[pipe]
                found[identity] = child.end()
    return found | {identity: child.end() for identity, child in running.values()}


def ask_below(root: Path, questions: Questions) -> dict[Identity, Found]:
    """Asks a host below a root, whose users are not those of this machine: only what is missing is known."""
    tree = Tree(root)

    def answer(question: Question) -> Answer:
        there = question.need in (Need.MAP, *_WHOSE) or tree.exists(question.path.lstrip("/"))
        return Answer(Verdict.ALLOWED if there else Verdict.MISSING, question.path)

    return {
        identity: Found(answers={question: answer(question) for question in asked})
        for identity, asked in questions.items()
    }


class _Child:
    """A process that answers for one identity: a line of JSON for the names, and one for each question in order.

    A line with its traceback ends what it says where it comes upon a bug.
    """

    def __init__(self, pid: int, pipe: int, questions: Sequence[Question]) -> None:
        self._pid = pid
        self.pipe = pipe
        self._questions = questions
        self._data = b""
        self._ended = False

    @classmethod
    def start(cls, identity: Identity, questions: Sequence[Question]) -> _Child:
        """Starts it. Nothing but `_write_answers` runs in it. Raises OSError where there can be no process."""
        ours, theirs = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(ours)
            os.close(theirs)
            raise
        if pid == 0:
            try:
                _write_answers(theirs, identity, questions)
            finally:
                os._exit(0)
        os.close(theirs)
        return cls(pid, ours, questions)

    def read(self) -> bool:
        """Takes what it has written; says whether there may be more."""
        piece = os.read(self.pipe, 65536)
        self._data += piece
        self._ended = not piece
        return bool(piece)

    def end(self) -> Found:
        """Returns all that it has answered. It hangs in the first question whose answer is due and not there."""
        if not self._ended:
            os.kill(self._pid, signal.SIGKILL)
        os.close(self.pipe)
        # One that the kernel holds cannot be killed, and must not be waited for.
        os.waitpid(self._pid, 0 if self._ended else os.WNOHANG)
        lines = [json.loads(line) for line in self._data.split(b"\n")[:-1]]
        if lines and _BUG in lines[-1]:
            # What is asked here is advice: a bug in it is shown, and keeps nothing from being done.
            sys.stderr.write(lines.pop()[_BUG])
        names: dict[str, Any] = lines[0] if lines else {"unknown_user": False, "unknown_groups": ()}
        answers = dict(zip(self._questions, map(parse_answer, lines[1:]), strict=False))
        if not self._ended and len(answers) < len(self._questions):
            answers[self._questions[len(answers)]] = Answer(Verdict.SILENT)
        return Found(names["unknown_user"], tuple(names["unknown_groups"]), answers)


# ---- in the child ----


def _write_answers(pipe: int, identity: Identity, questions: Sequence[Question]) -> None:
    """Writes the answers to the pipe, and keeps nothing else of what the parent has open.

    A lock or a pipe to somebody who waits for its end would else be held for as long as a dead file system holds this
    process.
    """
    pipe = fcntl.fcntl(pipe, fcntl.F_DUPFD, 3)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    try:
        for line in _answer(identity, questions):
            os.write(pipe, json.dumps(line).encode() + b"\n")
    except BaseException:  # noqa: BLE001  # this process has nobody else to tell
        os.write(pipe, json.dumps({_BUG: traceback.format_exc()}).encode() + b"\n")


@dataclass(frozen=True)
class _Ids:
    """A user's numbers, with all the groups that a service of it is in."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def _answer(identity: Identity, questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
    ids, unknown_user, unknown_groups = _find(identity)
    yield {"unknown_user": unknown_user, "unknown_groups": unknown_groups}
    same = _become(ids) if ids else identity.user is None and os.geteuid() == 0
    for question in questions:
        if question.need in _WHOSE:
            yield answer_json(look_whose(question, ids.uid if ids else None, identity))
        else:
            yield answer_json(look(question) if same else look_for_another(question))


def _find(identity: Identity) -> tuple[_Ids | None, bool, tuple[str, ...]]:
    """Finds the numbers, whether the user is unknown, and which groups are: by NSS, and by number as systemd does."""
    if identity.user is None:
        return None, False, ()
    try:
        user = pwd.getpwuid(int(identity.user)) if identity.user.isdecimal() else pwd.getpwnam(identity.user)
    except (KeyError, OverflowError):
        user = None
    found, unknown = {}, []
    for name in (*([identity.group] if identity.group else []), *identity.groups):
        try:
            found[name] = (grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)).gr_gid
        except (KeyError, OverflowError):
            unknown.append(name)
    if user is None or unknown:
        return None, user is None, tuple(unknown)
    gid = found.get(identity.group or "", user.pw_gid)
    groups = {*os.getgrouplist(user.pw_name, gid), *(found[name] for name in identity.groups)}
    return _Ids(user.pw_uid, gid, tuple(sorted(groups))), False, ()


def _become(ids: _Ids) -> bool:
    """Takes a user's place for good, without any capability, also for root, as a service has none."""
    if os.geteuid() != 0:
        return os.geteuid() == ids.uid
    try:
        os.setgroups(ids.groups)
        os.setresgid(ids.gid, ids.gid, ids.gid)
        os.setresuid(ids.uid, ids.uid, ids.uid)
    except OSError:
        return False
    return ids.uid != 0 or _drop_capabilities()


def _drop_capabilities() -> bool:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    return bool(ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0)

"""Asks the kernel what users can do with files, as those users: modes, ACLs, groups and mounts count as it says.

A child process for each user takes that user's place and tries. All of them together have a few seconds: one that a
dead file system holds is left behind with what it has answered so far.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import grp
import json
import os
import pwd
import re
import select
import signal
import stat
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchpar.contract.owners import code_places, find_strangers, steps
from torchpar.host.reading import NotReadableError, read_start
from torchpar.host.sysfs import Tree
from torchpar.plan.access import Answer, Found, Identity, Need, Question, Verdict, answer_json, parse_answer

# For all users together. What does not answer within it hangs.
SECONDS = 5.0

# Processes at a time: torchpard's unit has few tasks, and each dead file system costs one for good.
_AT_ONCE = 8


# In the line of a process that came upon a bug.
_BUG = "bug"

Questions = Mapping[Identity, Sequence[Question]]


def ask(questions: Questions, seconds: float = SECONDS) -> dict[Identity, Found]:
    """The answers of this host. Who is not root is told what is missing, and of its own rights.

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
    """The answers of a host below a root, whose users are not those of this machine: only what is missing is known."""
    tree = Tree(root)

    def answer(question: Question) -> Answer:
        there = question.need in (Need.MAP, Need.OWN, Need.OWN_CODE) or tree.exists(question.path.lstrip("/"))
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
        """Start it. Nothing but `_write_answers` runs in it. Raises OSError where there can be no process."""
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
        """Take what it has written; whether there may be more."""
        piece = os.read(self.pipe, 65536)
        self._data += piece
        self._ended = not piece
        return bool(piece)

    def end(self) -> Found:
        """Everything it has answered. A question without an answer that is due is the one it hangs in."""
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
    """Write the answers to the pipe, and keep nothing else of what the parent has open.

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
        if question.need in (Need.OWN, Need.OWN_CODE):
            yield answer_json(_look_whose(question, ids.uid if ids else None, identity))
        else:
            yield answer_json(look(question) if same else _look_for_another(question))


def _look_whose(question: Question, uid: int | None, identity: Identity) -> Answer:
    """Whether only this user, and root, can change what is there, which who looks need not be; None: nobody knows.

    Users have groups in which they trust; root has none. What systemd opens is a file, unless a / at the end says
    otherwise: of a folder it would read all that is in it.
    """
    path, system = question.path, identity.user is None
    uid = 0 if system else uid
    if uid is None:
        return Answer(Verdict.ALLOWED, path)
    places = code_places(path) if question.need is Need.OWN_CODE else [path]
    reached = [place for place in places if system or _can_be_reached(place)]
    found = (each for place in reached for each in find_strangers(place, (0, uid), shared=uid != 0))
    try:
        stranger = next(found, None)
    except OSError as error:
        return Answer(Verdict.BROKEN, path, why=str(error.strerror))
    if stranger:
        owner, group = _name_of(stranger.uid)[0], _group_of(stranger.gid)
        shared = stranger.is_writable((0, uid))
        return Answer(Verdict.FOREIGN, stranger.place, stranger.mode, owner, group, shared=shared)
    if system and not path.endswith("/") and os.path.isdir(path):
        return Answer(Verdict.BROKEN, path, why="is a folder, and all that is in it would be read; name a file")
    return Answer(Verdict.ALLOWED, path)


def _can_be_reached(path: str) -> bool:
    """Whether the file can be opened as far as its way goes, and a folder entered; else other questions tell."""
    return _walk(path).verdict is Verdict.ALLOWED and (not os.path.isdir(path) or os.access(path, os.X_OK))


def _look_for_another(question: Question) -> Answer:
    """The answer where this process cannot be the user that is asked for: what is not there, and nothing of rights."""
    if os.geteuid() == 0:
        # Nothing that a user has made is opened with root's rights.
        answer = _walk(question.path)
        missing = answer.verdict is Verdict.MISSING and question.need is not Need.MAP
        return answer if missing else Answer(Verdict.ALLOWED)
    answer = look(question)
    of_rights = (Verdict.CLOSED, Verdict.REFUSED, Verdict.READ_ONLY)
    return Answer(Verdict.ALLOWED) if answer.verdict in of_rights else answer


def _find(identity: Identity) -> tuple[_Ids | None, bool, tuple[str, ...]]:
    """The numbers, whether the user is unknown, and which groups are: by NSS, and by number as systemd takes them."""
    if identity.user is None:
        return None, False, ()
    try:
        user = pwd.getpwuid(int(identity.user)) if identity.user.isdigit() else pwd.getpwnam(identity.user)
    except (KeyError, OverflowError):
        user = None
    found, unknown = {}, []
    for name in (*([identity.group] if identity.group else []), *identity.groups):
        try:
            found[name] = (grp.getgrgid(int(name)) if name.isdigit() else grp.getgrnam(name)).gr_gid
        except (KeyError, OverflowError):
            unknown.append(name)
    if user is None or unknown:
        return None, user is None, tuple(unknown)
    gid = found.get(identity.group or "", user.pw_gid)
    groups = {*os.getgrouplist(user.pw_name, gid), *(found[name] for name in identity.groups)}
    return _Ids(user.pw_uid, gid, tuple(sorted(groups))), False, ()


def _become(ids: _Ids) -> bool:
    """Take a user's place for good, without any capability, also for root, as a service has none."""
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


def look(question: Question) -> Answer:
    """The answer to a question for the user that this process is."""
    walk = _walk(question.path)
    if question.need is Need.MAP:
        folder = walk.place if walk.verdict is Verdict.ALLOWED else os.path.dirname(walk.place)
        if not _flags(folder) & os.ST_NOEXEC:
            return Answer(Verdict.ALLOWED, folder)
        # The topmost such folder is what is mounted so, and the same for all services.
        while folder not in ("", "/") and _flags(os.path.dirname(folder)) & os.ST_NOEXEC:
            folder = os.path.dirname(folder)
        return Answer(Verdict.NOEXEC, folder)
    if walk.verdict is Verdict.ALLOWED:
        walk = _look_at_program(question.path, walk) if question.need is Need.RUN else _look_at(walk, question.need)
    return _describe(walk) if walk.verdict in (Verdict.CLOSED, Verdict.REFUSED) else walk


def _walk(path: str) -> Answer:
    """Go to a path as this process may, to where it ends or stops."""
    at = "/"
    way: list[str] = []
    for step in steps(path):
        found = step.found
        if not os.access(step.folder, os.X_OK):
            return Answer(Verdict.CLOSED, step.folder, way=tuple(way))
        if isinstance(found, (FileNotFoundError, NotADirectoryError)):
            return Answer(Verdict.MISSING, step.place, way=tuple(way))
        if isinstance(found, (OSError, ValueError)):
            looped = getattr(found, "errno", 0) == errno.ELOOP
            why = getattr(found, "strerror", str(found))
            return Answer(Verdict.BROKEN, path if looped else step.place[:200], way=tuple(way), why=why)
        at = step.end
        if found is None:
            continue
        if stat.S_ISLNK(found.st_mode):
            way.append(step.place)
        elif not step.is_last and not stat.S_ISDIR(found.st_mode):
            return Answer(Verdict.MISSING, step.place, way=tuple(way), why=os.strerror(errno.ENOTDIR))
    return Answer(Verdict.ALLOWED, at, way=(*way, at))


def _look_at(walk: Answer, need: Need) -> Answer:
    """Whether the file or folder that was found can be used as it is to be."""
    place = walk.place
    folder = os.path.isdir(place)
    if need is Need.ENTER and not folder:
        return replace(walk, verdict=Verdict.BROKEN, why="is not a folder")
    if need is Need.THERE:
        return walk
    if need in (Need.READ, Need.SCRIPT) and not folder and not os.path.isfile(place):
        return replace(walk, verdict=Verdict.BROKEN, why="is neither a file nor a folder")
    if need is Need.SCRIPT and folder and os.access(place, os.X_OK):
        main = os.path.join(place, "__main__.py")
        if not os.path.exists(main):
            return replace(walk, verdict=Verdict.BROKEN, why="is a folder without __main__.py, which would be run")
    right = {Need.ENTER: 0, Need.WRITE: os.W_OK}.get(need, os.R_OK)
    rights = right | (os.X_OK if folder else 0)
    if os.access(place, rights):
        return walk
    read_only = need is Need.WRITE and _flags(place) & os.ST_RDONLY
    return replace(walk, verdict=Verdict.READ_ONLY if read_only else Verdict.REFUSED)


def _look_at_program(path: str, walk: Answer) -> Answer:
    """Whether the interpreter can run, and is one."""
    bin, place = os.path.dirname(path), walk.place
    # That of a virtual environment is a link; what it loads is where the link is.
    libraries = bin if os.path.exists(os.path.join(os.path.dirname(bin), "pyvenv.cfg")) else place
    for loaded in (place, libraries):
        if _flags(loaded) & os.ST_NOEXEC:
            return replace(walk, verdict=Verdict.NOEXEC, place=loaded)
    if not os.path.isfile(place):
        return replace(walk, verdict=Verdict.BROKEN, why="is not a program")
    if not os.access(place, os.X_OK):
        return replace(walk, verdict=Verdict.REFUSED)
    head = _head(place)
    if head is not None and head[:2] != b"#!" and head[:4] != b"\x7fELF":
        return replace(walk, verdict=Verdict.BROKEN, why="is neither a program nor a script that begins with #!")
    words = head[2:].split(b"\n")[0].split() if head and head[:2] == b"#!" else []
    if words and _walk(os.fsdecode(words[0])).verdict is Verdict.MISSING:
        return replace(walk, verdict=Verdict.BROKEN, why=f"begins with #!{os.fsdecode(words[0])}, which is not there")
    for way in (path, *walk.way):
        folder, name = os.path.split(way)
        if os.path.basename(folder) == "shims" and not _is_python(place, head):
            return replace(walk, shim=True, interpreter=_behind(os.path.dirname(folder), name))
    return walk


def _head(path: str) -> bytes | None:
    """The first bytes of a file, as far as the kernel looks for what to do with it; None where it cannot be read."""
    try:
        return read_start(Path(path), 256)  # BINPRM_BUF_SIZE in linux/binfmts.h
    except (OSError, NotReadableError):
        return None


def _flags(folder: str) -> int:
    """How the file system of a folder, or of the nearest that is there, is mounted."""
    while True:
        try:
            return os.statvfs(folder or "/").f_flag
        except OSError:
            if folder in ("", "/"):
                return 0
            folder = os.path.dirname(folder)


def _describe(answer: Answer) -> Answer:
    """The mode and the owner of the place, and whether it is in the owner's home."""
    try:
        status = os.stat(answer.place)
    except OSError:
        return answer
    (owner, home), group = _name_of(status.st_uid), _group_of(status.st_gid)
    inside = len(home) > 1 and status.st_uid != 0 and f"{answer.place}/".startswith(f"{home.rstrip('/')}/")
    mode = stat.S_IMODE(status.st_mode)
    return replace(answer, mode=mode, owner=owner, group=group, home=owner if inside else None)


def _name_of(uid: int) -> tuple[str, str]:
    """A user's name, or the number where it has none, and its home."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return str(uid), ""
    return user.pw_name, user.pw_dir


def _group_of(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# ---- programs that stand before interpreters ----

# Where they keep those that they choose from, beside their folder of shims: pyenv, asdf and mise, rye.
_INSTALLED = ("versions", "installs/python", "py")

_VERSION_SIZE = 4096  # as much as is read of the file with the default; it has one name in a line


def _is_python(path: str, head: bytes | None) -> bool:
    """Whether a program is an interpreter by its name and is no script."""
    return (head or b"")[:2] != b"#!" and re.match(r"python|pypy|graalpy", os.path.basename(path)) is not None


def _behind(base: str, name: str) -> str | None:
    """The interpreter of the version that pyenv has as its default, or else the newest that is there."""
    wanted = ""
    with contextlib.suppress(OSError, NotReadableError, UnicodeDecodeError):
        wanted = (read_start(Path(base, "version"), _VERSION_SIZE).decode("utf-8").split() or [""])[0]
    for folder in _INSTALLED:
        try:
            versions = sorted(os.listdir(os.path.join(base, folder)), key=_version)
        except OSError:
            continue
        for version in (wanted, *reversed(versions)):
            for program in (name, "python3", "python"):
                path = os.path.join(base, folder, version, "bin", program)
                if version and os.access(path, os.X_OK):
                    return path
    return None


def _version(name: str) -> tuple[tuple[int, str], ...]:
    """A key by which 3.10 comes after 3.9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))

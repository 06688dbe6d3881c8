"""Looks what this process may do with a path: modes, ACLs, groups and mounts count as the kernel says."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import stat
from dataclasses import replace
from pathlib import Path

from torchpar.contract.owners import code_places, find_strangers, steps
from torchpar.host.reading import NotReadableError, read_start, why_not_opened
from torchpar.plan.questions import Answer, Identity, Need, Question, Verdict


def look(question: Question) -> Answer:
    """Answers a question for the user that this process is."""
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
    """Goes to a path as this process may, to where it ends or stops."""
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
    """Says whether the file or folder that was found can be used for its need."""
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
    """Says whether the interpreter can run, and is one."""
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
    """Reads the first bytes of a file, by which the kernel knows its kind; None where it cannot be read."""
    try:
        return read_start(Path(path), 256)  # BINPRM_BUF_SIZE in linux/binfmts.h
    except (OSError, NotReadableError):
        return None


def _flags(folder: str) -> int:
    """Reads the mount flags of a folder, or of the nearest one above it that is there."""
    while True:
        try:
            return os.statvfs(folder or "/").f_flag
        except OSError:
            if folder in ("", "/"):
                return 0
            folder = os.path.dirname(folder)


def _describe(answer: Answer) -> Answer:
    """Adds the mode and the owner of the place, and whether it is in the owner's home."""
    try:
        status = os.stat(answer.place)
    except OSError:
        return answer
    (owner, home), group = _name_of(status.st_uid), _group_of(status.st_gid)
    inside = len(home) > 1 and status.st_uid != 0 and f"{answer.place}/".startswith(f"{home.rstrip('/')}/")
    mode = stat.S_IMODE(status.st_mode)
    return replace(answer, mode=mode, owner=owner, group=group, home=owner if inside else None)


def _name_of(uid: int) -> tuple[str, str]:
    """Returns a user's name, or the number where it has none, and its home."""
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
    """Says whether a program is an interpreter by its name and is no script."""
    return (head or b"")[:2] != b"#!" and re.match(r"python|pypy|graalpy", os.path.basename(path)) is not None


def _behind(base: str, name: str) -> str | None:
    """Returns the interpreter of the version that pyenv has as its default, or else the newest that is there."""
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
    """Makes a key by which 3.10 comes after 3.9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def look_whose(question: Question, uid: int | None, identity: Identity) -> Answer:
    """Says whether only this user, and root, can change what is there. uid None: nobody knows the user.

    The process that looks may be another user's. Users have groups in which they trust; root has none. What systemd
    opens is a file, unless a / at the end says otherwise: of a folder it would read all that is in it.
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
    if system and (why := why_not_opened(path, itself=question.need is Need.OWN_NO_PIPE)):
        return Answer(Verdict.BROKEN, path, why=why)
    return Answer(Verdict.ALLOWED, path)


def _can_be_reached(path: str) -> bool:
    """Says whether the file can be opened as far as its way goes, and a folder entered; else other questions tell."""
    return _walk(path).verdict is Verdict.ALLOWED and (not os.path.isdir(path) or os.access(path, os.X_OK))


def look_for_another(question: Question) -> Answer:
    """Answers where this process cannot be the user asked for: it knows what is missing, and nothing of rights."""
    if os.geteuid() == 0:
        # Nothing that a user has made is opened with root's rights.
        answer = _walk(question.path)
        missing = answer.verdict is Verdict.MISSING and question.need is not Need.MAP
        return answer if missing else Answer(Verdict.ALLOWED)
    answer = look(question)
    of_rights = (Verdict.CLOSED, Verdict.REFUSED, Verdict.READ_ONLY)
    return Answer(Verdict.ALLOWED) if answer.verdict in of_rights else answer

"""Questions to a host about the files of services, and its answers, both as immutable values and JSON."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


class Need(enum.Enum):
    """The uses of a path that can be asked for."""

    READ = "read"  # Model=, Handler=: opened and read
    SCRIPT = "script"  # Script=: the same; of a folder or a zip file, its __main__.py
    THERE = "there"  # what systemd opens or mounts by Service.KEY=
    RUN = "run"  # Python=: executed, and code beside it mapped
    ENTER = "enter"  # WorkingDirectory=: made the current folder
    WRITE = "write"  # WorkingDirectory=, ReadWritePaths=: files are made in it, or it is a file that is written
    OWN = "own"  # nobody but the user, or root, can put something else there; asked in ownership
    OWN_NO_PIPE = "own no pipe"  # the same, and systemd itself opens it
    OWN_CODE = "own code"  # nor can modules be put beside it, where Python looks first
    MAP = "map"  # the cache of torch.compile: code is loaded from there; it need not be there yet


class Verdict(enum.Enum):
    """The answer to a question."""

    ALLOWED = "allowed"
    MISSING = "missing"  # there is nothing at `place`
    CLOSED = "closed"  # the folder `place` on the way cannot be entered
    REFUSED = "refused"  # `place` is there, and its mode or ACL does not allow it
    FOREIGN = "foreign"  # `place`, which is on the way, is another user's, or `shared`: its mode lets others write
    NOEXEC = "noexec"  # `place` is on a mount with noexec
    READ_ONLY = "read-only"  # `place` is on a mount that is read-only
    BROKEN = "broken"  # for another reason, which `why` has
    SILENT = "silent"  # the file system has not answered in time


@dataclass(frozen=True)
class Identity:
    """A user with its groups as systemd gives them, who asks; user None stands for root, as systemd itself reads."""

    user: str | None
    group: str | None = None
    groups: tuple[str, ...] = ()  # SupplementaryGroups=


@dataclass(frozen=True)
class Question:
    """A question to a host: can this path be used so?"""

    path: str
    need: Need


@dataclass(frozen=True)
class Answer:
    """A verdict and the place that decided it, with its mode and owner where these matter.

    `way` are the links that were followed and where they ended. `home` is the owner whose home the place is in.
    `shim` is a program in front of interpreters, as pyenv's; `interpreter` is one of those behind it.
    """

    verdict: Verdict
    place: str = ""
    mode: int | None = None
    owner: str | None = None
    group: str | None = None
    home: str | None = None
    way: tuple[str, ...] = ()
    why: str = ""
    shim: bool = False
    interpreter: str | None = None
    shared: bool = False


@dataclass(frozen=True)
class Found:
    """The answers of a host for one identity: the names that it does not know, and an answer to each question."""

    unknown_user: bool = False
    unknown_groups: tuple[str, ...] = ()
    answers: Mapping[Question, Answer] = field(default_factory=dict)


def answer_json(answer: Answer) -> dict[str, Any]:
    """Returns an answer as JSON data, on its way from the process that asked the kernel."""
    return {**asdict(answer), "verdict": answer.verdict.value}


def parse_answer(data: dict[str, Any]) -> Answer:
    """Reverses answer_json()."""
    return Answer(**{**data, "verdict": Verdict(data["verdict"]), "way": tuple(data["way"])})

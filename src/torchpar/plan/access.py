"""Finds out whether a service's user can reach what the conf names: questions to a host, and their answers.

Pure; host/access.py gets the answers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping

from torchpar.conf.passed import needed
from torchpar.conf.services import OWN_USER, Config, Service
from torchpar.conf.values import parse_boolean, simple_path
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict
from torchpar.plan.sandbox import SYSTEM_FOLDERS, caches, sandbox_settings, write_paths

# Below it PyTorch has a compiler put what it makes, unless TORCHINDUCTOR_CACHE_DIR says otherwise.
_TMP = "/tmp"

# With one of these a unit sees other files than the host has.
_OTHER_FILES = {
    "RootDirectory", "RootImage", "BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem", "MountImages",
    "ExtensionImages", "ExtensionDirectories",
}  # fmt: skip
# Of these systemd mounts anew what they name, and starts nothing where that is missing.
_SHOWN = {"ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths"}
# With one of these it has rights that its user alone has not.
_OTHER_RIGHTS = {"AmbientCapabilities", "CapabilityBoundingSet", "PermissionsStartOnly", "PAMName"}


def make_questions(config: Config) -> dict[Identity, tuple[Question, ...]]:
    """Makes everything to be asked of the host, each question once."""
    questions: dict[Identity, dict[Question, None]] = {}
    for service in config.services:
        for _, identity, question in _questions(service):
            of_identity = questions.setdefault(identity, {})
            if question:
                of_identity[question] = None
    return {identity: tuple(asked) for identity, asked in questions.items()}


def silent_paths(
    questions: Mapping[Identity, Iterable[Question]], found: Mapping[Identity, Found]
) -> frozenset[str]:
    """Finds the paths without any answer: those on a file system that is dead, and those asked after them."""
    answered = {
        question.path
        for identity in found.values()
        for question, answer in identity.answers.items()
        if answer.verdict is not Verdict.SILENT
    }
    return frozenset(question.path for asked in questions.values() for question in asked) - answered


def make_warnings(config: Config, found: Mapping[Identity, Found]) -> tuple[str, ...]:
    """Makes a warning of everything that keeps services from their files, with file and line and what to do."""
    warnings: list[str] = []
    for service in config.services:
        warnings += _unknown_names(service, found)
        for key, identity, question in _questions(service):
            answer = found[identity].answers.get(question) if question and identity in found else None
            if answer and question:
                what = _word(service, key, identity, question, answer)
                warnings += [what] if what else []
    return tuple(dict.fromkeys(warnings))


def _questions(service: Service) -> Iterator[tuple[str, Identity, Question | None]]:  # noqa: C901 - a branch for each key that names a path
    """Yields what is asked for a service: the key, who asks, and the question; None asks for the names alone."""
    settings, train, infer = service.settings, service.train(), service.infer()
    directives = dict(service.directives)
    system, user = Identity(None), identity_of(service)
    yield "", user, None
    for key, value in service.directives:
        # With one that is refused nothing is started.
        with contextlib.suppress(ValueError):
            for path in needed(key, value, service.unit):
                yield f"Service.{key}", system, Question(path or "/", Need.THERE)
    if has_other_files(service):
        return
    # What others are allowed is not known; but not even they can open what is not there.
    who = system if directives.keys() & _OTHER_RIGHTS else user
    paths = [("Python", settings.python, Need.RUN)]
    paths += [("Script", train.script, Need.SCRIPT)] if train and train.script else []
    if infer:
        paths += [(k, p, Need.READ) for k, p in (("Model", infer.model), ("Handler", infer.handler)) if p]
    if settings.working_directory:
        paths += [("WorkingDirectory", settings.working_directory, need) for need in (Need.ENTER, Need.WRITE)]
    paths += [("ReadWritePaths", path, Need.WRITE) for path in settings.read_write_paths]
    for key, value in service.directives:
        # Those with quotes or specifiers are systemd's to read.
        words = [word for word in value.split() if not re.search("[%\"'\\\\]", word)] if key in _SHOWN else []
        if key == "ReadWritePaths":
            paths += [(f"Service.{key}", path, Need.WRITE) for path in words]
        else:
            yield from ((f"Service.{key}", system, Question(p, Need.THERE)) for p in words if p.startswith("/"))
    for key, path, need in paths:
        if path.startswith("/"):  # "-" before it: it need not be there
            yield key, who, Question(path, need)
    if infer:
        for key, file in (("TLSCertificate", infer.tls_certificate), ("TLSKey", infer.tls_key)):
            if file:
                yield key, system, Question(file, Need.READ)
    variable = "TORCHINDUCTOR_CACHE_DIR"
    yield "", system, Question(service.variable(variable) or caches(service).get(variable, _TMP), Need.MAP)


def has_other_files(service: Service) -> bool:
    """Says whether its unit sees other files than the host has."""
    return not _OTHER_FILES.isdisjoint(key for key, _ in service.directives)


def identity_of(service: Service) -> Identity:
    """Returns the user and the groups that the service runs as."""
    groups = [words for key, words in service.directives if key == "SupplementaryGroups"]
    return Identity(service.settings.user or OWN_USER, service.settings.group, tuple(" ".join(groups).split()))


def _unknown_names(service: Service, found: Mapping[Identity, Found]) -> Iterator[str]:
    identity, user = identity_of(service), service.settings.user
    names = found.get(identity, Found())
    if user and names.unknown_user:
        yield (
            f"{service.origin('User')}: {service.section} User={user}: there is no such user on this host; the service "
            "fails until there is"
        )
    for group in names.unknown_groups:
        key = "Group" if group == service.settings.group else "Service.SupplementaryGroups"
        yield (
            f"{service.origin(key)}: {service.section} {key}={group}: there is no such group on this host; the service "
            "fails until there is"
        )


def _word(service: Service, key: str, identity: Identity, question: Question, answer: Answer) -> str | None:
    """Makes the warning that an answer is worth, if any."""
    if question.need is Need.MAP:
        return _word_cache(answer)
    subject = f"{service.origin(key)}: {service.section} {key}={question.path:.200}"
    # systemd itself reads them, before it shows other files to the service.
    own = key in ("TLSCertificate", "TLSKey") or question.need is Need.THERE
    hidden = None if own else _hidden(service, (question.path, answer.place, *answer.way))
    again = question.need is Need.WRITE and key == "WorkingDirectory"
    if hidden and answer.verdict is not Verdict.MISSING:
        return None if again else f"{subject}: {hidden}"
    if question.need is Need.WRITE:
        what = _word_write(identity, key, answer, _read_only(service, question.path, answer))
    elif answer.verdict is Verdict.ALLOWED:
        what = _word_shim(answer) if answer.shim else None
    else:
        what = _word_refusal(identity, question, answer)
    return f"{subject}: {what}" if what else None


def _word_refusal(identity: Identity, question: Question, answer: Answer) -> str:
    place, until = answer.place, "the service fails until"
    linked = "" if _is_below(simple_path(question.path), place) else ", to which links lead"
    who = f"user {identity.user}" if identity.user else "root"
    if answer.verdict is Verdict.MISSING:
        words = {Need.RUN: "program", Need.ENTER: "folder", Need.THERE: "file or folder"}
        what = words.get(question.need, "file")
        links = f": its links lead to {place}" if linked else ""
        return f"no such {what} on this host{links}; {until} it is there"
    if answer.verdict is Verdict.NOEXEC:
        return f"{place} is on a mount with noexec, from which nothing runs; put it elsewhere"
    if answer.verdict is Verdict.SILENT:
        return "its file system does not answer, so it is not checked; a service would wait for it too"
    if answer.verdict is Verdict.BROKEN:
        return f"{'' if place == question.path else f'{place}: '}{answer.why}; {until} it is mended"
    verb = {Need.RUN: "execute", Need.ENTER: "enter"}.get(question.need, "read")
    if answer.verdict is Verdict.CLOSED:
        verb = "enter"
    mode = "" if answer.mode is None else f" (mode {answer.mode:04o}, {answer.owner}:{answer.group})"
    return f"{who} cannot {verb} {place}{mode}{linked}; {_remedy(identity, question.need, verb, answer)}"


def _remedy(identity: Identity, need: Need, verb: str, answer: Answer) -> str:
    """Says how to let a user in: as another user, elsewhere, or by an ACL, but never to run another user's code."""
    right = {"enter": "x", "execute": "rx"}.get(verb, "rX")
    allow = f", or allow it: setfacl -m u:{identity.user}:{right} {answer.place}"
    if answer.home and answer.home != identity.user:
        return f"set User={answer.home}, whose home that is; or put it elsewhere" + allow * (need is Need.ENTER)
    if answer.owner and answer.owner not in ("root", identity.user) and not answer.owner.isdigit():
        return f"set User={answer.owner}, to whom that belongs" + allow * (need is Need.ENTER)
    return f"put it elsewhere{allow}"


def _cannot_write(key: str) -> str:
    working = key == "WorkingDirectory"
    what = "what the script writes by a relative path, a checkpoint for example," if working else "a write there"
    return f"{what} fails; name another folder"


def _word_write(identity: Identity, key: str, answer: Answer, closed: str | None) -> str | None:
    """Says what is wrong with a write; that a working directory is missing or closed is told by the other question.

    `closed` says what in the unit keeps even a user who may from writing there.
    """
    named, cannot = key != "WorkingDirectory", _cannot_write(key)
    if answer.verdict is Verdict.MISSING and named:
        return "no such file or folder on this host; the service fails until it is there, or - stands before it"
    if answer.verdict is Verdict.READ_ONLY:
        return f"it is on a mount that is read-only; {cannot}"
    if answer.verdict is Verdict.REFUSED or answer.verdict is Verdict.CLOSED and named:
        enter = answer.verdict is Verdict.CLOSED
        where = f"enter {answer.place}" if enter else "write there"
        mode = "" if answer.mode is None else f" (mode {answer.mode:04o}, {answer.owner}:{answer.group})"
        acl = f", or allow it: setfacl -m u:{identity.user}:{'x' if enter else 'rwx'} {answer.place}"
        # Whoever may write in a folder of the system may become root.
        of_system = answer.place == "/" or any(_is_below(answer.place, folder) for folder in SYSTEM_FOLDERS)
        return f"user {identity.user} cannot {where}{mode}; {cannot}" + ("" if closed or of_system else acl)
    return f"{closed}; {cannot}" if closed and answer.verdict is Verdict.ALLOWED else None


def _word_shim(answer: Answer) -> str:
    name = answer.interpreter or "its path ends in bin/python3"
    return (
        "is not an interpreter but chooses one, by files in the home and the working folder of whoever starts it, "
        f"and a service is not who installed it; name the interpreter itself: {name}"
    )


def _word_cache(answer: Answer) -> str | None:
    if answer.verdict is not Verdict.NOEXEC:
        return None
    return (
        f"{answer.place} is on a mount with noexec: a job that uses torch.compile or Triton fails when it loads what "
        "it compiled there; mount it with exec, or set TORCHINDUCTOR_CACHE_DIR= and TRITON_CACHE_DIR= in Environment="
    )


def _hidden(service: Service, paths: tuple[str, ...]) -> str | None:
    """Finds what in the unit hides one of the paths from the service."""
    directives = dict(service.directives)
    home = directives.get("ProtectHome", "no").lower()
    rules = []
    if _is_yes(home) or home == "tmpfs":
        rules += [(folder, f"Service.ProtectHome={home} hides {folder}") for folder in _HOMES]
    # The shipped units say yes.
    private = directives.get("PrivateTmp", _setting(service, "PrivateTmp", "yes")).lower()
    if _is_yes(private) or private == "disconnected":
        own = "the service has {} of its own; put it elsewhere, or set Service.PrivateTmp=no"
        rules += [(folder, own.format(folder)) for folder in ("/tmp", "/var/tmp")]
    for key, value in service.directives:
        if key in ("InaccessiblePaths", "InaccessibleDirectories"):
            rules += [(path.lstrip("-+"), f"Service.{key}= hides {path.lstrip('-+')}") for path in value.split()]
    return next((why for folder, why in rules for path in paths if _is_below(path, folder)), None)


_HOMES = ("/home", "/root", "/run/user")


def _read_only(service: Service, path: str, answer: Answer) -> str | None:
    """Finds what in the unit lets nobody write to what was found, if the user could; see systemd.exec(5)."""
    if answer.verdict not in (Verdict.ALLOWED, Verdict.REFUSED) or not answer.place:
        return None
    directives = dict(service.directives)
    # The shipped units say strict, and read-only.
    system = directives.get("ProtectSystem", _setting(service, "ProtectSystem", "strict")).lower()
    home = directives.get("ProtectHome", _setting(service, "ProtectHome", "read-only")).lower()
    folders = ("/",) if system == "strict" else SYSTEM_FOLDERS if system == "full" else SYSTEM_FOLDERS[:3]
    opened = ["/dev", "/proc", "/sys", *write_paths(service)]
    opened += [f"/var/{kind}/torchpar/{service.kind.value}/{service.name}" for kind in ("lib", "cache")]
    closed = []
    if system in ("strict", "full") or _is_yes(system):
        closed += [(folder, len(folder), f"ProtectSystem={system} makes {folder} read-only") for folder in folders]
    if home == "read-only":
        closed += [(folder, len(folder), f"ProtectHome={home} makes {folder} read-only") for folder in _HOMES]
    for key, value in service.directives:
        if key in ("ReadWritePaths", "ReadWriteDirectories"):
            opened = [*opened, *value.split()] if value else []
        elif key in _FOLDERS:
            opened += [f"{_FOLDERS[key]}/{word.partition(':')[0]}" for word in value.split()]
        elif key in ("ReadOnlyPaths", "ReadOnlyDirectories"):
            # The stricter of two for one path.
            words = map(_plain, value.split())
            closed += [(word, len(word) + 1, f"Service.{key}= makes {word} read-only") for word in words]
    if system == "strict":
        # Of the two settings on all of the file system systemd keeps the stricter one.
        opened = [word for word in opened if _plain(word) != "/"]
    # Of nested paths the innermost decides. systemd follows links, so what opens the path opens where it leads.
    depths = [len(folder) for folder in map(_plain, opened) if _is_below(answer.place, folder)]
    if simple_path(path) in map(_plain, opened):
        depths.append(len(answer.place))
    deepest = max(depths, default=0)
    rules = (why for folder, depth, why in closed if depth > deepest and _is_below(answer.place, folder))
    return next((f"in its unit {why}" for why in rules), None)


# What a unit makes for its service to write in, and where.
_FOLDERS = {
    "StateDirectory": "/var/lib",
    "CacheDirectory": "/var/cache",
    "LogsDirectory": "/var/log",
    "RuntimeDirectory": "/run",
}


def _plain(word: str) -> str:
    """Returns a path of a directive, without the signs that may stand before it."""
    return simple_path(word.lstrip("-+"))


def _setting(service: Service, key: str, shipped: str) -> str:
    """Returns the value that the drop-in gives a setting of the shipped unit, or the shipped one."""
    return dict(sandbox_settings(service)).get(key, (shipped,))[0]


def _is_yes(text: str) -> bool:
    try:
        return parse_boolean(text)
    except ValueError:
        return False


def _is_below(path: str, folder: str) -> bool:
    """Says whether a path is a folder or in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")

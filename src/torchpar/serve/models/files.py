"""Finds models and who may write them: a model file is a program, and runs as the service's user.

Model= is a file, served as version 1 under the service's name, or a directory of models: NAME/VERSION/model.pt (.pt2,
.py), VERSION a number. A description is beside the file: model.json.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass

from torchpar.contract.owners import code_places, find_strangers
from torchpar.serve.errors import ModelError

SUFFIXES = (".pt", ".pt2", ".py")


@dataclass(frozen=True)
class ModelFile:
    """One version of one model; description is the path of the .json file, None if there is none."""

    name: str
    version: str
    path: str
    description: str | None


def find_models(name: str, path: str) -> tuple[list[ModelFile], list[str]]:
    """Finds all versions of all models, sorted; returns them, and a line for each problem with the rest.

    name is the service's, which a single file's model has.
    """
    if not os.path.isdir(path):
        return [_model_file(name, "1", path)], []
    found: list[ModelFile] = []
    problems: list[str] = []
    for model in _folders(path):
        versions = [entry for entry in _folders(os.path.join(path, model)) if entry.isdecimal()]
        triton = os.path.join(path, model, "config.pbtxt")
        if os.path.exists(triton):
            problems.append(
                f"{triton}: it is Triton's, and is not read here: say what it says of inputs, outputs and batches in"
                f" {model}/VERSION/model.json (torchpar-model(5))"
            )
        if not versions:
            problems.append(f"{os.path.join(path, model)}: no version in it, such as {model}/1/model.pt")
        for version in sorted(versions, key=int):
            folder = os.path.join(path, model, version)
            files = [f for f in (os.path.join(folder, "model" + suffix) for suffix in SUFFIXES) if os.path.exists(f)]
            if len(files) == 1:
                found.append(_model_file(model, version, files[0]))
            else:
                what = "two models" if files else "no model.pt, model.pt2 or model.py"
                problems.append(f"{folder}: {what} in it")
    return found, problems


def check_owner(path: str) -> None:
    """Refuses a file that somebody else could have written, or can replace. Raises ModelError."""
    owners = (0, os.geteuid())
    try:
        real = os.path.realpath(path)
        about = os.stat(real)
        named = os.path.join(os.getcwd(), path)
        places = code_places(named) if path.endswith(".py") else [named]
        found = (each for place in places for each in find_strangers(place, owners, shared=os.geteuid() != 0))
        stranger = next(found, None)
    except PermissionError:
        raise ModelError(f"{path}: {_closed(real)}") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(about.st_mode):
        raise ModelError(f"{path}: not a file")
    if stranger and stranger.is_writable(owners):
        what = "write to it" if stranger.place == real else "replace it"
        who, way = ("everybody", "o-w") if stranger.mode & stat.S_IWOTH else ("others than root", "g-w")
        raise ModelError(f"{path}: {who} may {what}, and so run code in this service: chmod {way} {stranger.place}")
    if stranger:
        place = "" if stranger.place == real else f"{stranger.place} "
        raise ModelError(
            f"{path}: {place}belongs to {_user(stranger.uid)}; a model is a program: chown it to root or to the"
            f" service's user, {_name(os.geteuid())}, or run the service as its owner with User="
        )


def _closed(path: str) -> str:
    """Says which directory of the path the service's user may not enter, and what to do."""
    way = "/"
    for part in ["", *path.split("/")[1:-1]]:
        way = os.path.join(way, part)
        try:
            os.stat(os.path.join(way, "."))
        except OSError:
            break
    about = os.stat(way)
    return (
        f"{_name(os.geteuid())}, the service's user, may not enter {way}, which has mode {about.st_mode & 0o7777:04o}"
        f" and belongs to {_user(about.st_uid)}: put the model below /srv, or run the service as that user with User="
    )


def _user(uid: int) -> str:
    """Names a file's owner in words; in a user namespace all others look like the one that nobody is."""
    if uid == _overflow() and not _sees_all_users():
        return "another user (ls -l shows whose it is; with PrivateUsers=yes this service cannot see that)"
    return f"user {_name(uid)}"


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return str(uid)


def _overflow() -> int:
    try:
        with open("/proc/sys/kernel/overflowuid", encoding="ascii") as text:
            return int(text.read())
    except (OSError, ValueError):
        return 65534


def _sees_all_users() -> bool:
    """Says whether the process is in no user namespace with a part of the users only."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as text:
            return any(line.split()[0] == "0" and int(line.split()[2]) == 0xFFFFFFFF for line in text)
    except (OSError, ValueError, IndexError):
        return True


def _folders(path: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _model_file(name: str, version: str, path: str) -> ModelFile:
    beside = os.path.splitext(path)[0] + ".json"
    return ModelFile(name, version, path, beside if os.path.exists(beside) else None)

"""Tells which processes serve the same files: an answer must not depend on the process that is asked."""

from __future__ import annotations

from collections.abc import Iterable

from torchpar.serve.models.identity import Serves, same
from torchpar.serve.supervisor.member import Member


def alike(one: Serves | None, other: Serves | None) -> bool:
    """Says whether two processes serve the same; unknown ones do not differ."""
    return one is None or other is None or same(one, other)


def find_model(members: Iterable[Member], but: Member | None = None) -> Member | None:
    """Returns another that answers, whose files are those of the service; None where there is none.

    One that loads, and may serve new files of some models and former ones of others, is the last choice.
    """
    going = [each for each in members if each.going and each is not but]
    return max(going, key=lambda each: (not each.calls, each.ready), default=None)


def find_others(members: Iterable[Member], model: Member) -> list[Member]:
    """Returns those that answer with other files than this one."""
    answering = [each for each in members if each is not model and each.ready and each.going and each.channel]
    return [each for each in answering if not alike(model.serves, each.serves)]


def refuse(member: Member, model: Member | None, what: str) -> None:
    """Marks a process that found other files than the others, which are those of `model`, as refused.

    It is tried again if the others serve something else by now.
    """
    member.refused = True
    member.out = what if model and model.serves == member.like else ""

"""Judges the owners of files that a service runs and that systemd opens for it: questions to a host, and refusals.

What runs as a user is that user's or root's, with everything on the way to it: whoever else can change it runs as that
user. What systemd opens as root is root's alone. Pure; host/access.py gets the answers.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping

from torchpar.conf.passed import OPENED_BY_SYSTEMD
from torchpar.conf.services import Config, Service
from torchpar.contract.errors import Problem, printable
from torchpar.plan.access import has_other_files, identity_of
from torchpar.plan.opened import Named, opened_paths
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict

ROOT = Identity(None)


def add_questions(
    config: Config, questions: Mapping[Identity, tuple[Question, ...]]
) -> dict[Identity, tuple[Question, ...]]:
    """Adds the questions about owners to those of access, each once."""
    asked = {identity: dict.fromkeys(of_identity) for identity, of_identity in questions.items()}
    for service in config.services:
        for _, identity, question in _questions(service):
            asked.setdefault(identity, {})[question] = None
    return {identity: tuple(of_identity) for identity, of_identity in asked.items()}


def find_refusals(config: Config, found: Mapping[Identity, Found]) -> dict[str, tuple[Problem, ...]]:
    """Finds the problems that keep services from being put in force, by unit."""
    refusals = {service.unit: _refusals(service, _questions(service), found) for service in config.services}
    return {unit: problems for unit, problems in refusals.items() if problems}


def opened_questions(service: Service) -> dict[Identity, tuple[Question, ...]]:
    """Makes the questions about what systemd opens for a service, whatever it runs."""
    return {ROOT: tuple(question for _, _, question in _opened_questions(service))}


def find_opened_refusals(service: Service, found: Mapping[Identity, Found]) -> tuple[Problem, ...]:
    """Finds what is wrong with what systemd opens for a job, for which nothing looks again; no answer is wrong too."""
    answered = {question for identity in found.values() for question in identity.answers}
    silent = Answer(Verdict.BROKEN, why="could not be looked at in time, so it may be anybody's; try again")
    questions = tuple(_opened_questions(service))
    unknown = {question: silent for _, _, question in questions if question not in answered}
    for each in found.values():
        unknown |= {question: silent for question, answer in each.answers.items() if answer.verdict is Verdict.SILENT}
    answers = {ROOT: Found(answers={**(found[ROOT].answers if ROOT in found else {}), **unknown})}
    return _refusals(service, questions, answers)


def _refusals(
    service: Service, questions: Iterable[tuple[Named, Identity, Question]], found: Mapping[Identity, Found]
) -> tuple[Problem, ...]:
    problems: dict[Problem, None] = {}
    for named, identity, question in questions:
        answer = found[identity].answers.get(question) if identity in found else None
        if answer and answer.verdict in (Verdict.FOREIGN, Verdict.BROKEN):
            what = f"{named.key}={printable(named.value, 200)}: {_word(named, identity, answer)}"
            line = f"{named.key}={named.value}"
            problems[service.problem(line if line in service.origins else named.key, what)] = None
    return tuple(problems)


def code_paths(service: Service) -> Iterator[tuple[Named, Need]]:
    """Yields everything that the service runs, and whether Python looks for modules beside it."""
    settings, train, infer = service.settings, service.train(), service.infer()
    yield Named("Python", settings.python, settings.python), Need.OWN
    if train and train.script:
        yield Named("Script", train.script, train.script), Need.OWN_CODE
    if infer and infer.model:
        yield Named("Model", infer.model, infer.model), Need.OWN_CODE if infer.model.endswith(".py") else Need.OWN
    if infer and infer.handler:
        yield Named("Handler", infer.handler, infer.handler), Need.OWN_CODE
    if train and train.module and settings.working_directory:
        yield Named("WorkingDirectory", settings.working_directory, settings.working_directory), Need.OWN


def _questions(service: Service) -> Iterator[tuple[Named, Identity, Question]]:
    if not has_other_files(service):
        for named, need in code_paths(service):
            yield named, identity_of(service), Question(named.path, need)
    yield from _opened_questions(service)


def _opened_questions(service: Service) -> Iterator[tuple[Named, Identity, Question]]:
    for named in opened_paths(service):
        itself = named.key.removeprefix("Service.") in OPENED_BY_SYSTEMD
        yield named, ROOT, Question(named.path, Need.OWN_NO_PIPE if itself else Need.OWN)


def _word(named: Named, identity: Identity, answer: Answer) -> str:
    if answer.verdict is Verdict.BROKEN:
        return answer.why
    place, owner, mode = printable(answer.place), answer.owner or "another user", answer.mode or 0
    itself = answer.place == named.path
    if identity == ROOT:
        who = "systemd opens it as root, so nobody else may be able to put another file there"
        if answer.shared:
            return f"others than root may write to {place} (mode {mode:04o}); {who}: chmod go-w {place}"
        where = "it belongs" if itself else f"{place}, which is on the way, belongs"
        return f"{where} to {owner}; {who}: put it where only root can write, in /etc for example"
    user = identity.user
    who = f"whoever can change it runs as {user}"
    if named.key in ("Model", "Handler"):
        who = f"a model is a program, and {who}"
    if answer.shared:
        # /tmp, or a device: so they have to be.
        meant = mode & stat.S_ISVTX or f"{answer.place}/".startswith("/dev/")
        remedy = "put it elsewhere" if meant else f"chmod o-w {place}"
        return f"everybody may write to {place} (mode {mode:04o}); {who}: {remedy}"
    theirs = f"set User={owner}, or " if answer.owner and not owner.isdigit() and owner != "root" else ""
    return f"{place} belongs to {owner}; {who}: {theirs}chown it to root or to {user}"

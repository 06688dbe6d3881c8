"""Whose files a service may run, and which systemd may open for it, as a person is told."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config
from torchpar.conf.syntax import ConfFile
from torchpar.plan.ownership import add_questions, find_opened_refusals, find_refusals, opened_questions
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict

TORCHPAR, ML, ROOT = Identity("torchpar"), Identity("ml"), Identity(None)
TRAIN = "[Train a]\nScript=/srv/p/s.py\n"
INFER = "[Infer a]\nModel=/srv/m.pt\nTLSCertificate=/etc/tls/c.pem\nTLSKey=/etc/tls/k.pem\n"


def read(text: str) -> Config:
    """The conf /c of these lines."""
    return parse_config([ConfFile("/c", text)], make_host())


def refused(text: str, identity: Identity, answers: Mapping[str, Answer]) -> list[str]:
    """What is refused where the host answers so for these paths."""
    needs = (Need.OWN, Need.OWN_CODE)
    found = {identity: Found(answers={Question(path, need): answers[path] for path in answers for need in needs})}
    return [str(problem) for problems in find_refusals(read(text), found).values() for problem in problems]


def test_of_a_job_that_nothing_guards_what_gives_no_answer_is_refused() -> None:
    """A file system of the user's that hangs would hide whose file it is."""
    (job,) = read("[Train a]\nScript=/s.py\nService.StandardOutput=append:/mnt/u/log\n").services
    ((identity, (question,)),) = opened_questions(job).items()
    for answers in ({}, {question: Answer(Verdict.SILENT)}):
        (problem,) = find_opened_refusals(job, {identity: Found(answers=answers)})
        line = "/c:3: [Train a] Service.StandardOutput=append:/mnt/u/log"
        assert str(problem).startswith(f"{line}: could not be looked at")
    assert find_opened_refusals(job, {})
    assert not find_opened_refusals(job, {identity: Found(answers={question: Answer(Verdict.ALLOWED)})})


def foreign(place: str, owner: str, mode: int = 0o644, *, shared: bool = False) -> Answer:
    return Answer(Verdict.FOREIGN, place, mode, owner, owner, shared=shared)


@pytest.mark.parametrize(
    ("text", "identity", "paths"),
    [
        (TRAIN, TORCHPAR, ["/usr/bin/python3", "/srv/p/s.py+"]),
        (f"{TRAIN}User=ml\nPython=/v/bin/python3\n", ML, ["/v/bin/python3", "/srv/p/s.py+"]),
        ("[Train a]\nModule=m\n", TORCHPAR, ["/usr/bin/python3"]),
        ("[Train a]\nModule=m\nWorkingDirectory=/w\n", TORCHPAR, ["/usr/bin/python3", "/w"]),
        (INFER, TORCHPAR, ["/usr/bin/python3", "/srv/m.pt"]),
        (INFER, ROOT, ["/etc/tls/c.pem", "/etc/tls/k.pem"]),
        ("[Infer a]\nHandler=/h.py\nUser=ml\n", ML, ["/usr/bin/python3", "/h.py+"]),
        ("[Infer a]\nModel=/srv/m.py\n", TORCHPAR, ["/usr/bin/python3", "/srv/m.py+"]),
    ],
)
def test_what_runs_is_asked_for_as_its_user_and_what_systemd_opens_as_root(
    text: str, identity: Identity, paths: list[str]
) -> None:
    """Also where Python looks for modules first: beside a script or handler (+), in the working folder of a module."""
    needs = {path.rstrip("+"): Need.OWN_CODE if path.endswith("+") else Need.OWN for path in paths}
    assert add_questions(read(text), {})[identity] == tuple(Question(path, need) for path, need in needs.items())


def test_a_script_of_another_user_is_refused_with_both_ways_out() -> None:
    """Or in the folder of another user."""
    answer = foreign("/srv/p", "ml", 0o755)
    assert refused(TRAIN, TORCHPAR, {"/srv/p/s.py": answer}) == [
        "/c:2: [Train a] Script=/srv/p/s.py: /srv/p belongs to ml; whoever can change it runs as torchpar: "
        "set User=ml, or chown it to root or to torchpar"
    ]
    unnamed = foreign("/srv/p", "4242")
    assert "as torchpar: chown it to root" in refused(TRAIN, TORCHPAR, {"/srv/p/s.py": unnamed})[0]


def test_what_everybody_may_write_is_refused() -> None:
    """A model, which is a program as well."""
    answer = foreign("/srv/m.pt", "root", 0o666, shared=True)
    (problem,) = refused(INFER, TORCHPAR, {"/srv/m.pt": answer})
    assert problem == (
        "/c:2: [Infer a] Model=/srv/m.pt: everybody may write to /srv/m.pt (mode 0666); a model is a program, and "
        "whoever can change it runs as torchpar: chmod o-w /srv/m.pt"
    )


@pytest.mark.parametrize(("place", "mode"), [("/tmp", 0o1777), ("/dev/null", 0o666)])
def test_what_everybody_has_to_be_able_to_write_is_not_to_be_closed(place: str, mode: int) -> None:
    """A host without a /tmp or a /dev/null for all does not work any more."""
    answer = foreign(place, "root", mode, shared=True)
    (problem,) = refused(TRAIN, TORCHPAR, {"/srv/p/s.py": answer})
    assert problem.endswith(f"(mode {mode:04o}); whoever can change it runs as torchpar: put it elsewhere")


def test_a_key_that_others_than_root_could_replace_is_refused() -> None:
    """A link of another user on the way, a folder that a group may write to."""
    (problem,) = refused(INFER, ROOT, {"/etc/tls/k.pem": foreign("/srv/tls", "ml", 0)})
    assert problem == (
        "/c:4: [Infer a] TLSKey=/etc/tls/k.pem: /srv/tls, which is on the way, belongs to ml; systemd opens it "
        "as root, so nobody else may be able to put another file there: put it where only root can write, in /etc for "
        "example"
    )
    (problem,) = refused(INFER, ROOT, {"/etc/tls/c.pem": foreign("/etc/tls", "root", 0o775, shared=True)})
    assert "others than root may write to /etc/tls (mode 0775)" in problem and "chmod go-w /etc/tls" in problem


def test_a_folder_in_the_place_of_a_key_is_refused() -> None:
    """systemd would hand over everything that is in it."""
    (problem,) = refused(INFER, ROOT, {"/etc/tls/k.pem": Answer(Verdict.BROKEN, why="is a folder")})
    assert problem == "/c:4: [Infer a] TLSKey=/etc/tls/k.pem: is a folder"


def test_what_hangs_or_cannot_be_known_is_not_refused() -> None:
    """A dead server keeps no conf from being put in force; what is not there yet neither."""
    for verdict in (Verdict.SILENT, Verdict.ALLOWED, Verdict.MISSING):
        assert not refused(TRAIN, TORCHPAR, {"/srv/p/s.py": Answer(verdict)})
    assert not find_refusals(read(TRAIN), {})

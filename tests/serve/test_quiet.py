"""A service that lends its CPUs says that it is idle, and takes that back at its first request."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank, make_given_json
from torchpar.contract.job import JobSettings, RankSettings, ServeSettings
from torchpar.serve.quiet import IDLE_SECONDS, IdleMark, Requests

UNIT = "torchpar-infer@m.service"
SERVE = ServeSettings("/m.pt", None, (), (), None, "auto", None, None, 30, own=True, lend=True)
JOB = JobSettings(UNIT, 1, None, (RankSettings(0, "0-3", "0", 4, 0, ()),), serve=SERVE)


class Service:
    """Its folder, the file that torchpard writes for it, and its two sides."""

    def __init__(self, folder: Path) -> None:
        self.mark, self.given = folder / "jobs/idle", folder / "given"
        self.mark.parent.mkdir()
        self.given.mkdir()
        self.environ = {"RUNTIME_DIRECTORY": str(self.mark.parent), "INVOCATION_ID": "run"}
        self.whole = IdleMark(JOB, self.environ, folder=str(self.given))
        self.requests = Requests(self.environ)

    def lend(self, to: str) -> None:
        """As torchpard says it."""
        ranks = (GivenRank(CpuSet.parse("0-3"), 4),)
        (self.given / UNIT).write_text(make_given_json(Given(UNIT, "run", ranks, ranks, 0.0, lent_to=to)))


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_it_is_idle_when_all_of_its_processes_are(service: Service) -> None:
    now = time.monotonic()
    for quiet, idle in (((), False), ((11, 9), False), ((11, 10), True), ((12, 11), True), ((0.5, 12), False)):
        service.whole.tell(quiet, now)
        assert service.mark.exists() is idle, quiet


def test_the_first_request_removes_the_mark_at_once(service: Service) -> None:
    now = time.monotonic()
    service.whole.tell([IDLE_SECONDS], now)
    service.requests.came(now + IDLE_SECONDS)
    assert not service.mark.exists()


def test_so_does_one_after_it_where_the_mark_was_made_by_who_did_not_know_yet(service: Service) -> None:
    now = time.monotonic()
    service.requests.came(now + IDLE_SECONDS)
    service.whole.tell([IDLE_SECONDS], now)
    service.requests.came(now + IDLE_SECONDS + 1)
    assert not service.mark.exists()
    assert service.requests.quiet_seconds(now + IDLE_SECONDS + 2, open_requests=False) == pytest.approx(1)


def test_a_service_that_computes_is_not_idle_however_long_that_takes(service: Service) -> None:
    now = time.monotonic() + 300
    assert service.requests.quiet_seconds(now, open_requests=True) == 0
    assert service.requests.quiet_seconds(now + 3, open_requests=False) == pytest.approx(3)


def test_one_that_lends_nothing_makes_no_mark(service: Service) -> None:
    keeps = JobSettings(UNIT, 1, None, JOB.ranks, serve=ServeSettings(**{**vars(SERVE), "lend": False}))
    for job, environ in ((keeps, service.environ), (JOB, {})):
        IdleMark(job, environ).tell([IDLE_SECONDS], time.monotonic())
        assert not service.mark.exists()


@pytest.mark.parametrize("answers", [True, False])
def test_it_says_where_torchpard_does_not_take_back_what_was_lent(
    service: Service, capfd: pytest.CaptureFixture[str], answers: bool
) -> None:
    now = time.monotonic()
    service.lend("train@a")
    service.whole.tell([IDLE_SECONDS], now)
    service.requests.came(now + IDLE_SECONDS)
    service.lend("" if answers else "train@a")
    for seconds in (1, 2, 3, 4):
        service.whole.tell([0.5], now + seconds)
    said = "torchpard does not answer: train@a may still compute on CPUs 0-3, which were lent"
    assert capfd.readouterr().err.count(said) == (not answers)

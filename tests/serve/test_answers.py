"""What the first process tells of the service's answers, for torchpard."""

from __future__ import annotations

from pathlib import Path

from torchpar.contract.serving import rates
from torchpar.host.job_folder import read_serving
from torchpar.serve.engine.statistics import Statistics
from torchpar.serve.supervisor.answers import PERIOD, Answers


def counted(answered: int, failed: int = 0, seconds: float = 0.02) -> Statistics:
    """A model that has answered so many requests, each in so many seconds."""
    statistics = Statistics()
    for _ in range(answered):
        statistics.batch(arrivals=[0.0], rows=1, times=(0.0, 0.0, seconds, seconds, seconds))
    for _ in range(failed):
        statistics.failure("BACKEND")
    return statistics


def test_what_is_told_is_of_the_last_half_a_minute(tmp_path: Path) -> None:
    """Over all models; torchpard reads it from the service's folder."""
    folder = tmp_path / "torchpar-infer@web"
    folder.mkdir()
    answers = Answers({"RUNTIME_DIRECTORY": f"{folder}:/other"})
    for look in range(40):
        now = 100.0 + look * PERIOD
        answers.tell([("a", "1", counted(10 * look), 2), ("b", "1", counted(0, look), 1)], now)
    report = read_serving("torchpar-infer@web.service", str(tmp_path))
    assert report and report.last.time - report.first.time == 15 * PERIOD
    serving = rates(report, 178.0)
    assert serving and (serving.requests_per_second, serving.errors_per_second) == (5.0, 0.5)
    assert (serving.p99_seconds, serving.queued_requests, serving.silent_seconds) == (0.025, 3, 0.0)
    assert [path.name for path in folder.iterdir()] == ["serving.json"]


def test_counters_that_go_with_their_model_begin_anew(tmp_path: Path) -> None:
    """As when a client unloads it: totals that fall are no rate."""
    folder = tmp_path / "torchpar-infer@web"
    folder.mkdir()
    answers = Answers({"RUNTIME_DIRECTORY": str(folder)})
    answers.tell([("a", "1", counted(10), 0)], 100.0)
    answers.tell([("a", "1", counted(3), 0)], 102.0)
    report = read_serving("torchpar-infer@web.service", str(tmp_path))
    assert report and report.first == report.last and rates(report, 103.0) is None


def test_what_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """No folder, one that has gone, and a link in the file's place, which is not followed."""
    Answers({}).tell([], 1.0)
    Answers({"RUNTIME_DIRECTORY": str(tmp_path / "gone")}).tell([], 1.0)
    (tmp_path / "aim").write_text("x")
    (tmp_path / "serving.json.new").symlink_to(tmp_path / "aim")
    Answers({"RUNTIME_DIRECTORY": str(tmp_path)}).tell([], 1.0)
    assert (tmp_path / "aim").read_text() == "x"

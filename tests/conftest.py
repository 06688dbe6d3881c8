"""What holds for every test: a unit or case test may not start a process unless it says so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Audit events (see "Audit events table" in the Python documentation) that mean a new process, or another program.
_STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}


class _Guard:
    """Sees every audit event of this interpreter; an audit hook can never be taken away, so it is switched."""

    def __init__(self) -> None:
        self.closed = False
        self.seen: list[str] = []

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.closed and event in _STARTS:
            self.seen.append(f"{event}{arguments!r:.200}")
            raise RuntimeError(f"this test may not start a process ({event}); mark it with @pytest.mark.subprocess")


# A job in the background of a shell ignores SIGINT, and so would everything that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A host that is slow is no failure of what is tested.
# The same examples each time: a build fails again where it failed. EXAMPLES=N tries others, where a test takes it.
settings.register_profile(
    "torchpar",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="EXAMPLES" not in os.environ,
)
settings.load_profile("torchpar")

_guard = _Guard()
sys.addaudithook(_guard.hook)


@pytest.fixture(autouse=True)
def _no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts a process without @pytest.mark.subprocess or @pytest.mark.machine."""
    allowed = any(request.node.get_closest_marker(name) for name in ("subprocess", "machine"))
    _guard.seen.clear()
    _guard.closed = not allowed
    try:
        yield
    finally:
        _guard.closed = False
    # Also when the code under test swallowed the error above.
    assert not _guard.seen, f"a process was started without @pytest.mark.subprocess: {_guard.seen[0]}"


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands print as into a pipe: pytest-xdist gives its workers the width of a terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Makes a short name for a long value, so that a log can be read; pytest numbers those that are alike."""
    text = val.decode(errors="replace") if isinstance(val, bytes) else val
    return f"{text[:40]}..." if isinstance(text, str) and len(text) > 120 else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of the cases."""
    parser.addoption("--update-expected", action="store_true", help="write what comes out as what is expected")


@pytest.fixture
def update_expected(request: pytest.FixtureRequest) -> bool:
    """Whether the cases write what comes out."""
    return bool(request.config.getoption("--update-expected"))

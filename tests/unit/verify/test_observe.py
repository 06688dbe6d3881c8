"""What `torchpar status` sees, on a host whose systemd and store are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchpar.generations.generation import Content
from torchpar.generations.retry import LACKING
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.conf import ConfReader
from torchpar.verify import observe

RUNNING = "torchpar-train@x.service"
PROPERTIES = {"MainPID": 0, "ActiveState": "active", "SubState": "running", "ActiveEnterTimestamp": 0}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store on a host where one service runs."""
    monkeypatch.setattr(systemd, "running_services", lambda: (RUNNING,))
    monkeypatch.setattr(systemd, "open_sockets", lambda: ())
    monkeypatch.setattr(systemd, "unit_properties", lambda unit: PROPERTIES)
    conf = {"state": "in sync", "problem": None, "notices": [], "auto_apply": False}
    monkeypatch.setattr(observe, "observe_conf", lambda *_: conf)
    return Store(tmp_path)


def in_force(store: Store) -> list[bool]:
    """Of each service that is shown, whether it is in force."""
    return [service["in_force"] for service in observe.observe(store, ConfReader())["services"]]


def write(store: Store, plan: str) -> Path:
    """Make a generation of such a plan active."""
    manifest = {"cpus_online": "0", "nodes_online": "0"}
    with store.locked():
        generation = store.write(Content({}, {}, plan, (), manifest))
        store.activate(generation)
    return generation.path


def test_what_runs_and_is_in_no_generation_is_out_of_force(store: Store) -> None:
    """Also on a host on which nothing has been applied."""
    assert in_force(store) == [False]
    write(store, '{"services": []}')
    assert in_force(store) == [False]


@pytest.mark.parametrize("damage", ["a link that leads nowhere", "another text", "a plan that is none"])
def test_a_damaged_store_does_not_say_that_services_are_out_of_force(store: Store, damage: str) -> None:
    """It does not say that they are in force either: it is unknown, and the damage is told."""
    path = write(store, "{" if damage == "a plan that is none" else '{"services": []}')
    if damage == "another text":
        (path / "plan.json").write_text("x")
    if damage == "a link that leads nowhere":
        path.rename(path.with_name("x"))
    assert in_force(store) == []
    notices = observe.observe(store, ConfReader())["notices"]
    assert sum("damaged" in notice or "is not there" in notice for notice in notices) == 1


def test_a_link_that_goes_while_it_is_looked_at_ends_no_look(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes the store does not wait for whoever looks at it; the services are shown as they were planned."""
    write(store, '{"services": []}')
    monkeypatch.setattr(observe, "_planned", lambda *_: ({"unit": RUNNING},))

    def meanwhile(store: Store) -> tuple[str, ...]:
        store.link.unlink()
        return ()

    monkeypatch.setattr(observe, "find_drift", meanwhile)
    since: list[float] = []

    def observe_service(plan: dict[str, str], in_force_since: float, until: float) -> dict[str, object]:
        since.append(in_force_since)
        return {**plan, "in_force": True, "notices": []}

    monkeypatch.setattr(observe, "observe_service", observe_service)
    assert in_force(store) == [True] and since == [0.0]


def test_a_service_may_be_called_like_a_socket(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket of what is in force is in force."""
    monkeypatch.setattr(systemd, "running_services", lambda: ())
    sockets = ("torchpar-infer@a.socket.socket", "torchpar-infer@b.socket")
    monkeypatch.setattr(systemd, "open_sockets", lambda: sockets)
    _, notices = observe.observe_out_of_force({"torchpar-infer@a.socket.service"})
    assert [notice.partition(" ")[0] for notice in notices] == ["torchpar-infer@b.socket"]


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_an_exit_status_of_a_start_that_lacks_a_file_is_known_everywhere(kind: str) -> None:
    """The status says it in words, and systemd does not try again what only waiting for the file mends."""
    unit = Path(__file__).parents[3] / "systemd" / f"torchpar-{kind}@.service"
    (line,) = (line for line in unit.read_text().splitlines() if line.startswith("RestartPreventExitStatus="))
    assert {*LACKING} <= observe._EXIT_CODES.keys() & {*map(int, line.partition("=")[2].split())}

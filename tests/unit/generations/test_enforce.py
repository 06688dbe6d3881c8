"""What is asked of systemd and the host before and after a generation is in force."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.generations.fake_systemd import FakeSystemd
from tests.unit.generations.test_generation import content
from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import BusyError, StoreError, SystemdError
from torchpar.generations.compile import Compiled, compile_conf
from torchpar.generations.enforce import (
    changing,
    check_in_force,
    is_in_force,
    read_active,
    refuse_foreign,
    refuse_other_host,
    running_among,
)
from torchpar.generations.generation import Content, Generation
from torchpar.generations.store import Store
from torchpar.plan.inputs import Inputs

MANIFEST = {"cpus_online": "0-3", "nodes_online": "0"}
TEXT = """\
[Host]
ReserveCores=0
[Infer a]
Model=/a.pt
Enabled=yes
"""
UNIT, SOCKET = "torchpar-infer@a.service", "torchpar-infer@a.socket"


def compile_text(text: str = TEXT, manifest: dict[str, str] | None = None) -> Compiled:
    """What a conf comes to on a host of four cores."""
    host = make_host()
    files = (ConfFile("/etc/torchpar.conf", text),)
    return compile_conf(Inputs(parse_config(files, host), host, files, {}, manifest or MANIFEST))


def hold(systemd: FakeSystemd, what: Content) -> None:
    """Let systemd hold each unit as planned."""
    for service in what.services():
        folder = "/run/systemd/generator"
        systemd.properties[service.unit] = {
            "DropInPaths": [f"{folder}/{service.unit}.d/20-torchpar.conf"],
            "CPUAffinity": [0b1111],
            "AllowedCPUs": [0b1111],
            "AllowedMemoryNodes": [1],
            "NUMAMask": [1],
            "NUMAPolicy": {"preferred": 1, "bind": 2}[service.memory_policy.policy],
            "User": service.user,
            "ReadWritePaths": list(service.read_write_paths),
            "Environment": [f"{name}={value}" for name, value in service.environment.items()],
            "ExecStart": [["", list(service.command)]],
        }
        systemd.properties[service.unit.replace(".service", ".socket")] = {
            "DropInPaths": [f"{folder}/{service.unit.replace('.service', '.socket')}.d/20-torchpar.conf"],
            "Listen": [["Stream", address] for address in service.listen],
        }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a directory that only this user can write."""
    tmp_path.chmod(0o755)
    return Store(tmp_path / "torchpar")


def put(store: Store, what: Content) -> Generation:
    """Make this the active generation."""
    with store.locked():
        made = store.write(what)
        store.activate(made)
    return made


def test_systemd_holds_a_generation_where_it_holds_each_service_and_each_socket(store: Store) -> None:
    """What it holds otherwise is named, all at once."""
    what = compile_text().content
    generation = put(store, what)
    systemd = FakeSystemd(store)
    hold(systemd, what)
    assert check_in_force(systemd, generation) == ()
    systemd.properties[UNIT]["CPUAffinity"] = [1]
    systemd.properties[SOCKET]["Listen"] = []
    with pytest.raises(SystemdError) as raised:
        check_in_force(systemd, generation)
    first, service, socket = str(raised.value).splitlines()
    assert first == "systemd does not hold what was planned:"
    assert service == f"{UNIT}: CPUAffinity is 0, planned 0-3" and socket.startswith(f"{SOCKET}: ListenStream is empty")


def test_what_an_administrator_overrides_is_a_note(store: Store) -> None:
    """It is theirs to change."""
    what = compile_text().content
    systemd = FakeSystemd(store)
    hold(systemd, what)
    systemd.properties[UNIT]["CPUAffinity"] = [1]
    systemd.properties[UNIT]["DropInPaths"].append("/etc/x.conf")
    (note,) = check_in_force(systemd, put(store, what))
    assert note == f"{UNIT}: CPUAffinity is 0, planned 0-3 (an override: /etc/x.conf)"


def test_who_runs_among_units_are_services_and_sockets(store: Store) -> None:
    """In order; of others nothing is said."""
    systemd = FakeSystemd(store, runs=dict.fromkeys((SOCKET, UNIT, "torchpar-train@b.service"), ""))
    assert running_among(systemd, (UNIT, SOCKET, "torchpar-train@c.service")) == (UNIT, SOCKET)


def test_a_generation_of_another_host_is_refused() -> None:
    """By its CPUs and by its nodes; what to do is said."""
    what = compile_text().content
    refuse_other_host(what, 3, MANIFEST)
    for other in ({"cpus_online": "0-1"}, {"nodes_online": "0-1"}):
        now = {**MANIFEST, **other}
        with pytest.raises(StoreError) as raised:
            refuse_other_host(what, 3, now)
        assert str(raised.value) == (
            f"generation 3 was made for CPUs 0-3, this host has CPUs {now['cpus_online']}; "
            "make a new one: torchpar apply"
        )


def test_a_generation_that_others_can_change_is_refused(store: Store) -> None:
    """It decides what runs as whom."""
    generation = put(store, compile_text().content)
    refuse_foreign(generation)
    (generation.path / "plan.json").chmod(0o666)
    with pytest.raises(StoreError, match=r"plan\.json: must be root's alone; make a new generation: torchpar apply"):
        refuse_foreign(generation)


@pytest.mark.parametrize("damage", ["no store", "a link that leads nowhere", "another text"])
def test_of_a_store_that_is_damaged_nothing_is_active(store: Store, damage: str) -> None:
    """An apply mends it, and must not end for it."""
    what = compile_text().content
    if damage != "no store":
        generation = put(store, what)
        assert read_active(store) == (generation, what)
        if damage == "another text":
            (generation.path / "plan.json").write_text(json.dumps({}))
        else:
            store.link.unlink()
            store.link.symlink_to("generations/9")
    assert read_active(store) is None


def test_a_change_is_alone_and_begins_with_nothing_left_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What killed commands left is removed with the lock held, and not by who has not got it."""
    removed: list[str] = []

    def remove() -> None:
        removed.append("by whom")
        with pytest.raises(BusyError), changing(Store(store.directory)):
            pass

    monkeypatch.setattr("torchpar.host.analyze.remove_leftovers", remove)
    with changing(store):
        assert removed == ["by whom"]


@pytest.mark.parametrize("but", ["", "no service was restarted"])
def test_what_fails_once_it_is_in_force_says_so(store: Store, but: str) -> None:
    """Also what was interrupted."""
    generation = put(store, dataclasses.replace(content("1"), manifest=MANIFEST))
    rest = f"generation 1 is in force{but and f', but {but}'}"
    errors: list[tuple[Any, str]] = [
        (SystemdError("no answer"), f"no answer\n{rest}"),
        (KeyboardInterrupt(), f"interrupted; {rest}"),
    ]
    for error, said in errors:
        with pytest.raises(SystemdError) as raised, is_in_force(generation, but):
            raise error
        assert str(raised.value) == said

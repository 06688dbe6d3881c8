"""`torchpar history`: what each generation changed, in words that are so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.unit.hosts import make_host
from tests.unit.verify.fake_host import TEXT, make_fake_host
from torchpar.cli import history as command
from torchpar.cli.history import _changed
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.generations.generation import Content
from torchpar.generations.rollbacks import note_rollback
from torchpar.generations.store import Store
from torchpar.plan.plan import make_plan, plan_json
from torchpar.units.drop_ins import make_units
from torchpar.verify.observe import observe


def test_the_first_generation_has_as_many_services_as_the_conf_declares(tmp_path: Path) -> None:
    """An inference service has a drop-in for its socket too, which is no service."""
    tmp_path.chmod(0o755)
    store, host = Store(tmp_path / "torchpar"), make_host()
    plan = make_plan(parse_config([ConfFile("/c", "[Train a]\nScript=/s.py\n[Infer b]\nModel=/m.pt\n")], host), host)
    units = make_units(plan)
    manifest = {"cpus_online": "0-3", "nodes_online": "0"}
    content = Content(units.files, units.links, json.dumps(plan_json(plan)), (), manifest)
    with store.locked():
        generation = store.write(content)
    assert len(units.files) > 2 and _changed(generation, None) == "2 services"


def test_it_says_what_was_taken_back_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is in force again."""
    host = make_fake_host(tmp_path)
    host.apply()
    host.text = TEXT + "[Train c]\nScript=/c.py\n"
    host.apply()
    monkeypatch.setattr(command, "Store", lambda: host.store)
    with host.store.locked():
        host.store.activate(host.store.generation(1))
        note_rollback(host.store, 2, 1, "ada ran torchpar rollback")
    newest, oldest = CliRunner().invoke(command.history, env={"COLUMNS": "200"}).stdout.splitlines()[1:]
    assert " taken back at " in newest and ": ada ran torchpar rollback  " in newest
    assert " in force  " in oldest and " in force  " not in newest
    seen = observe(host.store, host.systemd, host.readers)
    (conf,) = (told["text"] for told in seen["wrong"] if told["what"] == "conf")
    assert "the conf is newer than generation 1; " in conf and "generation 2 was taken back at " in conf
    with host.store.locked():
        host.store.activate(host.store.generation(2))
        note_rollback(host.store, 1, 2, "ada ran torchpar rollback 2")
    assert "taken back" not in CliRunner().invoke(command.history).stdout.splitlines()[1]

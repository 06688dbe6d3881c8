"""`torchpar history`: what each generation changed, in words that are so."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.hosts import make_host
from torchpar.cli.history import _changed
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.generations.generation import Content
from torchpar.generations.store import Store
from torchpar.plan.plan import make_plan, plan_json
from torchpar.units.drop_ins import make_units


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

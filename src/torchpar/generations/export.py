"""Exports this host, or one below a root: its facts, its answers about the files in its conf, and what is in force."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from torchpar.contract.addresses import addresses
from torchpar.contract.errors import ConfigError, StoreError, TorchparError
from torchpar.contract.paths import STORE
from torchpar.contract.typed_json import Text
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.facts import add_interpreters
from torchpar.host.inputs import LIVE, load, load_facts
from torchpar.host.sysfs import Tree
from torchpar.host.versions import read_versions
from torchpar.plan.export import Export, UnitsInForce
from torchpar.plan.inputs import Inputs

# It is the default of Python=, and what is not asked about now may be declared later.
_PYTHON = "/usr/bin/python3"

_MOST = 20  # lines of what is wrong with the conf


def read_export(root: Path = LIVE, conf: Path | None = None) -> Export:
    """Reads everything that `torchpar facts` exports; `conf` replaces the conf.

    Raises FactsError, and ConfigError for a `conf` that is given.
    """
    inputs: Inputs | None = None
    problems: list[str] = []
    try:
        inputs = load(root, conf_file=conf)
    except ConfigError as error:
        if conf:
            raise
        # What its conf asks about is not known then; all else is.
        problems += [f"the conf of the host is invalid: {line}" for line in error.problems[:_MOST]]
    facts = add_interpreters(inputs.facts if inputs else load_facts(root), (_PYTHON,), root)
    tree = Tree(root)
    try:
        in_force = _read_in_force(root)
    except StoreError as error:
        in_force = None
        problems.append(str(error))
    return Export(
        facts,
        int(time.time()),
        read_versions(tree, facts.interpreters),
        _read_addresses() if root == LIVE else {},
        in_force,
        inputs.found if inputs else {},
        tuple(problems),
    )


def _read_addresses() -> dict[str, tuple[str, ...]]:
    """Reads the addresses by which other hosts may reach this one, by interface."""
    found: dict[str, tuple[str, ...]] = {}
    with contextlib.suppress(OSError):
        for address in addresses():
            if address.up and not address.loopback:
                found[address.interface] = (*found.get(address.interface, ()), address.text)
    return found


def _read_in_force(root: Path) -> UnitsInForce | None:
    """Reads the generation in force, None where none is. Raises StoreError."""
    active = Store(root / STORE.lstrip("/")).active()
    if active is None:
        return None
    content = active.read()
    running: tuple[str, ...] | None = None
    if root == LIVE:
        with contextlib.suppress(TorchparError):
            running = (*systemd.running_services(), *systemd.open_sockets())
    files, links = ({path: Text(text) for path, text in each.items()} for each in (content.files, content.links))
    return UnitsInForce(active.number, files, links, running)

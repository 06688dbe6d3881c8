"""Compares what the conf means now with what is in force, for `diff` and for the exit status of `check`."""

from __future__ import annotations

from pathlib import Path

from torchpar.cli.output import warn
from torchpar.generations import apply
from torchpar.generations.compile import compile_conf
from torchpar.generations.store import Store
from torchpar.host.inputs import load
from torchpar.units.changes import Change


def find_changes(conf_file: Path | None) -> tuple[Change, ...]:
    """Finds the changes that `torchpar apply` would make; `conf_file` replaces the conf.

    Raises ConfigError, PlacementError and StoreError.
    """
    compiled = compile_conf(load(conf_file=conf_file))
    warn(compiled.warnings)
    active = Store().active()
    return apply.find_changes((active, active.read()) if active else None, compiled)

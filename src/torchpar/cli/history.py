"""`torchpar history`: the generations that are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from torchpar.cli.output import count, echo_json, echo_table, warn
from torchpar.contract import unit_names
from torchpar.contract.errors import StoreError
from torchpar.generations.enforce import read_active
from torchpar.generations.generation import Generation
from torchpar.generations.rollbacks import Rollback, find_rollback, read_rollbacks
from torchpar.generations.store import Store
from torchpar.host.clocks import read_clocks
from torchpar.units.changes import compare, compare_links


@click.command(short_help="List the generations that are kept, the newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(as_json: bool) -> None:
    """List the generations that are kept, the newest first: what each changed, and why one was taken back."""
    store = Store()
    generations = store.history()
    active = read_active(store)
    rollbacks = read_rollbacks(store)
    rows: list[dict[str, Any]] = []
    for number, generation in enumerate(generations):
        older = generations[number + 1] if number + 1 < len(generations) else None
        rows.append(
            {
                "generation": generation.number,
                "active": bool(active and active[0] == generation),
                "unconfirmed": _unconfirmed(store, generation) if active and active[0] == generation else None,
                "taken_back": _taken_back(rollbacks, generation, is_active=bool(active and active[0] == generation)),
                "written": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(generation.written_at())),
                "changed": _changed(generation, older),
            }
        )
    if as_json:
        echo_json(rows)
        return
    header = ("GENERATION", "WRITTEN", "STATE", "CHANGES")
    echo_table(
        header,
        [
            (str(row["generation"]), str(row["written"]), _state(row), str(row["changed"]))
            for row in rows
        ],
    )


def _unconfirmed(store: Store, generation: Generation) -> dict[str, Any] | None:
    try:
        waits = store.unconfirmed(generation)
    except StoreError as error:
        warn([str(error)])
        return None
    return {"back": waits.back, "seconds_left": round(waits.seconds_left(read_clocks()))} if waits else None


def _taken_back(rollbacks: Sequence[Rollback], generation: Generation, *, is_active: bool) -> dict[str, Any] | None:
    found = None if is_active else find_rollback(rollbacks, generation.number)
    return {**asdict(found), "text": found.say()} if found else None


def _state(row: dict[str, Any]) -> str:
    if not row["active"]:
        return str(row["taken_back"]["text"]).removeprefix("was ") if row["taken_back"] else ""
    waits = row["unconfirmed"]
    waiting = f" for {waits['seconds_left']} s unless confirmed, then {waits['back']}" if waits else ""
    return f"in force{waiting}"


def _changed(generation: Generation, older: Generation | None) -> str:
    try:
        new = generation.read()
        if older is None:
            return count(len(new.services()), "service")
        old = older.read()
    except StoreError as error:
        return str(error)
    by_what: dict[str, list[str]] = {}
    for change in compare(old.files, new.files) + compare_links(old.links, new.links):
        by_what.setdefault(change.what, []).append(unit_names.shorten(change.unit))
    return "; ".join(f"{what} {_few(units)}" for what, units in by_what.items()) or "no unit"


def _few(units: list[str]) -> str:
    return " ".join(units) if len(units) <= 3 else f"{len(units)} services"

"""Asks systemd and its journal for what is shown to people of many units at once, as `systemctl show` prints it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torchpar.host.program import run


def read_units(units: Iterable[str], names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
    """Reads properties of units, by unit: one call, however many there are. Empty where systemd does not answer."""
    asked = list(units)
    done = run(["systemctl", "show", f"--property=Id,{','.join(names)}", "--", *asked]) if asked else None
    if done is None or done.returncode != 0:
        return {}
    found = {}
    # Of an alias Id is another unit's; so they go by their order.
    for unit, block in zip(asked, done.stdout.strip("\n").split("\n\n"), strict=False):
        found[unit] = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    return found


def read_loaded(patterns: Iterable[str], names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
    """Reads properties of the units that systemd has loaded of those that match. Empty where it does not answer."""
    done = run(["systemctl", "show", f"--property=Id,{','.join(names)}", "--", *patterns])
    blocks = done.stdout.strip("\n").split("\n\n") if done.returncode == 0 else ()
    found = (dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks)
    return {properties["Id"]: properties for properties in found if properties.get("Id")}


def read_kernel_log(word: str) -> tuple[str, ...] | None:
    """Reads the kernel's messages of the last hour that hold a word; None where the journal cannot be read."""
    argv = ["journalctl", "--dmesg", "--since=-1h", "--output=cat", "--lines=1000", "--quiet", "--no-pager"]
    done = run(argv)
    if done.returncode != 0 or "not seeing messages" in done.stderr:
        return None
    return tuple(line[:400] for line in done.stdout.splitlines() if word in line)

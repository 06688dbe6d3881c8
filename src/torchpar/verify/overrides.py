"""Finds what an administrator has set beside the conf: a mask, a start at boot, and drop-ins that win over torchpar's.

Those of `systemctl edit` do: they sort after it (systemd.unit(5)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torchpar.contract.messages import trouble
from torchpar.plan.record import ServiceRecord

ReadText = Callable[[str], "str | None"]

# Lists: a later line adds to them, and wins only where an empty one has taken back what was there.
_LISTS = frozenset(
    """
    After Requires Wants Conflicts OnFailure RequiresMountsFor Environment ReadWritePaths ReadOnlyPaths BindPaths
    InaccessiblePaths SupplementaryGroups DeviceAllow LoadCredential SystemCallFilter RestrictAddressFamilies
    SuccessExitStatus RestartPreventExitStatus ExecStartPre ExecStopPost
    """.split()
)
# Says nothing of how the service runs.
_NEVER = frozenset(("SourcePath", "Description", "Documentation"))

# `systemctl set-property` writes there: CPUs that a service has for now, which verify compares with the plan.
_LIVE = "/systemd/system.control/"
_LIVE_KEYS = frozenset(("AllowedCPUs", "AllowedMemoryNodes"))


def find_set_otherwise(
    plan: ServiceRecord, properties: Mapping[str, Any], rendered: Mapping[str, str], read_text: ReadText
) -> list[dict[str, str]]:
    """Finds what an administrator has set beside the conf: a mask, a start at boot, a drop-in that wins.

    `rendered` are the drop-ins of the generation in force, and `read_text` reads those of others: None where one cannot
    be read.
    """
    unit, found = plan.unit, []
    if properties.get("LoadState") == "masked":
        found.append(trouble("masked", f"is masked, so nothing starts it: systemctl unmask {unit}"))
    if properties.get("UnitFileState") == "enabled" and not plan.enabled:
        section = f"[{plan.kind.capitalize()} {plan.name}]"
        clause = (
            f"starts at boot by systemctl enable, and holds no CPUs: write Enabled=yes into {section} of the conf and"
            f" apply it, then: systemctl disable {unit}"
        )
        found.append(trouble("enabled", clause))
    return [*found, *find_foreign(plan, properties, rendered, read_text)]


def find_foreign(
    plan: ServiceRecord, properties: Mapping[str, Any], rendered: Mapping[str, str], read_text: ReadText
) -> list[dict[str, str]]:
    """Finds drop-ins of others that win over what is planned, with the cure."""
    unit, found = plan.unit, []
    paths = [str(path) for path in properties.get("DropInPaths", ())]
    ours = next((path for path in rendered if path.startswith(f"{unit}.d/")), "")
    place = next((number for number, path in enumerate(paths) if ours and path.endswith(f"/{ours}")), None)
    if place is not None:
        later = {path: text for path in paths[place + 1 :] if (text := read_text(path)) is not None}
        for path, keys in find_overrides(rendered[ours], later).items():
            clause = (
                f"has {', '.join(keys)} from {path}, which wins over the conf: write it into the conf and remove that"
                " file, then: systemctl daemon-reload"
            )
            found.append(trouble("override", clause))
    return found


def find_overrides(ours: str, later: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Finds the keys of the rendered drop-in `ours` that later ones (path → text) set otherwise, by path.

    A key that ours does not set is the administrator's to set.
    """
    rendered: dict[str, list[str]] = {}
    for key, value in _settings(ours):
        rendered.setdefault(key, []).append(value)
    found = {}
    for path, text in later.items():
        left_out = _NEVER | (_LIVE_KEYS if _LIVE in path else frozenset())
        values: dict[str, list[str]] = {}
        for key, value in _settings(text):
            values.setdefault(key, []).append(value)
        keys = tuple(
            key
            for key, theirs in values.items()
            if key in rendered and key not in left_out and _wins(key, theirs, rendered[key])
        )
        if keys:
            found[path] = keys
    return found


def _wins(key: str, theirs: list[str], ours: list[str]) -> bool:
    if key not in _LISTS:
        return theirs[-1] != ours[-1]
    if "" in theirs:
        return True
    return key == "Environment" and not _variables(theirs).isdisjoint(_variables(ours))


def _variables(values: list[str]) -> set[str]:
    return {word.lstrip("\"'").partition("=")[0] for value in values for word in value.split() if "=" in word}


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Yields key and value of each line of a unit file's text that sets one."""
    for line in text.replace("\\\n", " ").splitlines():
        if not line.lstrip().startswith(("#", ";", "[")) and "=" in line:
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()

"""Finds drop-ins of others that win over what torchpar renders: `systemctl edit` sorts after it (systemd.unit(5))."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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

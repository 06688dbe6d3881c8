"""Refuses the start of a service whose files, as far as systemd opens them as root, are not root's alone any more.

What systemd opens is open before the first program of the unit runs (LoadCredential= in systemd.exec(5)), so this is a
unit of its own, which the service requires: torchpar-guard@.service. Only root can change such a path between the two.
"""

from __future__ import annotations

import sys

from torchpar.conf.passed import OPENED_BY_SYSTEMD
from torchpar.contract.errors import ExitStatus, printable
from torchpar.contract.owners import find_strangers
from torchpar.host import systemd
from torchpar.host.reading import why_not_opened


def main() -> None:
    """Looks at all paths of `guard UNIT KEY=PATH ...`; fails with a line for each that is not root's alone."""
    unit, *named = sys.argv[1:]
    wrong = [what for key, _, path in (each.partition("=") for each in named) for what in problems(key, path)]
    for what in wrong if named else ["nothing says which files systemd opens for it; run: torchpar apply"]:
        print(what, file=sys.stderr)
        systemd.say_of(unit, f"{what}; it is not started")
    sys.exit(ExitStatus.CONFIG if wrong or not named else 0)


def problems(key: str, path: str) -> list[str]:
    """Returns a line for each problem with a path, of which there is at most one; a / at its end means a folder."""
    shown = f"{key}={printable(path)}"
    try:
        found = next(find_strangers(path, (0,)), None)
    except OSError as error:
        return [f"{shown}: {error.strerror}"]
    if found:
        how = f"can be written by others than root (mode {found.mode:04o})"
        return [f"{shown}: {printable(found.place)} {how if found.is_writable((0,)) else 'does not belong to root'}"]
    why = why_not_opened(path, itself=key.removeprefix("Service.") in OPENED_BY_SYSTEMD)
    return [f"{shown}: {why}"] if why else []

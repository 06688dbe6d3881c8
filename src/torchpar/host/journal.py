"""Asks the journal why units failed: how often systemd started them again, and what their processes said last.

And writes entries there that say of which unit they are, and of which kind.

What tells of a run comes from the journal's own fields, which no process can write (systemd.journal-fields(7)): a job
decides about its own words alone.
"""

from __future__ import annotations

import glob
import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Collection, Mapping

# Of systemd's catalog (sd-messages.h): a restart is scheduled.
_RESTARTS = "5eb03494b6584870a536b337290809b3"

# Of the system, on the disk or in memory; whoever may not read them is told of nothing there (journalctl(1)).
_FILES = ("/var/log/journal/*/system.journal", "/run/log/journal/*/system.journal")

# Where sd_journal_send(3) writes, as by https://systemd.io/JOURNAL_NATIVE_PROTOCOL.
_SOCKET = "/run/systemd/journal/socket"

# Seconds for an answer, of a journal of many files.
_SECONDS = 5.0
_MOST_RESTARTS = 2000
# Of one run, the last. A traceback through torch has some 50 lines, each rank may have one.
_MOST_LINES = 400


class Journal:
    """The journal of this host."""

    def count_restarts(self, units: Collection[str], seconds: float) -> dict[str, int] | None:
        """Counts how often systemd has started units again in the last so many seconds; None where nobody knows.

        As where the journal may not be read, fails, or does not answer in time.
        """
        if not any(os.access(path, os.R_OK) for pattern in _FILES for path in glob.iglob(pattern)):
            return None
        found = _ask(
            [f"--since=-{seconds:.0f}s", f"--lines={_MOST_RESTARTS}", "--output-fields=UNIT"],
            ["_PID=1", f"MESSAGE_ID={_RESTARTS}", *(f"UNIT={unit}" for unit in units)],
        )
        return None if found is None else dict(Counter(str(one.get("UNIT")) for one in found))

    def read_last_lines(self, unit: str, since: float | None, until: float | None) -> tuple[str, ...]:
        """Reads what the processes of a unit wrote last between two times, in seconds since the epoch, in its order.

        By the unit: which run of it has written a line, the journal does not know where a process ends at once.
        """
        options = [f"--lines={_MOST_LINES}", "--output-fields=MESSAGE"]
        options += [] if since is None else [f"--since=@{since:.6f}"]
        options += [] if until is None else [f"--until=@{until:.6f}"]
        found = _ask(options, [f"_SYSTEMD_UNIT={unit}"])
        return tuple(line for one in found or () for line in _text(one.get("MESSAGE")).splitlines())


def write_entry(fields: Mapping[str, str]) -> bool:
    """Writes an entry with fields of its own (systemd.journal-fields(7)); false where there is no journal.

    It is said in torchpar's name. No value is more than a line: a field's name could begin in the next one.
    """
    lines = {"SYSLOG_IDENTIFIER": "torchpar", **fields}
    data = "".join(f"{name}={' '.join(value.splitlines())}\n" for name, value in lines.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as journal:
            journal.sendto(data.encode(errors="backslashreplace"), _SOCKET)
    except OSError:
        return False
    return True


def has_entries(unit: str) -> bool:
    """Says whether the journal has anything of a unit."""
    return bool(_ask(["--lines=1", "--output-fields=MESSAGE"], [f"_SYSTEMD_UNIT={unit}"]))


def _ask(options: list[str], matches: list[str]) -> list[dict[str, object]] | None:
    """Asks for entries; None where there is no answer, which is not the same as no entry."""
    # JSON leaves out values of more than 4096 bytes, so the answer is bounded.
    # Not --boot: in the sandbox of torchpard, on Debian 12 in a container, it finds nothing.
    options = ["--quiet", "--no-pager", "--output=json", *options]
    try:
        done = subprocess.run(
            ["journalctl", *options, "--", *matches],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    entries = []
    for line in done.stdout.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _text(message: object) -> str:
    """Returns a message's text: bytes where it is no UTF-8 or has control characters, null where it is too long."""
    if isinstance(message, list):
        return bytes(number for number in message if type(number) is int and 0 <= number < 256).decode(errors="replace")
    return message if isinstance(message, str) else "(a line of more than 4 KiB)"

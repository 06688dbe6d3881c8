"""Asks the journal why units failed: how often systemd started them again, and what their processes said last.

And writes entries there that say of which unit they are, and of which kind.

What tells of a run comes from the journal's own fields, which no process can write (systemd.journal-fields(7)): a job
decides about its own words alone.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

# Of systemd's catalog (sd-messages.h): a restart is scheduled; a unit has failed.
_RESTARTS = "5eb03494b6584870a536b337290809b3"
_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"

# Where sd_journal_send(3) writes, as by https://systemd.io/JOURNAL_NATIVE_PROTOCOL.
_SOCKET = "/run/systemd/journal/socket"

# Seconds for an answer, of a journal of many files.
_SECONDS = 5.0
_MOST_EVENTS = 2000
# Of one run, the last. A traceback through torch has some 50 lines, each rank may have one.
_MOST_LINES = 400


@dataclass(frozen=True)
class Event:
    """A failure, or a restart that follows one; `invocation` is the run that failed, "" where that is not told."""

    unit: str
    is_restart: bool
    invocation: str


class Journal:
    """The journal of this host. It answers with nothing where it cannot be read, or not in time."""

    def read_events(self, units: Collection[str], seconds: float) -> tuple[Event, ...]:
        """Reads the failures and restarts of units in the last so many seconds, in their order."""
        matches = [f"UNIT={unit}" for unit in units]
        found = _ask(
            [f"--since=-{seconds:.0f}s", f"--lines={_MOST_EVENTS}", "--output-fields=UNIT,MESSAGE_ID,INVOCATION_ID"],
            ["_PID=1", f"MESSAGE_ID={_RESTARTS}", f"MESSAGE_ID={_FAILED}", *matches],
        )
        return tuple(
            Event(str(one.get("UNIT")), one.get("MESSAGE_ID") == _RESTARTS, str(one.get("INVOCATION_ID", "")))
            for one in found
        )

    def read_last_lines(self, invocation: str) -> tuple[str, ...]:
        """Reads what the processes of one run wrote last, in its order."""
        if not invocation:
            return ()
        found = _ask([f"--lines={_MOST_LINES}", "--output-fields=MESSAGE"], [f"_SYSTEMD_INVOCATION_ID={invocation}"])
        return tuple(line for one in found for line in _text(one.get("MESSAGE")).splitlines())


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
    return any(True for _ in _ask(["--lines=1", "--output-fields=MESSAGE"], [f"_SYSTEMD_UNIT={unit}"], boot=False))


def _ask(options: list[str], matches: list[str], *, boot: bool = True) -> Iterator[dict[str, object]]:
    # JSON leaves out values of more than 4096 bytes, so the answer is bounded.
    options = ["--quiet", "--no-pager", "--output=json", *(["--boot"] if boot else []), *options]
    try:
        done = subprocess.run(
            ["journalctl", *options, "--", *matches],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in done.stdout.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _text(message: object) -> str:
    """Returns a message's text: bytes where it is no UTF-8 or has control characters, null where it is too long."""
    if isinstance(message, list):
        return bytes(number for number in message if type(number) is int and 0 <= number < 256).decode(errors="replace")
    return message if isinstance(message, str) else "(a line of more than 4 KiB)"

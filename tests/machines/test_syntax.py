"""Environment= and Arguments= are read as the release's systemd reads the same lines of a unit, byte for byte.

Lines of all that quoting knows, and of mistakes in it, go through both; what is read goes back into a unit, from which
systemd has to read the same. What differs is refused or has a note.
"""

from __future__ import annotations

import base64
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.machines.machine import Machine
from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError
from torchpar.units.quoting import quote_word

EXAMPLES = int(os.environ.get("EXAMPLES", "120"))
SEED = int(os.environ.get("SEED", "1"))

# What systemd takes and torchpar.conf refuses; see "Syntax" in torchpar.conf(5).
OURS_ALONE = re.compile(
    "looks like a blank|is not a quote|is not a hyphen|begins another command|continues nothing"
    "|is no character|not UTF-8|control character"
)

PIECES = [
    *["a", "bc", "0", "-", "--x", "=", ":", "/", "'", '"', " ", "  ", "\t", "#", ";", "{", "}", "ö", "漢", "e\u0301"],
    *[f"\\{c}" for c in "abfnrtvs\\\\\\\"\"''0189xuUqd;$% "],
    *[
        "\\x41",
        "\\x20",
        "\\xc3\\xb6",
        "\\xff",
        "\\x00",
        "\\x4",
        "\\101",
        "\\040",
        "\\303\\266",
        "\\777",
        "\\000",
        "\\18",
    ],
    *["\\u00e4", "\\u20ac", "\\ud800", "\\uffff", "\\u12", "\\U0001f600", "\\U00110000", "\\U0010ffff", "\\u0000"],
    *["%", "%%", "%h", "%n", "%q", "%5", "100%", "$", "$$", "$HOME", "${HOME}", "$5", "${", "}", "\\x24HOME", "\\x25h"],
    *[
        "'two words'",
        '"two words"',
        "'it\"s'",
        '"it\'s"',
        "x'y z'w",
        '"\\t"',
        "'\\n'",
        '{"lr": 0.1}',
        "\\\n",
        " \\\n  ",
    ],
    *[
        "\\\n# a comment\n",
        "\\\n ; \\\n",
        "\\\\\n",
        "\u00a0",
        "\u00ad",
        "\u2013",
        "\u201c",
        "\u2019",
        "\u200b",
        "\ufeff",
    ],
    *["\x01", "\x1b", "\x7f"],
]

HEAD = ("[Service]", "Type=oneshot", "ExecStart=/bin/cp /proc/self/environ /run/syntax/environ")
START = {"Arguments": "ExecStart=-/bin/sh /run/syntax.sh {} ", "Environment": "Environment="}


@dataclass(frozen=True)
class Read:
    """What torchpar reads of a line: its words, or why it refuses it."""

    words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str = ""


def values(source: random.Random) -> Iterator[str]:
    """Values as people write them, and as they come out when they are wrong."""
    while True:
        value = "".join(source.choice(PIECES) for _ in range(source.randint(1, 7)))
        if source.random() < 0.3:
            at = source.randrange(len(value) + 1)
            value = value[:at] + source.choice(["", "\\", "'", '"', " ", source.choice(PIECES)]) + value[at + 1 :]
        yield value


def read(key: str, value: str) -> Read:
    """What torchpar reads."""
    try:
        config = parse_config([ConfFile("/c", f"[Train a]\nScript=/a\n{key}={value}\n\n")], make_host())
    except ConfigError as error:
        return Read(refused=str(error))
    train = config.services[0].train()
    assert train
    return Read(train.arguments if key == "Arguments" else train.environment, config.warnings)


@dataclass(frozen=True)
class Theirs:
    """What a process gets that systemd starts with some lines: the words of each command, and the variables whose names
    begin with V and a number, by these numbers; and the lines of the unit that systemd has complained of."""

    arguments: Mapping[str, tuple[bytes, ...]]
    environment: Mapping[str, tuple[bytes, ...]]
    complaints: frozenset[int]


def systemd_reads(machine: Machine, name: str, lines: Sequence[str], tmp_path: Path) -> Theirs:
    """Load the lines as a unit, and start it."""
    unit = tmp_path / name
    unit.write_text("\n".join([*HEAD, *lines, ""]), encoding="utf-8")
    machine.push(unit, f"/run/systemd/system/{name}")
    machine.write("/run/syntax.sh", "n=$1\nshift\n[ $# = 0 ] || printf '%s\\0' \"$@\" >/run/syntax/$n\n")
    verify = ("systemd-analyze", "verify", "--man=no", f"/run/systemd/system/{name}")
    said = machine.run(*verify, check=False, timeout=600).stderr
    shown = machine.sh(
        "rm -rf /run/syntax; mkdir /run/syntax; systemctl daemon-reload; systemctl start $1; rm /run/systemd/system/$1;"
        'cd /run/syntax; for file in *; do echo "$file $(base64 -w0 "$file")"; done',
        name,
        timeout=600,
    ).stdout
    files = dict(line.split(" ") for line in shown.splitlines())
    read = {number: tuple(base64.b64decode(data).split(b"\0")[:-1]) for number, data in files.items()}
    environment: dict[str, list[bytes]] = {}
    for variable in sorted(read.pop("environ")):
        if number := re.match(rb"V([0-9]+)_", variable):
            environment.setdefault(number[1].decode(), []).append(variable)
    complaints = re.findall(rf"{re.escape(name)}:([0-9]+): ", said)
    return Theirs(read, {n: tuple(them) for n, them in environment.items()}, frozenset(map(int, complaints)))


def test_words_are_those_of_systemd(machine: Machine, tmp_path: Path) -> None:
    """Read by torchpar.conf's rules and by systemd's, and once more by systemd from what torchpar renders."""
    source = values(random.Random(SEED))
    written = {("Arguments", str(number)): next(source) for number in range(EXAMPLES)}
    written |= {("Environment", str(n)): f"V{n}_0={next(source)} V{n}_1=" + next(source) for n in range(EXAMPLES)}
    ours = {(key, n): read(key, value) for (key, n), value in written.items()}
    lines: list[str] = []
    places = {}
    for (key, n), value in written.items():
        begin = len(HEAD) + len(lines) + 1
        # Half of the words would be a program that is not there, and the unit is then refused as a whole.
        if "another command" not in ours[key, n].refused:
            lines += (START[key].format(n) + value + "\n").split("\n")
        places[key, n] = range(begin, len(HEAD) + len(lines) + 1)
    theirs = systemd_reads(machine, f"syntax-{os.getpid()}-written.service", lines, tmp_path)
    again = systemd_reads(machine, f"syntax-{os.getpid()}-rendered.service", [*render(ours)], tmp_path)
    wrong = []
    for (key, n), value in written.items():
        each, (found, back) = ours[key, n], (getattr(them, key.lower()).get(n, ()) for them in (theirs, again))
        words = tuple(word.encode() for word in each.words)
        if key == "Environment":
            words = tuple(sorted({word.partition(b"=")[0]: word for word in words}.values()))
        if back != words:
            wrong.append(f"{key}={value!r}: rendered from {words}, read as {back}")
        if each.refused:
            if not OURS_ALONE.search(each.refused) and theirs.complaints.isdisjoint(places[key, n]):
                wrong.append(f"{key}={value!r}: refused ({each.refused}), systemd: {found}")
        elif found != words and not each.notes:
            wrong.append(f"{key}={value!r}: {words}, systemd: {found}")
    assert not again.complaints
    assert not wrong, "\n".join([f"SEED={SEED}", *wrong])
    # Most of what is generated is right, or nothing would be compared.
    assert sum(1 for each in ours.values() if not each.refused) > EXAMPLES / 4


def render(ours: Mapping[tuple[str, str], Read]) -> Iterator[str]:
    """What has been read, as lines of a unit."""
    for (key, n), each in ours.items():
        if key == "Arguments":
            yield f"ExecStart=-:/bin/sh /run/syntax.sh {n} " + " ".join(map(quote_word, each.words))
        else:
            yield from (f"Environment={quote_word(word)}" for word in each.words)

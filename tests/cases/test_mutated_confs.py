"""Confs that were changed at random: each gives units, or errors with their lines, on a captured machine.

EXAMPLES in the environment says how many; with -s the slowest of them is printed.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torchpar.conf.parse import parse_config
from torchpar.conf.passed import PASSED
from torchpar.conf.settings import SECTIONS, settings_of
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, PlacementError
from torchpar.host.facts import read_facts
from torchpar.plan.plan import make_plan
from torchpar.units.drop_ins import make_units

EXAMPLES = int(os.environ.get("EXAMPLES", "600"))
SEED = int(os.environ.get("SEED", "1"))
TREE = Path(__file__).parents[2]
MACHINE = "arbiterd-xeon-48cpu"

# Of CPU time for one conf, on whatever machine; the usual is a few milliseconds, and the slowest a tenth of it.
FAR_TOO_LONG = 2.0
TOO_MUCH_MEMORY = 200 * 2**20

KEYS = [setting.key for section in SECTIONS.values() for setting in settings_of(section)]
KEYS += [f"Service.{name}" for name in sorted(PASSED)]
PIECES = [
    *[
        "\n",
        "\\\n",
        "\\",
        "'",
        '"',
        "[",
        "]",
        "=",
        "#",
        ";",
        "%",
        "%h",
        "$",
        " ",
        "\t",
        "\r",
        "\0",
        "\x1b",
        "-",
        "/",
        ",",
    ],
    *[
        "\ufeff",
        "\u00a0",
        "\u00ad",
        "\u2013",
        "\u201c",
        "\u200b",
        "\u2028",
        "ö",
        "４",
        "😀",
        "\udcff",
        "\uffff",
        "\x85",
    ],
    *["[Train]\n", "[Infer b]\nModel=/m\n", "[Match]\nCPUs=>= 1\n", "[Host]\n", "[X-y]\n", "X-a=b\n", "\\x00", "\\u12"],
    *[
        "auto",
        "yes",
        "infinity",
        "100%",
        "1e9",
        "nan",
        "-1",
        "0",
        "node:0",
        "0-8191:1/2",
        "2:4",
        "[::1]:80",
        "*:1",
        "é" * 99,
    ],
]


def confs() -> list[str]:
    """What is changed: the shipped file with its examples, those of the manual, and the cases of plans."""
    shipped = (TREE / "etc/torchpar.conf").read_text(encoding="utf-8")
    manual = (TREE / "debian/man/torchpar.conf.5.in").read_text(encoding="utf-8")
    found = [re.sub(r"^#(?=[\[A-Z])", "", shipped, flags=re.MULTILINE)]
    found += [part.replace("\\-", "-") for part in re.findall(r"\.EX\n(.*?)\.EE", manual, re.DOTALL)]
    found += [path.read_text(encoding="utf-8") for path in sorted((TREE / "tests/cases/plan").glob("*/etc/**/*.conf"))]
    return found


def mutate(text: str, source: random.Random) -> str:
    """One change."""
    at, lines = source.randrange(len(text) + 1), text.split("\n")
    line = source.randrange(len(lines))
    match source.randrange(9):
        case 0:
            data = bytearray(text.encode("utf-8", "surrogateescape") or b"x")
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
            return data.decode("utf-8", "surrogateescape")
        case 1:
            lines[line:line] = [lines[line][:1000]] * source.choice([1, 1, 1, 2, 1000])
        case 2:
            return text[:at]
        case 3:
            lines[line] += source.choice(["", "\\"]) + "".join(lines[line + 1 : line + 2])
            del lines[line + 1 : line + 2]
        case 4:
            return text[:at] + source.choice(PIECES) * source.choice([1, 1, 1, 1, 2, 5000]) + text[at:]
        case 5:
            numbers = list(re.finditer("[0-9]+", text)) or [None]
            if found := source.choice(numbers):
                number = source.choice(["9" * 400, "9" * 9, "0", "1" + "0" * source.randrange(30), found[0] * 9])
                return text[: found.start()] + number + text[found.end() :]
        case 6:
            value = "".join(source.choice([*PIECES, "1", "a"]) for _ in range(source.randrange(5)))
            lines.insert(line + 1, f"{source.choice(KEYS)}={value}")
        case 7:
            lines.insert(source.randrange(len(lines) + 1), lines.pop(line))
        case 8:
            lines[line] = source.choice(
                [lines[line].swapcase(), lines[line][::-1], (lines[line][:1000] * 300)[:200_000], f"{lines[line]}x"]
            )
    return "\n".join(lines)


def mutants() -> Iterator[str]:
    """Confs with one to six changes."""
    source, all_confs = random.Random(SEED), confs()
    for _ in range(EXAMPLES):
        text = source.choice(all_confs)
        for _ in range(source.choice([1, 1, 1, 2, 2, 3, 6])):
            text = mutate(text, source)[: 2**20]
        yield text


def test_every_mutated_conf_is_answered(unpack: Callable[[str], Path]) -> None:
    """Never another error than those for people, nor one that is longer than a screen, nor a hang."""
    facts = dataclasses.replace(read_facts(unpack(MACHINE)), in_force={})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest, right = (0.0, ""), 0
    for text in mutants():
        began = time.process_time()
        try:
            make_units(make_plan(parse_config([ConfFile("/c", text)], facts), facts))
            right += 1
        except ConfigError as error:
            assert all(problem.startswith("/c:") and len(problem) < 1000 for problem in error.problems), text
        except PlacementError as error:
            assert len(str(error)) < 2000, text
        except Exception as error:
            raise AssertionError(f"SEED={SEED}: {text!r}") from error
        slowest = max(slowest, (time.process_time() - began, text))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{right} of {EXAMPLES} are right, {memory >> 20} MiB more; {slowest[0]:.3f} s: {slowest[1]!r:.2000}")
    assert slowest[0] < FAR_TOO_LONG, slowest[1]
    assert memory < TOO_MUCH_MEMORY

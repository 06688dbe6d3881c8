"""Write torchpar.conf(5): the prose of a page with @KEYS@ lines, and the keys from the table of settings.

    make_conf_page.py torchpar.conf.5.in >torchpar.conf.5

A line "@KEYS Host@" becomes the list of the keys of [Host]; "@KEYS Train@" leaves out what "@KEYS Service@" has.
"@DIRECTIVES@" becomes the list of what Service.KEY= passes on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from torchpar.conf.passed import GROUPS
from torchpar.conf.settings import SECTIONS, ServiceSettings, Setting, settings_of


def escape(text: str) -> str:
    """Text for a troff line that is not a request."""
    return re.sub(r"^([.'])", r"\\&\1", text.replace("\\", "\\e").replace("-", "\\-"))


def sentence(text: str) -> str:
    """A line of help as a sentence; names such as torchpard or num_workers keep their first letter."""
    name = re.match(r"torchpar|\w*[_.]\w", text)
    return (text if name else text[0].upper() + text[1:]).rstrip(".") + "."


def entry(setting: Setting) -> Iterator[str]:
    """One key: what is allowed, what it means, and its default."""
    yield ".TP"
    yield f'.BI {escape(setting.key)}= " {escape(setting.allowed)}"'
    yield escape(sentence(setting.help))
    if setting.default:
        yield f"Default: {escape(setting.default)}."
    if setting.later:
        yield "Read and checked, but without effect in this version."
    if setting.is_list:
        yield "May be repeated; an empty value starts the list anew."


def keys(section: str) -> Iterator[str]:
    """The entries of one section; "Service" is what [Train] and [Infer] share."""
    shared = {setting.key for setting in settings_of(ServiceSettings)}
    if section == "Service":
        rows = list(settings_of(ServiceSettings))
    else:
        rows = list(settings_of(SECTIONS[section]))
        if section in ("Train", "Infer"):
            rows = [row for row in rows if row.key not in shared]
    for row in rows:
        yield from entry(row)


def directives() -> Iterator[str]:
    """What Service.KEY= passes on, by what it is for."""
    for title, names in GROUPS:
        yield ".TP"
        yield title
        yield escape(", ".join(f"{name}=" for name in names.split()) + ".")


def make_page(prose: str) -> str:
    """The whole page."""
    lines: list[str] = []
    for line in prose.splitlines():
        match = re.fullmatch(r"@KEYS (\w+)@", line)
        made = directives() if line == "@DIRECTIVES@" else keys(match[1]) if match else [line]
        lines.extend(made)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(make_page(Path(sys.argv[1]).read_text(encoding="utf-8")))

"""How systemd reads a unit file, line by line; test_walls.py holds it against the real ones."""

from __future__ import annotations

from collections.abc import Iterator

BLANKS = " \t\n\r"


def read_unit(text: str) -> Iterator[tuple[str, str, str]]:
    """Section, key and value of every assignment: config_parse() of systemd 252 and 257.

    A line ends with a newline, a carriage return or a NUL. One that ends in a backslash that no other escapes goes on
    in the next that is no comment, with a blank in its place.
    """
    section, begun = "", ""
    for line in text.replace("\r", "\n").replace("\0", "\n").split("\n"):
        stripped = line.lstrip(BLANKS)
        if stripped.startswith(("#", ";")) or not (stripped or begun):
            continue
        escaped = False
        for character in line:
            escaped = not escaped and character == "\\"
        if escaped:
            begun += line[:-1] + " "
            continue
        whole, begun = (begun + line).strip(BLANKS), ""
        if whole.startswith("[") and whole.endswith("]"):
            section = whole[1:-1]
        elif whole:
            key, _, value = whole.partition("=")
            yield section, key.strip(BLANKS), value.strip(BLANKS)

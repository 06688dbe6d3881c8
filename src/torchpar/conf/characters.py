"""Characters that look like others: blanks that are none, quotes and dashes of word processors, names for all of them.

What is copied from a web page or a chat has them where a program wants ASCII, and on the screen nobody sees it.
"""

from __future__ import annotations

import re
import unicodedata

# systemd's own (WHITESPACE in its sources); what Python calls white space is much more.
BLANKS = " \t\n\r"

# Not seen, or seen as a blank: spaces other than ASCII's, soft hyphen, zero width, marks of direction, byte order mark.
_INVISIBLE = (
    "\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u2800\u3000\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f"
)
# Seen as ' or ".
_QUOTES = (
    "\u00b4\u00ab\u00bb\u02b9-\u02bf\u02c8\u02ca\u02cb\u2018-\u201f\u2032-\u2037\u2039\u203a\u275b-\u275e"
    "\u301d-\u301f\uff02\uff07"
)
# Seen as -.
_DASHES = "\u02d7\u058a\u2010-\u2015\u2043\u2212\u2796\u2e3a\u2e3b\ufe58\ufe63\uff0d"

INVISIBLE = re.compile(f"[{_INVISIBLE}]")
QUOTE = re.compile(f"[{_QUOTES}]")
DASH = re.compile(f"[{_DASHES}]")
ODD = re.compile(f"[{_INVISIBLE}{_QUOTES}{_DASHES}]")

# What systemd refuses as no UTF-8 (surrogates, which stand for bytes that are none, and noncharacters), and controls.
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    f"{chr(plane << 16 | 0xFFFE)}-{chr(plane << 16 | 0xFFFF)}" for plane in range(17)
)
NOT_TEXT = re.compile(f"[\ud800-\udfff{_NONCHARACTERS}]")
NOT_PLAIN = re.compile(f"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff{_NONCHARACTERS}]")

_CONTROLS = {
    0: "NULL", 7: "BELL", 8: "BACKSPACE", 11: "LINE TABULATION", 12: "FORM FEED", 13: "CARRIAGE RETURN",
    27: "ESCAPE", 127: "DELETE", 0x85: "NEXT LINE",
}  # fmt: skip


def name_of(character: str) -> str:
    """Returns the name of a character for a message: its number and its Unicode name.

    >>> name_of("\\u2013")
    'U+2013 EN DASH'
    """
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        return f"the byte 0x{number - 0xDC00:02x}, which is not UTF-8"
    name = "BYTE ORDER MARK" if character == "\ufeff" else unicodedata.name(character, _CONTROLS.get(number, ""))
    return f"U+{number:04X} {name or 'a control character'}"

"""Values of several words, split as systemd splits those of Environment= and ExecStart=, character by character.

Words stand between blanks. Quotes, also in the middle of a word, hold blanks together; in them and outside a backslash
begins a C escape; see "Quoting" in systemd.syntax(7). What systemd would drop with a line in its journal is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torchpar.conf.characters import BLANKS, DASH, INVISIBLE, NOT_TEXT, ODD, QUOTE, name_of
from torchpar.contract.errors import printable

_ESCAPE = re.compile(
    r"(?:\\\\)+|\\(?:[abfnrtvs\"']|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|(?s:.)|\Z)"
)
_OUTSIDE = re.compile(rf"[{BLANKS}]++|(?:[^{BLANKS}\"'\\]++|\\(?s:.|\Z))++|(?:\"\"|'')++|[\"']")
_WITHIN = {quote: re.compile(rf"(?:[^{quote}\\]++|\\(?s:.|\Z))++|{quote}") for quote in "\"'"}
_PLAIN = re.compile(rf"[^{BLANKS}]+")
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " ", '"': '"', "'": "'"}

# What stands for something else in a unit, or is refused there, see "Specifiers" in systemd.unit(5).
_SPECIFIER = re.compile(r"%[A-Za-z0-9%]")
# What a command line of a unit replaces: a word that is a variable, ${NAME} anywhere, and $$.
_VARIABLE = re.compile(r"\A\$|\$[{$]")

_HASH = re.compile(r"\A#")


class MisreadError(ValueError):
    """A value that is wrong at one of its characters; `at` is the index."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.at = at


def split_words(text: str, *, relaxed: bool = False) -> tuple[str, ...]:
    """Splits a value into words; with `relaxed` unknown escapes stay as they are, as in ExecStart=.

    >>> split_words(r"a\tb 'c d' e'f g'h")
    ('a\\tb', 'c d', 'ef gh')

    Raises MisreadError for what systemd does not take, and for characters that look like a blank, a quote or a dash
    where one would be.
    """
    if ODD.search(text):
        _refuse_copied(text, relaxed)
    if not re.search(r"[\"'\\;]", text):
        return tuple(_PLAIN.findall(text))
    return tuple(word for _, word in _words(text, relaxed))


def notes_on(text: str, words: Iterable[str], *, relaxed: bool) -> Iterator[tuple[int, str]]:
    """Yields notes on a value that is accepted, but means something else in a unit: (index, sentence).

    `relaxed` as in split_words(); that is a command line, where systemd also replaces variables.
    """
    patterns = ((_SPECIFIER, "specifier"), (_VARIABLE, "variable")) if relaxed else ((_SPECIFIER, "specifier"),)
    for pattern, what in patterns:
        if any(map(pattern.search, words)):
            yield from _first(text, relaxed, pattern, f"is plain text here; in a unit it would be a {what}")
    if relaxed and any(word.startswith("#") for word in words):
        yield from _first(text, relaxed, _HASH, "is an argument here; a comment stands on a line of its own")
    if relaxed and any("\\" in word for word in words):
        yield from _unknown_escape(text)
    if ODD.search(text):
        yield from _odd(text, relaxed)


def notes_on_text(text: str) -> Iterator[tuple[int, str]]:
    """Yields the same notes on a value that is not split into words."""
    if found := _SPECIFIER.search(text):
        yield found.start(), f"'{found[0]}' is plain text here; in a unit it would be a specifier"
    yield from notes_on_odd(text)


def notes_on_odd(text: str) -> Iterator[tuple[int, str]]:
    """Yields a note on the first character that could be mistaken, of a value that is systemd's to read."""
    if odd := ODD.search(text):
        yield odd.start(), f"{name_of(odd[0])} looks like another character; is it meant?"


def _words(text: str, relaxed: bool) -> Iterator[tuple[int, str]]:
    """Yields the index at which each word begins, and its text."""
    parts: list[str] | None = None
    begin = 0
    for at, _, part, _ in _pieces(text, relaxed):
        if part is not None:
            if parts is None:
                parts, begin = [], at
            parts.append(part)
        elif parts is not None:
            yield begin, _as_text("".join(parts), begin)
            parts = None
    if parts is not None:
        yield begin, _as_text("".join(parts), begin)


def _pieces(text: str, relaxed: bool) -> Iterator[tuple[int, str, str | None, str]]:
    """Yields each piece of the value: its index, itself, its meaning (None: it ends a word), and the quote it is in."""
    at, quote, opened = 0, "", 0
    while at < len(text):
        match = (_WITHIN[quote] if quote else _OUTSIDE).match(text, at)
        assert match, "the patterns take every character"
        raw = match[0]
        if quote and raw == quote:
            quote = ""
            yield at, raw, "", ""
        elif not quote and raw[0] in BLANKS:
            yield at, raw, None, ""
        elif not quote and raw[0] in "\"'":
            if len(raw) == 1:
                quote, opened = raw, at
            yield at, raw, "", ""
        elif not quote and relaxed and raw in (";", "\\;") and _is_word(text, at, match.end()):
            if raw == ";":
                what = "a ; for itself begins another command in a unit; for the word write ';' in quotes"
                raise MisreadError(what, at)
            yield at, raw, ";", ""
        else:
            yield at, raw, _unescape(raw, at, relaxed) if "\\" in raw else raw, quote
        at = match.end()
    if quote:
        raise MisreadError(
            f"the quote {quote} is opened here and never closed; for the character write \\{quote}", opened
        )


def _is_word(text: str, begin: int, end: int) -> bool:
    return (begin == 0 or text[begin - 1] in BLANKS) and (end == len(text) or text[end] in BLANKS)


def _unescape(raw: str, at: int, relaxed: bool) -> str:
    return _ESCAPE.sub(lambda match: _unescape_one(match[0], at + match.start(), relaxed), raw)


def _unescape_one(raw: str, at: int, relaxed: bool) -> str:
    kind, digits = raw[1:2], raw[2:]
    if kind == "\\":
        return "\\" * (len(raw) // 2)
    if simple := _SIMPLE.get(kind):
        return simple
    number = 0
    if digits:
        number = int(digits, 16) if kind in "xuU" else int(raw[1:], 8)
        if number and kind not in "uU":
            # A byte above 127 is part of a character, until all of the word is there.
            return chr(number) if number < 128 else chr(0xDC00 + number)
        if number and number < 0x110000 and not NOT_TEXT.match(chr(number)):
            return chr(number)
        if number:
            raise MisreadError(f"{raw} is no character", at)
    if not kind:
        raise MisreadError("nothing follows the backslash; for a backslash write \\\\", at)
    if relaxed:
        return raw
    why = "would be the end of the text" if digits else "is no escape that systemd knows"
    raise MisreadError(f"'{printable(raw, 60)}' {why}; for a backslash write \\\\", at)


def _as_text(word: str, begin: int) -> str:
    if word.isascii() or not re.search("[\udc80-\udcff]", word):
        return word
    try:
        word = word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError:
        raise MisreadError("the escapes of this word make bytes that are not UTF-8", begin) from None
    if found := NOT_TEXT.search(word):
        raise MisreadError(f"the escapes of this word make {name_of(found[0])}, which is no character", begin)
    return word


def _first(text: str, relaxed: bool, pattern: re.Pattern[str], what: str) -> Iterator[tuple[int, str]]:
    """Yields the first match of the pattern: its index, or that of the word that has it by its escapes."""
    for begin, word in _words(text, relaxed):
        if found := pattern.search(word):
            yield max(text.find(found[0], begin), begin), f"'{found[0]}' {what}"
            return


def _unknown_escape(text: str) -> Iterator[tuple[int, str]]:
    """Yields the first escape that stays as it is."""
    for at, raw, part, _ in _pieces(text, True):
        for match in _ESCAPE.finditer(raw) if part else ():
            known = match[0][1:2] == "\\" or part == ";" or _unescape_one(match[0], at, True) != match[0]
            if not known:
                what = "is no escape that systemd knows, so it stays as it is; for a backslash write \\\\"
                yield at + match.start(), f"'{printable(match[0], 60)}' {what}"
                return


def _refuse_copied(text: str, relaxed: bool) -> None:
    """Raises MisreadError for characters where ASCII is meant: outside quotes, at the beginning of a word."""
    before, option = "", False
    for at, raw, part, quote in _pieces(text, relaxed):
        if part is None:
            before, option = "", False
            continue
        if part and not quote and not raw.isascii():
            _refuse_in_piece(raw, at, before, option or (not before and raw[0] == "-"))
        option = (option or (not before and raw[0] == "-")) and "=" not in raw
        before = raw[-1]


def _refuse_in_piece(raw: str, at: int, before: str, option: bool) -> None:
    if found := INVISIBLE.search(raw):
        raise MisreadError(
            f"{name_of(found[0])} looks like a blank or like nothing; in quotes it is a character", at + found.start()
        )
    # In the name of an option, up to its =, every dash and quote is to be ASCII.
    name = len(raw.partition("=")[0]) if option else 0
    for found in re.finditer(f"{QUOTE.pattern}|{DASH.pattern}", raw):
        place = found.start()
        previous = raw[place - 1] if place else before
        is_quote = bool(QUOTE.match(found[0]))
        if not previous or place < name or (is_quote and previous == "="):
            plain = "a quote: write \" or '" if is_quote else "a hyphen: write -"
            raise MisreadError(f"{name_of(found[0])} is not {plain}, or all of the word in quotes", at + place)


def _odd(text: str, relaxed: bool) -> Iterator[tuple[int, str]]:
    """Yields the first character that could be another, where it may be meant."""
    begins = True
    for at, raw, part, quote in _pieces(text, relaxed):
        if part is None:
            begins = True
            continue
        pattern = INVISIBLE if quote else ODD
        found = pattern.search(raw) or (DASH.match(raw) if quote and begins else None)
        if found:
            yield at + found.start(), f"{name_of(found[0])} looks like another character; is it meant?"
            return
        begins = begins and not part

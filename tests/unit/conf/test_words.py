"""Values of several words: systemd's quoting character by character, and what is copied from a web page."""

from __future__ import annotations

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config
from torchpar.conf.syntax import ConfFile
from torchpar.conf.words import MisreadError, split_words
from torchpar.contract.errors import ConfigError


def read(text: str) -> Config:
    """The conf of a file, /c."""
    return parse_config([ConfFile("/c", text)], make_host())


def problem(text: str) -> str:
    """The only error of a file."""
    with pytest.raises(ConfigError) as error:
        read(text)
    (line,) = error.value.problems
    return line


def arguments(text: str) -> tuple[str, ...]:
    """Arguments= of the only service."""
    train = read(f"[Train a]\nScript=/a\n{text}").services[0].train()
    assert train
    return train.arguments


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"""a 'b c' "d e" f'g h'"i j"k""", ("a", "b c", "d e", "fg hi jk")),
        (r"""\a\b\f\n\r\t\v\s\\\"\'""", ("\a\b\f\n\r\t\v \\\"'",)),
        (r"'\t' \x20 \x41 \101 \303\266 \u00e4 \U0001f600", ("\t", " ", "A", "A", "ö", "ä", "😀")),
        (r"""'' "" a'' """, ("", "", "a")),
        (r"""'it"s' "it's" {"lr":[0.9, 0.99]}""", ('it"s', "it's", "{lr:[0.9,", "0.99]}")),
        ("a\\\\\\\\b \t c", ("a\\\\b", "c")),
        ("größe 漢 e\u0301 '“text” – it’s'", ("größe", "漢", "e\u0301", "“text” – it’s")),
        ("a=100% $HOME #no ;x", ("a=100%", "$HOME", "#no", ";x")),
        ("", ()),
    ],
)
def test_words_are_split_as_by_systemd(text: str, words: tuple[str, ...]) -> None:
    """For Environment= and ExecStart= alike."""
    assert split_words(text) == split_words(text, relaxed=True) == words


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("APOS=it's", 7, "the quote ' is opened here and never closed"),
        ('a "b', 2, 'the quote " is opened here'),
        (r"a\d", 1, r"'\d' is no escape that systemd knows; for a backslash write \\"),
        (r"a\x4", 1, r"'\x' is no escape"),
        (r"\777", 0, "is no escape"),
        (r"\x00", 0, "would be the end of the text"),
        (r"ab\ud800", 2, "is no character"),
        (r"b \xff", 2, "bytes that are not UTF-8"),
        ("a\\", 1, "nothing follows the backslash"),
        ("--epochs\u00a03", 8, "U+00A0 NO-BREAK SPACE looks like a blank"),
        ("a so\u00adft", 4, "U+00AD SOFT HYPHEN"),
        ("\u200ba", 0, "U+200B ZERO WIDTH SPACE"),
        ("a\ufeff", 1, "U+FEFF BYTE ORDER MARK"),
        ("–epochs 3", 0, "U+2013 EN DASH is not a hyphen: write -"),
        ("a —lr=1", 2, "U+2014 EM DASH"),
        ("--learning–rate=3", 10, "U+2013 EN DASH"),
        ("“two words”", 0, "U+201C LEFT DOUBLE QUOTATION MARK is not a quote"),
        ("A=‘x’", 2, "U+2018 LEFT SINGLE QUOTATION MARK"),
    ],
)
def test_what_systemd_would_drop_and_what_is_no_ascii_where_it_should_be_is_refused(
    text: str, at: int, what: str
) -> None:
    """With the place, as nobody sees it."""
    with pytest.raises(MisreadError) as error:
        split_words(text)
    assert error.value.at == at and what in str(error.value)


def test_a_command_line_keeps_unknown_escapes_and_has_no_other_commands() -> None:
    """As ExecStart= does."""
    assert split_words(r"\d+ '\w' \x00 a\; \; ';'", relaxed=True) == (r"\d+", r"\w", r"\x00", r"a\;", ";", ";")
    for text in (";", "a ; b", "a ;"):
        with pytest.raises(MisreadError, match="begins another command"):
            split_words(text, relaxed=True)


def test_a_problem_names_the_line_and_the_character() -> None:
    """Of the line that it is in, not of that where the value begins."""
    assert problem("[Train a]\nScript=/a\nArguments=--x \\\n# no\n  --y='a \\\n z\n") == (
        "/c:5: [Train a] Arguments=--x    --y='a   z: character 7: the quote ' is opened here and never closed; for "
        "the character write \\'"
    )
    assert problem("[Train a]\nScript=/a\nEnvironment=A=1 B\n").startswith(
        "/c:3: [Train a] Environment=A=1 B: character 17: has 'B', which is not NAME=VALUE"
    )
    assert "Threads=４: character 9: is not a whole number; this is U+FF14 FULLWIDTH DIGIT FOUR" in problem(
        "[Train a]\nScript=/a\nThreads=４\n"
    )


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("Arguments=a %h", "Arguments=: character 13: '%h' is plain text here; in a unit it would be a specifier"),
        ("Arguments=100%%", "'%%' is plain text here"),
        (r"Arguments=%\x68", "character 11: '%h' is plain text here"),
        ("Environment=A=%n", "character 15: '%n' is plain text here"),
        ("WorkingDirectory=%h/a".replace("%h", "/%h"), "character 19: '%h' is plain text here"),
        ("Arguments=-o $HOME", "character 14: '$' is plain text here; in a unit it would be a variable"),
        ("Arguments=a${HOME}", "character 12: '${' is plain text here"),
        (r"Arguments=a '\d+'", r"character 14: '\d' is no escape that systemd knows, so it stays as it is"),
        ("Arguments=it’s", "character 13: U+2019 RIGHT SINGLE QUOTATION MARK looks like another character"),
        ("Arguments='a\u00a0b'", "character 13: U+00A0 NO-BREAK SPACE looks like another character"),
        ("WorkingDirectory=/a\u00a0b", "character 20: U+00A0 NO-BREAK SPACE looks like another character"),
        ("Service.Nice=\u20135", "Service.Nice=: character 14: U+2013 EN DASH looks like another character"),
        ("Service.LimitNOFILE=9\u200b", "character 22: U+200B ZERO WIDTH SPACE looks like another character"),
    ],
)
def test_what_a_unit_would_read_otherwise_has_a_note(line: str, note: str) -> None:
    """It is read as plain text, and nobody has to find out."""
    (warning,) = read(f"[Train a]\nScript=/a\n{line}\n").warnings
    assert warning.startswith("/c:3: [Train a] ") and note in warning


@pytest.mark.parametrize(
    "line",
    [
        "Arguments=größe 漢 100% a$b $",
        "Environment=A=$HOME-${HOME} 'B=“it’s”'",
        "Script=/srv/größe/“a”.py",
        "Arguments=%",
    ],
)
def test_what_can_only_be_meant_has_none(line: str) -> None:
    """A warning that is always there is not read."""
    config = read(f"[Train a]\nScript=/a\n{line}\n")
    assert all("'$'" in warning or "QUOTATION" in warning for warning in config.warnings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Arguments=a \\\nb\n", ("a", "b")),
        ("Arguments='a\\\n  b'\n", ("a   b",)),
        ("Arguments=a \\\n# c\n  ; c \\\nb\n", ("a", "b")),
        ("Arguments=a\\\\\nEnabled=no\n", ("a\\",)),
        ("Arguments=a\\\\\\\nb\n", ("a\\", "b")),
        ("Arguments=a \\\n\nEnabled=no\n", ("a",)),
        ("Arguments=a \\\n", ("a",)),
        ("Arguments=a \\", ("a",)),
        ("Arguments=a \\\r\n  b\r\nEnabled=no\r\n", ("a", "b")),
        ("\\\n \\\nArguments=a\n", ("a",)),
    ],
)
def test_lines_are_continued_as_by_systemd(text: str, words: tuple[str, ...]) -> None:
    """A blank in place of the backslash; comments between are no part; two backslashes are one, and the end."""
    assert arguments(text) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Arguments=a \\ \n", "/c:3: Arguments=: character 13 is a \\ that continues nothing"),
        ("Script=/b\\ \n", "/c:3: Script=: character 10 is a \\ that continues nothing"),
        ("\u00a0Threads=2\n", "/c:3: '\\xa0Threads' is not a key; character 1 is U+00A0 NO-BREAK SPACE"),
        ("Threads\u200b=2\n", "/c:3: 'Threads\\u200b' is not a key; character 8 is U+200B ZERO WIDTH SPACE"),
        ("Threads=\u00a02\n", "/c:3: [Train a] Threads=\\xa02: character 9: U+00A0 NO-BREAK SPACE looks like a blank"),
        (
            "Threads＝2\n",
            "/c:3: 'Threads＝2' is neither [Section] nor Key=Value nor a # comment; character 8 is U+FF1D",
        ),
        ("WorkingDirectory=/a\u200b\n", "character 20: U+200B ZERO WIDTH SPACE looks like a blank or like nothing"),
        ("\ufeff[Train b]\n", "/c:3: '\\ufeff[Train b]' is neither"),
        ("[Train\u00a0b]\n", "/c:3: unknown section [Train\\xa0b]; did you mean Train?; character 7 is U+00A0"),
        ("\u00a0# comment\n", "character 1 is U+00A0 NO-BREAK SPACE"),
        ("Arguments=a\rb\n", "/c:3: character 12 is U+000D CARRIAGE RETURN: the line has a control character"),
        ("Arguments=a\0\n", "/c:3: character 12 is U+0000 NULL"),
        ("Arguments=\udcff\n", "/c:3: character 11 is the byte 0xff, which is not UTF-8:"),
        ("Environment=A=“x y”\n", "character 15: U+201C LEFT DOUBLE QUOTATION MARK is not a quote"),
    ],
)
def test_what_is_not_seen_is_named(text: str, message: str) -> None:
    """With its line, its place there, and its name."""
    assert message in problem(f"[Train a]\nScript=/a\n{text}")


def test_a_byte_order_mark_begins_a_file_and_crlf_ends_its_lines() -> None:
    """As Notepad writes them; a [Match] behind it is one."""
    text = "[Train win]\nScript=/srv/win/train.py\nArguments=--epochs 3 \\\n  --name größe\n; a comment\nEnabled=yes"
    assert read("\ufeff" + text.replace("\n", "\r\n")).services == read(text).services
    assert not read("\ufeff[Match]\r\nCPUs=>= 4096\r\n\r\n[Train win]\r\nScript=/srv/elsewhere.py\r\n").services
    assert "UTF-16" in problem((b"\xff\xfe" + text.encode("utf-16-le")).decode("utf-8", "surrogateescape"))

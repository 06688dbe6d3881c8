"""Takes out of a text what is private: names of hosts and people, addresses, values of variables, secrets.

Whatever is the same in two places stays the same, so that one can still see that it is. A rule that is in doubt takes
out; what it cannot know, such as a secret in a path, it leaves, so whoever sends the text looks at it first.

Every repetition is bounded: jobs write the lines of the journal, and none may cost more than its length.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable

_GONE = "***"

# Variables whose values say how a job is placed; of any other the name alone stays.
_OURS = re.compile(
    r"(?:OMP|KMP|GOMP|MKL|OPENBLAS|BLIS|TORCHPAR|TORCHINDUCTOR|TORCHELASTIC|MALLOC|CUDA|PYTORCH)_[A-Z0-9_]+"
    r"|MALLOC_CONF|LD_PRELOAD|PYTHONUNBUFFERED|USE_LIBUV|MESSAGE|UNIT|PRIORITY|PATH|LANG|SHELL"
)
# The letters of a value. A line break within JSON ends it, other escapes do not.
_BARE = r"(?:\\[^n\n]|[^\s\"',;\\]){1,1000}"
_WITHIN = r"(?:\\[^n\n]|[^\\\n]){0,1000}?"
_VARIABLE = r"(?<![\w$-])([A-Z][A-Z0-9_]{2,64})"
_QUOTED = re.compile(rf"(?P<quote>\\?[\"'])(?P<name>[A-Z][A-Z0-9_]{{2,64}})=(?P<value>{_WITHIN})(?P=quote)")
_VALUE_QUOTED = re.compile(rf"{_VARIABLE}=(\\?[\"'])(?![\s,}}\]])({_WITHIN})\2")
_ASSIGNED = re.compile(rf"{_VARIABLE}=(?!\*\*\*)((?:\\[^n\n]|[^\s\"'\\]){{1,1000}})")
_MEMBER = re.compile(r'"([A-Z][A-Z0-9_]{2,64})": "((?:\\.|[^"\\]){0,1000})"')
# Each with the group that has the name, and with what it becomes.
_VARIABLES = (
    (_QUOTED, 2, rf"\1\2={_GONE}\1"),
    (_VALUE_QUOTED, 1, rf"\1=\2{_GONE}\2"),
    (_ASSIGNED, 1, rf"\1={_GONE}"),
    (_MEMBER, 1, rf'"\1": "{_GONE}"'),
)
# Names of secrets. A blank behind these ends the name, too: "--api-key x", "Bearer x".
_PLAIN = r"(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|credential|bearer)"
# These have "=" or ":" behind them, or are an option: they are also words of prose.
_SHORT = r"(?:(?<![A-Za-z])(?:pass|pwd)|(?<=[A-Za-z0-9_-])key)(?![A-Za-z])"
_NAME, _END = r"[\w.-]{0,64}", r"[\w.-]{0,64}\\?[\"']?"
_SECRET_NAME = (
    rf"(?:(?<![\w.-])(?:{_NAME}?{_PLAIN}{_END}[ \t]{{0,8}}[=: ]|{_NAME}?{_SHORT}{_END}[ \t]{{0,8}}[=:]"
    rf"|--?{_NAME}?{_SHORT}[ ]))[ \t]{{0,8}}"
)
_SECRET = re.compile(rf"(?i)({_SECRET_NAME})(?:(\\?[\"']){_WITHIN}\2|[\"']?{_BARE})")
# All of a quoted word whose name is a secret's is its value: "db_pass=two words".
_SECRET_WORD = re.compile(rf"(?i)(\\?[\"'])({_NAME}?(?:{_PLAIN}|{_SHORT}){_NAME}=)(?!\\?[\"']){_WITHIN}\1")
# The scheme of a header, and what follows it.
_HEADER = re.compile(r"(?i)(authorization\\?[\"']?[ \t]{0,8}[:=][ \t]{0,8}\\?[\"']?)(?:\\[^n\n\"']|[^\"'\n\\]){1,2000}")
_LOGIN = re.compile(r"(?<=://)[^/\s@\"']{1,256}(?=@)")
# A string of so many letters and digits without a word in it is a key: with both cases it may have signs, too.
_KEY = re.compile(
    r"(?<![\w/.+-])(?=[A-Za-z0-9_+-]{0,99}[0-9])(?=[A-Za-z0-9_+-]{0,99}[A-Z])[A-Za-z0-9_+-]{32,}={0,2}(?![\w/.-])"
    r"|(?<![A-Za-z0-9])(?=[A-Za-z]{0,99}[0-9])[A-Za-z0-9]{32,}"
)
_HOME = re.compile(r"(?<=/home/)([^/\s\"':,]{1,64})")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w.-]{0,64}\w)")
# What may be one.
_IPV6 = re.compile(r"(?<![\w:.-])(?=[0-9a-fA-F]{0,4}:)[0-9a-fA-F:.]{2,46}(?![\w:])")
_MAC = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![\w:])")
# Of every host.
_COMMON = re.compile(r"127\.|0\.0\.0\.0|255\.|192\.0\.2\.")
# Where hosts meet, in a conf, an option of torchrun, or JSON; a word alone is one where it is all of the value.
_ENDPOINT = re.compile(
    r"(?i)endpoint(?:[ \t]{0,8}=[ \t]{0,8}|\\?\": \\?\")(?=[A-Za-z0-9])"
    r"(?P<host>[A-Za-z0-9.-]{1,253}(?=:[0-9])|[A-Za-z0-9.-]{1,253}(?=\\?\"|[ \t]{0,8}$))",
    re.MULTILINE,
)
_NO_NAMES = ("localhost", "root", "torchpar", "nobody")


class Redactor:
    """Redacts text after text; what was one thing in the first is the same one in the last."""

    def __init__(self, hosts: Iterable[str] = (), users: Iterable[str] = ()) -> None:
        """`hosts` and `users` are names that are known to be of hosts and people; it learns more from the texts."""
        self._names: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        for kind, names in (("HOST", hosts), ("USER", users)):
            for name in sorted(set(names), key=lambda text: (-len(text), text)):
                if name:
                    self._name(kind, name)

    def redact(self, text: str) -> str:
        """Returns the text without what it knows to be private."""
        for form, group, redacted in _VARIABLES:
            text = form.sub(functools.partial(_redact_value, group, redacted), text)
        text = _LOGIN.sub(_GONE, text)
        text = _HEADER.sub(lambda found: found[1] + _GONE, text)
        text = _SECRET_WORD.sub(lambda found: found[1] + found[2] + _GONE + found[1], text)
        text = _SECRET.sub(lambda found: found[1] + (found[2] or "") + _GONE + (found[2] or ""), text)
        text = _MAC.sub(lambda found: self._name("MAC", found[0].lower()), text)
        text = _IPV6.sub(lambda found: self._ipv6(found[0]), text)
        text = _IPV4.sub(lambda found: found[0] if _COMMON.match(found[0]) else self._name("ADDRESS", found[0]), text)
        text = _HOME.sub(lambda found: self._name("USER", found[1]), text)
        text = _KEY.sub(_GONE, text)
        for found in _ENDPOINT.finditer(text):
            if not re.fullmatch(r"(?:ADDRESS|HOST)-\d+|\d+", found["host"]):
                self._name("HOST", found["host"])
        if not self._names:
            return text
        known = "|".join(map(re.escape, sorted(self._names, key=lambda name: -len(name))))
        return re.sub(rf"(?<![\w-])(?:{known})(?![\w-])", lambda found: self._names[found[0]], text)

    def _ipv6(self, text: str) -> str:
        """Replaces what is an address, with the stop or colon of a sentence behind it, but those of every host."""
        for address in (text, text.rstrip(".:")):
            try:
                parsed = ipaddress.IPv6Address(address)
            except ValueError:
                continue
            common = parsed.is_loopback or parsed.is_unspecified
            return text if common else self._name("ADDRESS", address) + text[len(address) :]
        return text

    def _name(self, kind: str, name: str) -> str:
        if name in _NO_NAMES:
            return name
        if name not in self._names:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._names[name] = f"{kind}-{self._counts[kind]}"
        return self._names[name]


def _redact_value(group: int, redacted: str, found: re.Match[str]) -> str:
    return found[0] if _OURS.fullmatch(found[group]) else found.expand(redacted)

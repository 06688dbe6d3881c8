"""Takes out of a text what is private: names of hosts and people, addresses, values of variables, secrets.

Whatever is the same in two places stays the same, so that one can still see that it is. A rule that is in doubt takes
out; what it cannot know, such as a secret in a path, it leaves, so whoever sends the text looks at it first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

_GONE = "***"

# Variables whose values say how a job is placed; of any other the name alone stays.
_OURS = re.compile(
    r"(?:OMP|KMP|GOMP|MKL|OPENBLAS|BLIS|TORCHPAR|TORCHINDUCTOR|TORCHELASTIC|MALLOC|CUDA|PYTORCH)_[A-Z0-9_]+"
    r"|MALLOC_CONF|LD_PRELOAD|PYTHONUNBUFFERED|USE_LIBUV|MESSAGE|UNIT|PRIORITY|PATH|LANG|SHELL"
)
_ASSIGNED = re.compile(r"(?<![\w$-])([A-Z][A-Z0-9_]{2,})=(?!\*\*\*)((?:\\[^n]|[^\s\"'\\])+)")
_QUOTED = re.compile(r"(\\?[\"'])([A-Z][A-Z0-9_]{2,})=(.*?)\1")
_MEMBER = re.compile(r'"([A-Z][A-Z0-9_]{2,})": "((?:\\.|[^"\\])*)"')
# Each with the group that has the name, and with what it becomes.
_VARIABLES = (
    (_QUOTED, 2, rf"\1\2={_GONE}\1"),
    (_ASSIGNED, 1, rf"\1={_GONE}"),
    (_MEMBER, 1, rf'"\1": "{_GONE}"'),
)
# A word that names a secret, and what follows it. Here as above a line break within JSON ends it, other escapes do not.
_SECRET = re.compile(
    r"(?i)([\w.-]*(?:token|secret|passw(?:or)?d|passwd|api[_-]?key|credential)[\w.-]*[\"']?\s*[=: ]\s*[\"']?)"
    r"(?:\\[^n]|[^\s\"',;\\])+"
)
_LOGIN = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")
# A string of so many letters and digits without a word in it is a key.
_KEY = re.compile(r"(?<![\w/.-])(?=[A-Za-z0-9_+=-]*[0-9])(?=[A-Za-z0-9_+=-]*[A-Z])[A-Za-z0-9_+=-]{32,}(?![\w/.-])")
_HOME = re.compile(r"(?<=/home/)([^/\s\"':,]+)")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w.-]*\w)")
_IPV6 = re.compile(r"(?<![\w:.-])(?:[0-9a-fA-F]{1,4}:){3,7}[0-9a-fA-F]{0,4}(?:::?[0-9a-fA-F]{1,4})*(?![\w:])")
_MAC = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![\w:])")
# Of every host.
_COMMON = re.compile(r"127\.|0\.0\.0\.0|255\.|192\.0\.2\.|::1$|::$")


class Redactor:
    """Redacts text after text; what was one thing in the first is the same one in the last."""

    def __init__(self, hosts: Iterable[str] = (), users: Iterable[str] = ()) -> None:
        """`hosts` and `users` are names that are known to be of hosts and people."""
        self._names: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        for kind, names in (("HOST", hosts), ("USER", users)):
            for name in sorted(set(names), key=lambda text: (-len(text), text)):
                if name and name not in ("localhost", "root", "torchpar", "nobody"):
                    self._name(kind, name)

    def redact(self, text: str) -> str:
        """Returns the text without what it knows to be private."""
        for form, group, redacted in _VARIABLES:
            text = form.sub(functools.partial(_redact_value, group, redacted), text)
        text = _LOGIN.sub(_GONE, text)
        text = _SECRET.sub(lambda found: found[1] + _GONE, text)
        text = _MAC.sub(lambda found: self._name("MAC", found[0].lower()), text)
        for address in (_IPV4, _IPV6):
            text = address.sub(lambda found: self._address(found[0]), text)
        text = _HOME.sub(lambda found: self._name("USER", found[1]), text)
        text = _KEY.sub(_GONE, text)
        for name, replaced in self._names.items():
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", replaced, text)
        return text

    def _address(self, address: str) -> str:
        return address if _COMMON.match(address) else self._name("ADDRESS", address)

    def _name(self, kind: str, name: str) -> str:
        if name not in self._names:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._names[name] = f"{kind}-{self._counts[kind]}"
        return self._names[name]


def _redact_value(group: int, redacted: str, found: re.Match[str]) -> str:
    return found[0] if _OURS.fullmatch(found[group]) else found.expand(redacted)

"""A generation: what it is made of, and how it is read from the disk.

It is a directory that is complete before it has its name and never changes after: the rendered units, the plan, the
conf they came from, a manifest of the host they were made for, and checksums.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchpar.errors import StoreError, printable
from torchpar.host.reading import NotReadableError, Reader
from torchpar.owners import find_strangers
from torchpar.record import parse_plan
from torchpar.shape import ShapeError
from torchpar.syntax import ConfFile

_LIMIT = 2**26  # of a file; the plan of a hundred services has less than 1 MiB


@dataclass(frozen=True)
class Content:
    """What a generation is made of.

    `files` and `links` are those of a UnitSet, `plan` is JSON text, `conf` the files in their order, `manifest` the
    host that it was made for: the text of cpus_online and nodes_online.
    """

    files: Mapping[str, str]
    links: Mapping[str, str]
    plan: str
    conf: tuple[ConfFile, ...]
    manifest: Mapping[str, str]

    def services(self) -> tuple[dict[str, Any], ...]:
        """The services of the plan, as plan_json() has them. Raises StoreError when it is no plan."""
        try:
            return parse_plan(self.plan)
        except ShapeError as error:
            raise StoreError(f"the plan of a generation is damaged ({error}); make a new one: torchpar apply") from None

    def tree(self) -> dict[str, str]:
        """Every file of the generation but the checksums, by its path in it."""
        tree = {f"units/{path}": text for path, text in self.files.items()}
        tree["plan.json"] = self.plan
        tree["manifest"] = "".join(f"{key} {value}\n" for key, value in self.manifest.items())
        # The number keeps the order in which later files win; the first line keeps the path.
        for number, file in enumerate(self.conf):
            tree[f"conf/{number:03d}"] = f"{file.path}\n{file.text}"
        tree["links"] = "".join(f"{path} {target}\n" for path, target in sorted(self.links.items()))
        return tree


@dataclass(frozen=True)
class Generation:
    """One generation on the disk."""

    number: int
    path: Path

    def read(self) -> Content:
        """All of it, checked against its checksums. Raises StoreError when it is damaged."""
        sums = self._sums()
        tree = {}
        for path, expected in sums.items():
            text = self._text(path)
            if hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() != expected:
                raise self._damaged(f"{printable(path)} has changed")
            tree[path] = text
        missing = {"plan.json", "manifest", "links"} - set(tree)
        if missing:
            raise self._damaged(f"{min(missing)} is missing")
        conf = []
        for path in sorted(path for path in tree if path.startswith("conf/")):
            name, _, text = tree[path].partition("\n")
            conf.append(ConfFile(name, text, applied=True))
        manifest = dict(_pairs(tree["manifest"]))
        if not {"cpus_online", "nodes_online"} <= set(manifest):
            raise self._damaged("manifest is not what torchpar wrote")
        return Content(
            {path.removeprefix("units/"): text for path, text in tree.items() if path.startswith("units/")},
            dict(_pairs(tree["links"])),
            tree["plan.json"],
            tuple(conf),
            manifest,
        )

    def written_at(self) -> float:
        """When it was written, in seconds since the epoch."""
        return self.path.stat().st_mtime

    def _sums(self) -> dict[str, str]:
        sums = {path: digest for digest, path in _pairs(self._text("sha256sums"), separator="  ")}
        if not sums or any(path.startswith("/") or ".." in path.split("/") or "\0" in path for path in sums):
            raise self._damaged("sha256sums is not what torchpar wrote")
        return sums

    def _text(self, path: str) -> str:
        try:
            refuse_changed_by_others(self.path / path)
            return Reader().bytes(self.path / path, _LIMIT).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise self._damaged(f"{printable(path)}: {error.strerror}") from None
        except NotReadableError as error:
            raise self._damaged(f"{printable(path)} {error.why}") from None

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"generation {self.number} in {self.path} is damaged ({what}); make a new one: torchpar apply"
        )


def refuse_changed_by_others(place: Path) -> None:
    """Raise StoreError for what others than root can change: who reads it may be root, and puts it in force.

    Who is not root may have a store of their own. Raises OSError.
    """
    for found in find_strangers(str(place.absolute()), (0, os.geteuid())):
        raise StoreError(
            f"{printable(found.place)} can be changed by others than root, and what is in the store decides what runs; "
            "when it is root's again (chown, chmod go-w), remove active and generations in it; torchpar apply"
        )


def _pairs(text: str, separator: str = " ") -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        first, _, second = line.partition(separator)
        yield first, second

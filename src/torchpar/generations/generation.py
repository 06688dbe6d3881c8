"""A generation: what it is made of, and how it is written to the disk and read from it.

It is a directory that is complete before it has its name and never changes after: the rendered units, the plan, the
conf they came from, a manifest of the host they were made for, and checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import StoreError, printable
from torchpar.contract.typed_json import ShapeError
from torchpar.host.files import sync_directory, write_new
from torchpar.host.reading import NotReadableError, Reader
from torchpar.plan.record import ServiceRecord, parse_plan

_LIMIT = 2**26  # of a file; the plan of a hundred services has less than 1 MiB


@dataclass(frozen=True)
class Content:
    """The contents of a generation.

    `files` and `links` are those of a UnitSet, `plan` is JSON text, `conf` the files in their order, `manifest` the
    host that it was made for: the text of cpus_online and nodes_online.
    """

    files: Mapping[str, str]
    links: Mapping[str, str]
    plan: str
    conf: tuple[ConfFile, ...]
    manifest: Mapping[str, str]

    def services(self) -> tuple[ServiceRecord, ...]:
        """Parses the services of the plan. Raises StoreError when it is no plan."""
        try:
            return parse_plan(self.plan)
        except ShapeError as error:
            raise StoreError(f"the plan of a generation is damaged ({error}); make a new one: torchpar apply") from None

    def tree(self) -> dict[str, str]:
        """Returns every file of the generation but the checksums, by its path in it."""
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
        """Reads all of it, checked against its checksums. Raises StoreError when it is damaged."""
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
        """Returns the time when it was written, in seconds since the epoch."""
        return self.path.stat().st_mtime

    def _sums(self) -> dict[str, str]:
        sums = {path: digest for digest, path in _pairs(self._text("sha256sums"), separator="  ")}
        if not sums or any(path.startswith("/") or ".." in path.split("/") or "\0" in path for path in sums):
            raise self._damaged("sha256sums is not what torchpar wrote")
        return sums

    def _text(self, path: str) -> str:
        try:
            return Reader().bytes(self.path / path, _LIMIT).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise self._damaged(f"{printable(path)}: {error.strerror}") from None
        except NotReadableError as error:
            raise self._damaged(f"{printable(path)} {error.why}") from None

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"generation {self.number} in {self.path} is damaged ({what}); make a new one: torchpar apply"
        )


def write_tree(directory: Path, content: Content) -> None:
    """Writes all of a generation into a directory that is not there yet, and brings it to the disk. Raises OSError."""
    tree = content.tree()
    # Whatever the umask of who applies is, nobody else may write there, or it is not read.
    directory.mkdir(mode=0o755, parents=True)
    (directory / "units").mkdir(mode=0o755)
    made = {directory, directory / "units"}
    for path, text in tree.items():
        file = directory / path
        if file.parent not in made:
            file.parent.mkdir(mode=0o755)
            made.add(file.parent)
        write_new(file, text)
    for path, target in content.links.items():
        link = directory / "units" / path
        link.parent.mkdir(mode=0o755, exist_ok=True)
        made.add(link.parent)
        link.symlink_to(target)
    digests = {path: hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() for path, text in tree.items()}
    write_new(directory / "sha256sums", "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items())))
    for place in made:
        sync_directory(place)


def _pairs(text: str, separator: str = " ") -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        first, _, second = line.partition(separator)
        yield first, second

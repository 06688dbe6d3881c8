"""Reads the versions on which jobs rest, by files alone: of Debian's packages, of torch, and which BLAS is in force."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator

from debian.deb822 import Deb822

from torchpar.host.sysfs import Tree
from torchpar.plan.export import Versions

# What decides how a job computes, and whether hosts of one job fit each other.
_PACKAGES = re.compile(
    "torchpar|python3|systemd|python3-torch(-cuda|-rocm)?|libtorch[0-9.]+|libblas3|libopenblas0(-[a-z]+)?|libblis4(-[a-z]+)?"
    "|libgomp1|libjemalloc2|libtcmalloc-minimal4(t64)?"
)

_STATUS = "var/lib/dpkg/status"
_STATUS_SIZE = 2**26  # that of a host with all of Debian
_ALTERNATIVES = "etc/alternatives"
_PYTHON = "/usr/bin/python3"


def read_versions(tree: Tree, interpreters: Iterable[str]) -> Versions:
    """Reads the versions of packages, and of the torch of each interpreter."""
    packages = dict(sorted(_read_packages(tree)))
    return Versions(packages, {path: _read_torch(tree, path) for path in sorted(interpreters)}, read_blas(tree))


def read_blas(tree: Tree) -> str | None:
    """Reads which libblas.so.3 update-alternatives(1) has in force, by its folder, such as "openblas-openmp".

    OpenBLAS's computes with the libopenblas.so.0 that is in force, whatever its own folder is. None where none is.
    """
    blas, core = (_alternative(tree, name) for name in ("libblas.so.3", "libopenblas.so.0"))
    return core if core and blas and blas.startswith("openblas-") else blas


def _alternative(tree: Tree, name: str) -> str | None:
    link = next((link for link in tree.names(_ALTERNATIVES) if link.startswith(f"{name}-")), name)
    target = tree.link_target(f"{_ALTERNATIVES}/{link}")
    return posixpath.basename(posixpath.dirname(target)) if target else None


def _read_packages(tree: Tree) -> Iterator[tuple[str, str]]:
    data = (tree.data(_STATUS, _STATUS_SIZE) or b"").decode("utf-8", "replace")
    # Only these are parsed: there are thousands.
    for paragraph in data.split("\n\n"):
        head = re.match(r"\n*Package: (\S+)\n", paragraph)
        if head and _PACKAGES.fullmatch(head[1]):
            fields = Deb822(paragraph)
            if fields.get("Status", "").endswith(" installed") and "Version" in fields:
                yield head[1], fields["Version"]


def _read_torch(tree: Tree, interpreter: str) -> str | None:
    """Reads the version of torch by the name of its folder torch-VERSION.dist-info, first where Python looks first."""
    prefix = posixpath.dirname(posixpath.dirname(interpreter)).strip("/")
    folders = list(_in_lib(tree, f"{prefix}/lib"))
    config = tree.text(f"{prefix}/pyvenv.cfg")
    if interpreter == _PYTHON or (config and re.search(r"^include-system-site-packages\s*=\s*true", config, re.M)):
        folders += [*_in_lib(tree, "usr/local/lib"), "usr/lib/python3/dist-packages"]
    for folder in folders:
        for name in tree.names(folder):
            if match := re.fullmatch(r"torch-([0-9][0-9A-Za-z.+!]*)\.(dist|egg)-info", name):
                return match[1]
    return None


def _in_lib(tree: Tree, lib: str) -> Iterator[str]:
    for name in tree.names(lib):
        if re.fullmatch(r"python3\.[0-9]+", name):
            yield from (f"{lib}/{name}/{packages}" for packages in ("site-packages", "dist-packages"))

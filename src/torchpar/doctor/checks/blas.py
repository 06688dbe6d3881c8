"""Checks which BLAS and LAPACK Debian's PyTorch computes with. A wheel in a virtual environment brings its own.

The alternative in force is what update-alternatives(1) links libblas.so.3, liblapack.so.3 and libopenblas.so.0 to.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterator

from torchpar.doctor.check import check
from torchpar.doctor.conditions import LIMITED_TORCH
from torchpar.doctor.finding import Finding, fail, ok, unknown, warn
from torchpar.doctor.host import Host
from torchpar.host.sysfs import Tree

_INSTALL = "apt-get install --yes libopenblas0-openmp"
_LIBRARIES = ("libblas.so.3", "liblapack.so.3", "libopenblas.so.0")
# The best first: torch's own threads are OpenMP's.
_FAST = ("openblas-openmp", "blis-openmp", "openblas-pthread", "blis-pthread")
_ALTERNATIVES = "etc/alternatives"


@check(
    "blas.alternative",
    passed="an optimised BLAS is in force",
    where=LIMITED_TORCH,
    source="measured on two cores, 1024² float32: libblas3 4.5 GFLOP/s, libopenblas0-openmp 65 (Debian 12), 243 (13)",
)
def blas_alternative(host: Host) -> Iterator[Finding]:
    """Finds the reference BLAS, or one whose threads are not those that torch counts, in force."""
    tree = host.tree
    target = _target(tree, "libblas.so.3")
    if target is None:
        yield unknown("no BLAS is registered in /etc/alternatives", _INSTALL)
        return
    # OpenBLAS's libblas computes with the libopenblas that is in force, whatever its own folder is.
    core = _target(tree, "libopenblas.so.0")
    flavour = _flavour(core if core and _flavour(target).startswith("openblas-") else target)
    evidence = f"/etc/alternatives/{_link(tree, 'libblas.so.3')} -> {target}"
    if core and flavour != _flavour(target):
        evidence += f", {_link(tree, 'libopenblas.so.0')} -> {core}"
    cure = _better(tree, flavour)
    if not tree.exists(target.lstrip("/")):
        yield fail("the BLAS in force is not there, so that torch cannot be imported", evidence, "", cure)
    elif flavour.startswith(("openblas-openmp", "blis-openmp")) or "mkl" in target:
        yield ok(f"{flavour} is in force: optimised, with torch's own OpenMP threads", evidence)
    elif flavour.startswith(("openblas", "blis", "atlas")):
        yield warn(
            f"{flavour} is in force: optimised, but its threads are not those that torch counts", evidence, "", cure
        )
    else:
        yield fail(
            "the reference BLAS is in force: matrices are multiplied 14 to 50 times slower than they could be",
            evidence,
            "",
            cure,
        )


@check(
    "blas.flavours",
    passed="BLAS and LAPACK are of the same make as the libopenblas that they load",
    where=LIMITED_TORCH,
    source="tried: Debian's threaded libblas.so.3 or liblapack.so.3 misses a symbol in the serial libopenblas.so.0",
)
def blas_flavours(host: Host) -> Iterator[Finding]:
    """Finds OpenBLAS's libblas or liblapack in force with the libopenblas of another flavour."""
    tree = host.tree
    core = _target(tree, "libopenblas.so.0")
    targets = {name: _target(tree, name) or "" for name in ("libblas.so.3", "liblapack.so.3")}
    others = {
        name: target
        for name, target in targets.items()
        if core and _flavour(target).startswith("openblas-") and _flavour(target) != _flavour(core)
    }
    if not others or core is None:
        return
    name, target = next(iter(others.items()))
    evidence = f"{_link(tree, name)} is {_flavour(target)}, {_link(tree, 'libopenblas.so.0')} is {_flavour(core)}"
    wanted = f"{posixpath.dirname(target)}/libopenblas.so.0"
    if tree.exists(wanted.lstrip("/")):
        cures = [f"update-alternatives --set {shlex.quote(_link(tree, 'libopenblas.so.0'))} {shlex.quote(wanted)}"]
    else:
        cures = [f"update-alternatives --auto {shlex.quote(_link(tree, each))}" for each in others]
    what = " and ".join(others)
    if _flavour(core) == "openblas-serial":
        yield fail(f"{what} and libopenblas do not fit, so that torch cannot be imported", evidence, "", *cures)
    else:
        yield warn(f"{what} and libopenblas are not of one OpenBLAS: its threads are another's", evidence, "", *cures)


def _link(tree: Tree, name: str) -> str:
    """Returns the name of a library's alternative, with the architecture in it; the library's own where none is."""
    return next((link for link in tree.names(_ALTERNATIVES) if link.startswith(f"{name}-")), name)


def _target(tree: Tree, name: str) -> str | None:
    return tree.link_target(f"{_ALTERNATIVES}/{_link(tree, name)}")


def _flavour(target: str) -> str:
    return posixpath.basename(posixpath.dirname(target))


def _better(tree: Tree, flavour: str) -> str:
    """Returns the command that puts a better BLAS in force: one that is there need not be installed.

    What was chosen by hand stays chosen when another is installed, so that is set, too.
    """
    architecture = _link(tree, "libblas.so.3").removeprefix("libblas.so.3-")
    for better in _FAST[: _FAST.index(flavour) if flavour in _FAST else None]:
        there = tree.exists(f"usr/lib/{architecture}/{better}/libblas.so.3")
        if there and ("openmp" in better or flavour not in _FAST):
            return _set_all(architecture, better)
    return f"{_INSTALL} && {_set_all(architecture, _FAST[0])}"


def _set_all(architecture: str, flavour: str) -> str:
    """Makes the command that puts a flavour in force: of OpenBLAS all of its libraries, which fit only each other."""
    libraries = " ".join(_LIBRARIES if flavour.startswith("openblas-") else _LIBRARIES[:1])
    link, path = (shlex.quote(text) for text in (f"-{architecture}", f"/usr/lib/{architecture}/{flavour}/"))
    return f"for name in {libraries}; do update-alternatives --set $name{link} {path}$name; done"

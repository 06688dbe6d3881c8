"""Checks which BLAS Debian's PyTorch multiplies matrices with."""

from __future__ import annotations

import os
from pathlib import Path

from torchpar.doctor import Finding, Severity, check
from torchpar.host.sysfs import Tree

_FIX = "apt install libopenblas0-openmp"
_TORCH = "usr/lib/python3/dist-packages/torch"


@check("blas")
def check_blas(root: Path) -> Finding:
    """Debian's `libblas3` without an optimised alternative makes torch.matmul 14 to 50 times slower.

    Measured on two cores, 1024² float32: libblas3 4.5 GFLOP/s on both releases, libopenblas0-openmp 65 (Debian 12) and
    243 (Debian 13). The alternative in force is what update-alternatives(1) links libblas.so.3 to.
    """
    tree = Tree(root)
    if not tree.exists(_TORCH):
        found = "Debian's python3-torch is not installed; a wheel in a virtual environment brings its own BLAS"
        return Finding("blas", Severity.OK, found, f"no {tree.path(_TORCH)}")
    links = [name for name in tree.names("etc/alternatives") if name.startswith("libblas.so.3-")]
    if not links:
        return Finding(
            "blas", Severity.UNKNOWN, "no BLAS is registered", f"no {tree.path('etc/alternatives/libblas.so.3-*')}"
        )
    target = os.readlink(tree.path(f"etc/alternatives/{links[0]}"))
    flavour = target.split("/")[-2]
    evidence = f"/etc/alternatives/{links[0]} -> {target}"
    if not tree.exists(target.lstrip("/")):
        return Finding("blas", Severity.FAIL, "the BLAS in force is not there", evidence, _FIX)
    if flavour.startswith(("openblas-openmp", "blis-openmp")) or "mkl" in target:
        return Finding(
            "blas", Severity.OK, f"{flavour} is in force: optimised, with torch's own OpenMP threads", evidence
        )
    if flavour.startswith(("openblas", "blis", "atlas")):
        found = f"{flavour} is in force: optimised, but its threads are not those that torch counts"
        return Finding("blas", Severity.WARN, found, evidence, _FIX)
    found = "the reference BLAS is in force: matrices are multiplied 14 to 50 times slower than they could be"
    return Finding("blas", Severity.FAIL, found, evidence, _FIX)

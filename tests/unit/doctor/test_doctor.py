"""The checks of doctor, on roots made for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchpar.doctor import Severity
from torchpar.doctor.blas import check_blas

TRIPLET = "x86_64-linux-gnu"


def make_root(root: Path, flavour: str | None, *, installed: bool = True) -> Path:
    """A Debian root with python3-torch whose BLAS alternative is of this flavour."""
    (root / "usr/lib/python3/dist-packages/torch").mkdir(parents=True)
    (root / "etc/alternatives").mkdir(parents=True)
    if flavour:
        target = f"/usr/lib/{TRIPLET}/{flavour}/libblas.so.3"
        (root / f"etc/alternatives/libblas.so.3-{TRIPLET}").symlink_to(target)
        if installed:
            (root / target.lstrip("/")).parent.mkdir(parents=True)
            (root / target.lstrip("/")).touch()
    return root


@pytest.mark.parametrize(
    ("flavour", "severity"),
    [
        ("blas", Severity.FAIL),
        ("openblas-openmp", Severity.OK),
        ("blis-openmp", Severity.OK),
        ("openblas-pthread", Severity.WARN),
        ("atlas", Severity.WARN),
        (None, Severity.UNKNOWN),
    ],
)
def test_the_blas_in_force_decides(tmp_path: Path, flavour: str | None, severity: Severity) -> None:
    """The reference one fails, with the command that mends it."""
    finding = check_blas(make_root(tmp_path, flavour))
    assert finding.severity is severity
    assert (finding.fix == "apt install libopenblas0-openmp") is (severity in (Severity.FAIL, Severity.WARN))


def test_an_alternative_that_leads_nowhere_fails(tmp_path: Path) -> None:
    """torch would not load at all."""
    assert check_blas(make_root(tmp_path, "openblas-openmp", installed=False)).severity is Severity.FAIL


def test_without_debians_torch_there_is_nothing_to_mend(tmp_path: Path) -> None:
    """A wheel brings its own BLAS."""
    assert check_blas(tmp_path).severity is Severity.OK

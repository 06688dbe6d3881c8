"""The versions on which jobs rest, read from files alone."""

from __future__ import annotations

from pathlib import Path

from torchpar.host.sysfs import Tree
from torchpar.host.versions import read_versions

STATUS = """\
Package: torchpar
Status: install ok installed
Version: 0.1.0~rc1

Package: python3-torch
Status: deinstall ok config-files
Version: 2.6.0+dfsg-7

Package: libopenblas0-openmp
Status: install ok installed
Version: 0.3.29+ds-3
Description: x
 Package: python3-torch

Package: cowsay
Status: install ok installed
Version: 1
"""


def test_packages_torch_and_blas_are_read(tmp_path: Path) -> None:
    """Of packages those that are installed; of each interpreter the torch that it finds first."""
    venv = "srv/venv"
    for folder in (
        "var/lib/dpkg",
        "etc/alternatives",
        f"{venv}/lib/python3.13/site-packages/torch-2.13.0+cpu.dist-info",
        "srv/plain/lib/python3.11/site-packages/torchvision-0.1.dist-info",
        "usr/lib/python3/dist-packages/torch-2.6.0.egg-info",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    for name in ("libblas.so.3", "libopenblas.so.0"):
        flavour = "openblas-pthread" if "open" in name else "openblas-openmp"
        (tmp_path / f"etc/alternatives/{name}-x86_64-linux-gnu").symlink_to(f"/usr/lib/x/{flavour}/{name}")
    interpreters = ("/usr/bin/python3", f"/{venv}/bin/python3", "/srv/plain/bin/python3")
    found = read_versions(Tree(tmp_path), interpreters)
    assert found.packages == {"libopenblas0-openmp": "0.3.29+ds-3", "torchpar": "0.1.0~rc1"}
    assert found.torch == dict(zip(interpreters, ("2.6.0", "2.13.0+cpu", None), strict=True))
    # OpenBLAS's libblas computes with the libopenblas that is in force.
    assert found.blas == "openblas-pthread"
    (tmp_path / "srv/plain/pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
    assert read_versions(Tree(tmp_path), interpreters[2:]).torch == {interpreters[2]: "2.6.0"}
    empty = read_versions(Tree(tmp_path / "nothing"), ())
    assert (empty.packages, empty.torch, empty.blas) == ({}, {}, None)

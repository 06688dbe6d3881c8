"""Which files are the conf, in which order, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchpar.errors import ConfigError
from torchpar.host.conf import find_conf_files, read_conf_files


def write(root: Path, *paths: str) -> None:
    """Make files that hold their own path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"# {path}\n")


def found(root: Path) -> list[str]:
    """The files in force, relative to the root."""
    return [str(path.relative_to(root)) for path in find_conf_files(root)]


def test_what_the_admin_writes_comes_after_what_packages_ship(tmp_path: Path) -> None:
    """Later files win: the vendor's, the main file, then drop-ins by name whatever their directory."""
    write(
        tmp_path,
        "usr/lib/torchpar.conf.d/00-vendor.conf",
        "usr/lib/torchpar.conf.d/90-site.conf",
        "etc/torchpar.conf",
        "etc/torchpar.conf.d/50-b.conf",
        "run/torchpar.conf.d/40-a.conf",
        "usr/local/lib/torchpar.conf.d/60-c.conf",
        "etc/torchpar.conf.d/README",
    )
    assert found(tmp_path) == [
        "usr/lib/torchpar.conf.d/00-vendor.conf",
        "usr/lib/torchpar.conf.d/90-site.conf",
        "etc/torchpar.conf",
        "run/torchpar.conf.d/40-a.conf",
        "etc/torchpar.conf.d/50-b.conf",
        "usr/local/lib/torchpar.conf.d/60-c.conf",
    ]


def test_the_highest_main_file_and_the_highest_file_of_a_name_count(tmp_path: Path) -> None:
    """As systemd's own files."""
    write(tmp_path, "usr/lib/torchpar.conf", "run/torchpar.conf")
    write(tmp_path, "usr/lib/torchpar.conf.d/a.conf", "run/torchpar.conf.d/a.conf", "etc/torchpar.conf.d/a.conf")
    assert found(tmp_path) == ["run/torchpar.conf", "etc/torchpar.conf.d/a.conf"]


@pytest.mark.parametrize("mask", ["empty", "null"])
def test_an_empty_file_or_a_link_to_dev_null_masks(tmp_path: Path, mask: str) -> None:
    """The demo can be hidden without touching the package's file."""
    write(tmp_path, "usr/lib/torchpar.conf.d/00-vendor.conf", "etc/torchpar.conf.d/x.conf")
    path = tmp_path / "etc/torchpar.conf.d/00-vendor.conf"
    if mask == "empty":
        path.touch()
    else:
        path.symlink_to("/dev/null")
    assert found(tmp_path) == ["etc/torchpar.conf.d/x.conf"]


def test_no_file_at_all_is_an_empty_conf(tmp_path: Path) -> None:
    """A host without a conf has nothing to run, which is no error."""
    assert find_conf_files(tmp_path) == ()


def test_every_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A directory and a dangling link in place of files."""
    (tmp_path / "etc/torchpar.conf").mkdir(parents=True)
    (tmp_path / "etc/torchpar.conf.d").mkdir()
    (tmp_path / "etc/torchpar.conf.d/a.conf").symlink_to("nowhere")
    with pytest.raises(ConfigError) as error:
        read_conf_files(find_conf_files(tmp_path), trusted=False)
    assert error.value.problems == (
        f"{tmp_path}/etc/torchpar.conf: cannot be read: Is a directory",
        f"{tmp_path}/etc/torchpar.conf.d/a.conf: cannot be read: No such file or directory",
    )


def test_a_huge_file_is_no_conf(tmp_path: Path) -> None:
    """It would fill the daemon's memory."""
    path = tmp_path / "torchpar.conf"
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="larger than 1024 KiB"):
        read_conf_files((path,), trusted=False)

"""Cached Debian roots, made by mmdebstrap and kept outside the tree.

A root is never booted or changed after it was made: machines run on a throw-away layer over it (see container.py). It
is found again by a hash of everything that went into it, so that a change makes another one. `python3 -m
tests.machines.roots [SUITE ...]` makes them beforehand.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]

Report = Callable[[str], None]


class RootError(Exception):
    """A root could not be made."""


class Suite(Enum):
    """A Debian release."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"

    @property
    def release(self) -> str:
        """Its name for a person: "Debian 12"."""
        return {"bookworm": "Debian 12", "trixie": "Debian 13"}[self.value]


_PYTHON_OF = {Suite.BOOKWORM: "Python 3.11.", Suite.TRIXIE: "Python 3.13."}


def suite_of_this_host() -> Suite | None:
    """The release whose Python is this host's, if it is one of them."""
    version = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=True).stdout
    return next((suite for suite, python in _PYTHON_OF.items() if version.startswith(python)), None)


class Kind(Enum):
    """What a root is for."""

    BASE = "base"  # what a fresh minimal server has, and neither Python nor torch: the package must bring them
    BUILD = "build"  # a compiler, debhelper, lintian and the Build-Depends of the package
    INSTALLED = "installed"  # a base, and all that the package depends on and recommends: installing it is quick
    NUMA = "numa"  # an emulated machine: a kernel of its own, what the package depends on, Slurm and podman
    MANAGED = "managed"  # an ssh server, Ansible, what the package depends on: a host of a fleet, and its controller


# A root of another recipe than this file's must not be taken for one of this one's: raise it with the hooks below.
_RECIPE = 1

_BASE = ("ca-certificates", "dbus", "systemd", "systemd-sysv")

_DEPENDS = ("libtcmalloc-minimal4", "python3-click", "python3-debian", "python3-jinja2")

_PACKAGES = {
    Kind.BASE: _BASE,
    Kind.MANAGED: (
        *_BASE, *_DEPENDS, "ansible-core", "apt-utils", "gpg", "gpg-agent", "openssh-client", "openssh-server",
        "python3-apt",
    ),
    Kind.INSTALLED: _BASE,
    Kind.BUILD: ("build-essential", "ca-certificates", "lintian"),
    Kind.NUMA: (
        "crun", "dbus", "iproute2", "libtcmalloc-minimal4", "linux-image-cloud-amd64", "munge", "podman", "python3",
        "python3-click", "python3-debian", "python3-h11", "python3-jinja2", "slurm-wlm", "systemd", "systemd-sysv",
        "udev", "util-linux",
    ),
}  # fmt: skip

_ABSENT = {Suite.BOOKWORM: ("python3-orjson",)}

_UNUSED_DAYS = 30


@dataclass(frozen=True)
class Root:
    """One root, made or not. `relations` is what apt reads of debian/control for it, "" where nothing is."""

    suite: Suite
    kind: Kind
    relations: str = ""

    @property
    def name(self) -> str:
        """Its folder in the cache: suite, kind, and a hash of what goes in."""
        recipe = f"{_RECIPE} {self.suite.value} {' '.join(_PACKAGES[self.kind])} {self.relations}"
        return f"{self.suite.value}-{self.kind.value}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"

    @property
    def path(self) -> Path:
        """Where it is once it is made."""
        return cache() / "roots" / self.name


def cache() -> Path:
    """The folder for what costs time to make again: roots and downloaded packages."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchpar"


def base_root(suite: Suite) -> Root:
    """The root that machines of this release boot."""
    return Root(suite, Kind.BASE)


def numa_root(suite: Suite) -> Root:
    """The root that the emulated machine with several NUMA nodes boots."""
    return Root(suite, Kind.NUMA)


def managed_root(suite: Suite) -> Root:
    """The root that hosts of a fleet boot, and the host that manages them."""
    return Root(suite, Kind.MANAGED)


def installed_root(suite: Suite, tree: Path = TREE) -> Root:
    """The root that machines boot which are to have the package of this source tree, and all that comes with it."""
    package = (tree / "debian" / "control").read_text(encoding="utf-8").split("\n\n", 1)[1]
    fields = re.findall(r"^(?:Depends|Recommends):(.*(?:\n[ \t].*)*)", package, re.MULTILINE)
    relations = [relation.strip() for field in fields for relation in field.split(",")]
    # What debhelper fills in is Debian's Python; a recommendation that a release does not have is none there.
    names = ["python3", *(name for name in relations if "${" not in name and name not in _ABSENT.get(suite, ()))]
    return Root(suite, Kind.INSTALLED, ", ".join(names))


def build_root(suite: Suite, tree: Path = TREE) -> Root:
    """The root that the package of this source tree is built in."""
    control = (tree / "debian" / "control").read_text(encoding="utf-8")
    # Only what apt-get build-dep reads, so that a new description does not make a new root.
    fields = re.findall(r"^Build-[A-Za-z-]+:.*(?:\n[ \t].*)*", control.split("\n\n", 1)[0], re.MULTILINE)
    return Root(suite, Kind.BUILD, "\n".join(fields) + "\n")


def make_root(root: Root, report: Report = print) -> Path:
    """The folder of the root, made now if it is not in the cache. Several processes may ask at once: one makes it."""
    roots = cache() / "roots"
    roots.mkdir(parents=True, exist_ok=True)
    with locked(roots / f"{root.name}.lock") as lock:
        os.utime(lock)
        if root.path.exists():
            return root.path
        report(f"making a {root.suite.release} root ({root.kind.value}): half a minute to three, kept in {roots}")
        started = time.monotonic()
        partial = roots / f"{root.name}.partial"
        _remove(partial)
        _bootstrap(root, partial, report)
        _finish(partial)
        partial.rename(root.path)
        report(f"made {root.path.name} in {time.monotonic() - started:.0f} s")
    _forget_unused(roots, report)
    return root.path


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[Path]:
    """Hold an exclusive lock on a file, which ends with this process too. Raises BlockingIOError if it may not wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield path


def _bootstrap(root: Root, target: Path, report: Report) -> None:
    # mmdebstrap takes the mirror that this host is set up for, or Debian's default.
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(_PACKAGES[root.kind])}"]
    if root.kind is Kind.INSTALLED:
        argv.append(f'--customize-hook=chroot "$1" apt-get satisfy --yes "{root.relations}"')
    if root.kind is Kind.BUILD:
        source = target.with_suffix(".source")
        _remove(source)
        (source / "debian").mkdir(parents=True)
        (source / "debian" / "control").write_text(
            f"Source: torchpar\nMaintainer: torchpar <root@localhost>\n{root.relations}"
            "\nPackage: torchpar\nArchitecture: all\nDescription: what it needs to be built\n",
            encoding="utf-8",
        )
        argv += [
            f"--customize-hook=copy-in {source} /tmp",
            f'--customize-hook=chroot "$1" apt-get build-dep --yes --no-install-recommends /tmp/{source.name}',
            f'--customize-hook=rm -r "$1"/tmp/{source.name}',
        ]
    try:
        _follow([*argv, root.suite.value, str(target)], target.with_suffix(".log"), report)
    except BaseException:
        _remove(target)
        raise
    finally:
        if root.kind is Kind.BUILD:
            _remove(source)


def _follow(argv: list[str], log: Path, report: Report) -> None:
    """Run mmdebstrap, report its steps ("I: ..."), and show the end of all that it said if it fails."""
    lines = []
    with subprocess.Popen(
        argv,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if line.startswith("I: ") and "hook" not in line:
                report(f"  {line[3:].strip()}")
    log.write_text("".join(lines), encoding="utf-8")
    if process.returncode:
        raise RootError(f"mmdebstrap failed; all that it said is in {log}\n{''.join(lines[-30:])}")


def _finish(target: Path) -> None:
    """Take out what came from this host, so that every machine starts like a fresh installation."""
    (target / "etc/hostname").write_text("debian\n")
    (target / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n")
    (target / "etc/resolv.conf").unlink(missing_ok=True)
    (target / "etc/resolv.conf").touch()
    # Machines share this host's network, where port 22 is not theirs: a test says where an ssh server listens.
    (target / "etc/systemd/system/multi-user.target.wants/ssh.service").unlink(missing_ok=True)
    # Left by some tools to keep services from starting in a chroot; it would keep them from starting here.
    (target / "usr/sbin/policy-rc.d").unlink(missing_ok=True)


def _forget_unused(roots: Path, report: Report) -> None:
    for lock in roots.glob("*.lock"):
        if time.time() - lock.stat().st_mtime > _UNUSED_DAYS * 86400:
            # A machine that still runs on it since then would be a month old.
            with contextlib.suppress(BlockingIOError), locked(lock, wait=False):
                report(f"removing {lock.stem}, unused for {_UNUSED_DAYS} days")
                _remove(lock.with_suffix(""))
                lock.unlink()


def _remove(path: Path) -> None:
    # One file system: should anything still be mounted below, it is not what may be deleted.
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)


def main() -> None:
    """Make the roots of the suites named, or of all."""
    for suite in [Suite(name) for name in sys.argv[1:]] or list(Suite):
        for root in (base_root(suite), build_root(suite)):
            print(make_root(root))


if __name__ == "__main__":
    if not shutil.which("mmdebstrap"):
        sys.exit("mmdebstrap is not installed: apt install mmdebstrap")
    main()

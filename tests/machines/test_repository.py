"""The signed apt repository: what hosts take from it, what they refuse, and a site's conf as a package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.machines.machine import Machine
from tests.machines.roots import TREE, Suite

# Where the machine has the repository, and what apt is told to read of no other one.
THERE = "/srv/repository"
ALONE = (
    "-oDir::Etc::SourceList=/etc/apt/sources.list.d/torchpar.sources", "-oDir::Etc::SourceParts=-",
    "-oAPT::Get::List-Cleanup=false",
)  # fmt: skip

DROP_IN = "/run/systemd/generator/torchpar-infer@web.service.d/20-torchpar.conf"


class Repository:
    """A repository on this host, signed with a key that is thrown away."""

    def __init__(self, folder: Path, deb: Path) -> None:
        self.path = folder / "repository"
        self._deb = deb
        self._folder = folder
        self._environment = {**os.environ, "GNUPGHOME": str(folder)}
        self.key = self.make_key("first")

    def _gpg(self, *arguments: str) -> str:
        return subprocess.run(
            ["gpg", "--batch", *arguments], env=self._environment, check=True, capture_output=True, text=True
        ).stdout

    def make_key(self, name: str) -> str:
        """Make another key; its name for gpg."""
        self._gpg("--passphrase", "", "--quick-generate-key", f"{name} <root@example.org>", "ed25519", "sign", "2y")
        found = re.search(r"\b[0-9A-F]{40}\b", self._gpg("--list-secret-keys", name))
        assert found
        return found[0]

    def make(self, target: str, *variables: str) -> str:
        """Run `make repo` or `make promote`; what it said."""
        given = (f"KEY={self.key}", f"REPOSITORY={self.path}", f"URL=file:{THERE}", *variables)
        done = subprocess.run(
            ["make", "--no-print-directory", "-C", str(TREE), target, *given],
            env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(done.stdout)
        return done.stdout

    def next_version(self, version: str) -> Path:
        """The package of torchpar under another version."""
        tree, deb = self._folder / "next", self._folder / f"torchpar_{version}_all.deb"
        shutil.rmtree(tree, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-R", str(self._deb), str(tree)], check=True)
        control = tree / "DEBIAN/control"
        control.write_text(re.sub(r"(?m)^Version: .*", f"Version: {version}", control.read_text()))
        build(tree, deb)
        return deb

    def close(self) -> None:
        """End what gpg has started."""
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=self._environment, check=True)


def build(tree: Path, deb: Path) -> None:
    """Build a package of a folder."""
    argv = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(deb)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def repository(deb: Path) -> Iterator[Repository]:
    """A repository with torchpar in both suites."""
    # gpg's sockets must have short names.
    with tempfile.TemporaryDirectory() as folder:
        made = Repository(Path(folder), deb)
        made.make("repo", f"DEBS={deb}")
        made.make("promote")
        yield made
        made.close()


@pytest.fixture(scope="module")
def host(suite: Suite, repository: Repository, progress: Callable[[str], None]) -> Iterator[Machine]:
    """A fresh machine that has torchpar and the keyring from the repository's stable suite."""
    with Machine(suite, "repository", mounts={THERE: repository.path}, report=progress) as booted:
        booted.sh("cp $1/torchpar-archive-keyring.gpg /usr/share/keyrings/", THERE)
        booted.sh("cp $1/stable.sources /etc/apt/sources.list.d/torchpar.sources", THERE)
        booted.install("torchpar", "torchpar-archive-keyring", recommends=False)
        yield booted


def update(machine: Machine) -> tuple[int, str]:
    """Have apt read the repository as if for the first time; its status and what it said."""
    machine.sh("rm -rf /var/lib/apt/lists/*_srv_repository_*")
    done = machine.run("apt-get", "update", *ALONE, check=False)
    return done.returncode, done.stdout + done.stderr


def installed_version(machine: Machine) -> str:
    return machine.run("dpkg-query", "-W", "-f", "${Version}", "torchpar").stdout


def offered(machine: Machine) -> list[str]:
    """The versions that apt has from the repository."""
    listing = machine.run("apt-cache", "madison", "torchpar").stdout
    return [line.split("|")[1].strip() for line in listing.splitlines() if THERE in line]


def test_a_host_follows_the_suite_that_it_has(host: Machine, repository: Repository) -> None:
    """A version that is a canary reaches the others when it is promoted; the older one stays for the way back."""
    first = installed_version(host)
    assert host.run("torchpar", "check", check=False).returncode == 0
    repository.make("repo", f"DEBS={repository.next_version('999')}")
    status, said = update(host)
    assert status == 0 and offered(host) == [first]
    # Neither a warning nor a notice: signature, architectures and hashes are as apt wants them.
    assert "W:" not in said and "N:" not in said, said
    assert "stable has torchpar 999 now" in repository.make("promote")
    update(host)
    assert offered(host) == ["999", first]
    host.run("apt-get", "upgrade", "--yes")
    assert installed_version(host) == "999"
    host.run("apt-get", "install", "--yes", "--allow-downgrades", f"torchpar={first}")
    assert installed_version(host) == first
    # dpkg looks whether the keyring of the package is what was copied.
    assert host.run("dpkg", "--verify", "torchpar-archive-keyring").stdout == ""
    assert list((repository.path / "dists/stable").glob("main/binary-amd64/by-hash/SHA256/*"))


def test_a_published_version_never_changes(repository: Repository, tmp_path: Path) -> None:
    """Hosts that have it would not notice."""
    other = tmp_path / "other.deb"
    other.write_bytes(next(repository.path.glob("pool/canary/torchpar_0*.deb")).read_bytes() + b"\n")
    with pytest.raises(AssertionError, match="another file was published as version .* of torchpar: raise the version"):
        repository.make("repo", f"DEBS={other}")


def change_line(path: Path) -> None:
    path.write_text(path.read_text().replace("Origin: torchpar", "Origin: Torchpar"))


def change_index(path: Path) -> None:
    for file in path.parent.rglob("main/**/*"):
        if file.is_file():
            file.write_bytes(file.read_bytes().replace(b"torchpar", b"Torchpar") + b"\n")


def unsign(path: Path) -> None:
    path.unlink()
    (path.parent / "Release.gpg").unlink()


def test_what_is_not_as_it_was_signed_is_refused(host: Machine, repository: Repository, tmp_path: Path) -> None:
    """Changed, unsigned, signed by somebody else or long ago: apt has nothing from there."""
    suite = repository.path / "dists/stable"
    kept = shutil.copytree(suite, tmp_path / "kept")

    def restore() -> None:
        shutil.rmtree(suite)
        shutil.copytree(kept, suite)

    for change, why in (
        (change_line, "BADSIG|[Ii]nvalid signature|not signed|Bad signature"),
        (change_index, "unexpected size|Hash Sum mismatch"),
        (unsign, "not signed|no longer has|does not have"),
    ):
        change(suite / "InRelease")
        _refused(host, why)
        restore()
    repository.make("repo", "DEBS=", "VALID_DAYS=-1")
    _refused(host, "is expired|not valid anymore")
    repository.make("repo", "DEBS=")
    with tempfile.TemporaryDirectory() as folder:
        stranger = Repository(Path(folder), Path())
        stranger.path = repository.path
        stranger.make("repo", "DEBS=")
        stranger.close()
        _refused(host, "NO_PUBKEY|[Mm]issing key|not signed")
    repository.make("repo", "DEBS=")
    assert update(host)[0] == 0
    version = offered(host)[0]
    (package,) = repository.path.glob(f"pool/stable/torchpar_{version}_*.deb")
    whole = package.read_bytes()
    package.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = host.sh('cd /var/tmp; apt-get download "torchpar=$1"', version, check=False)
    assert done.returncode and "Hash Sum mismatch" in done.stderr, done
    package.write_bytes(whole)


def _refused(host: Machine, why: str) -> None:
    status, said = update(host)
    assert status == 100, said
    assert re.search(why, said), said
    assert offered(host) == []


def test_the_conf_of_a_site_is_in_force_when_its_package_is_installed(host: Machine, repository: Repository) -> None:
    """And no longer when it is removed; one with a mistake is installed, changes nothing and is told."""
    example = TREE / "src/examples/site-torchpar-conf"
    folder = repository.path.parent / "site"
    conf = "usr/lib/torchpar.conf.d/50-site.conf"

    def publish(version: int, more: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(example, folder)
        control = folder / "DEBIAN/control"
        control.write_text(control.read_text().replace("Version: 1\n", f"Version: {version}\n"))
        (folder / conf).write_text((folder / conf).read_text() + more)
        build(folder, folder.parent)
        repository.make("repo", f"DEBS={folder.parent}/site-torchpar-conf_{version}_all.deb")
        repository.make("promote")
        update(host)

    publish(1, "")
    host.run("apt-get", "install", "--yes", "site-torchpar-conf")
    assert "drain_delay" in host.read(DROP_IN)
    publish(2, "Threads=none\n")
    done = host.run("apt-get", "install", "--yes", "site-torchpar-conf")
    assert f"/{conf}:10: [Infer web]" in done.stdout + done.stderr
    assert host.run("dpkg-query", "-W", "-f", "${Version}", "site-torchpar-conf").stdout == "2"
    assert "drain_delay" in host.read(DROP_IN)
    host.run("apt-get", "remove", "--yes", "site-torchpar-conf")
    assert not host.exists(DROP_IN)
    assert host.run("torchpar", "check", check=False).returncode == 0


def test_another_key_takes_over(host: Machine, repository: Repository) -> None:
    """Signed with both, hosts get it in the keyring's package; then it signs alone."""
    new = repository.make_key("second")
    repository.make("repo", "DEBS=", f"KEY={repository.key} {new}")
    assert update(host)[0] == 0
    host.run("apt-get", "install", "--yes", "torchpar-archive-keyring")
    repository.key = new
    repository.make("repo", "DEBS=")
    assert update(host)[0] == 0

"""`torchpar report`: what a bug report needs of this host, in one archive without what is private."""

from __future__ import annotations

import io
import os
import pwd
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from torchpar.cli.output import brief
from torchpar.cli.paths import FilePath
from torchpar.cli.redact import Redactor
from torchpar.contract.errors import TorchparError
from torchpar.contract.version import version
from torchpar.doctor.words import size
from torchpar.generations.rollbacks import read_rollbacks
from torchpar.generations.store import Store
from torchpar.host.program import run

# Each is run, and what it prints is a file of this name.
_COMMANDS = {
    "uname": ["uname", "-srm"],
    "os-release": ["cat", "/etc/os-release"],
    "packages": ["dpkg-query", "--show", "torchpar", "systemd", "python3", "python3-torch", "libblas3"],
    # The conf before what follows from it: where it says that hosts meet is a name of a host from there on.
    "conf": ["systemd-analyze", "cat-config", "torchpar.conf"],
    "topology.json": ["torchpar", "topology", "--json"],
    "facts.json": ["torchpar", "facts", "--json"],
    "validate.json": ["torchpar", "validate", "--json"],
    "check.json": ["torchpar", "check", "--json"],
    "diff": ["torchpar", "diff"],
    "plan.json": ["torchpar", "plan", "--json"],
    "units": ["torchpar", "render"],
    "history.json": ["torchpar", "history", "--json"],
    "status.json": ["torchpar", "status", "--json"],
    "verify.json": ["torchpar", "verify", "--json"],
    "doctor.json": ["torchpar", "doctor", "--json"],
    # It would print the end of the journal, too.
    "systemctl": ["systemctl", "--no-pager", "--full", "--lines=0", "status", "torchpar-*", "torchpard.service"],
    "drop-ins": ["systemd-delta", "--no-pager", "--type=extended"],
}
_JOURNAL = {
    f"journal-{name}": ["journalctl", "--quiet", "--no-pager", "--no-hostname", "--output=short-iso", f"--unit={unit}"]
    + [f"--lines={lines}"]
    for name, unit, lines in (("torchpard", "torchpard.service", 500), ("services", "torchpar-*", 1000))
}
# One for each architecture that has it, by the name of its folder of libraries.
_BLAS = "libblas.so.3-*"
_ALTERNATIVES = Path("/etc/alternatives")
_SECONDS = 60.0
_MOST = 2**22  # of one file, in letters


@click.command(short_help="Collect what a bug report needs, without what is private.")
@click.option("--output", type=FilePath(), help="Write FILE; default: torchpar-report-TIME.tar.gz here.")
@click.option("--no-journal", is_flag=True, help="Leave out the journal, in which jobs write what they like.")
def report(output: Path | None, no_journal: bool) -> None:
    """Collect what somebody who mends a fault needs to know of this host: facts, conf, plan, units, state, journal.

    Names of hosts and users, addresses, values of variables and what looks like a secret are replaced. Nothing is sent.
    Look at the files before you send them: a secret in a path or in what a job prints is one that nobody knows.
    """
    now = time.time()
    path = output or Path(time.strftime("torchpar-report-%Y%m%d-%H%M%S.tar.gz", time.localtime(now)))
    folder = path.name.removesuffix(".tar.gz")
    redactor = Redactor(_hosts(), _users())
    try:
        # What others may not read on this host they may not read here.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in _collect(journal=not no_journal):
                data = redactor.redact(text).encode(errors="backslashreplace")
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size, member.mtime, member.mode = len(data), int(now), 0o644
                archive.addfile(member, io.BytesIO(data))
                click.echo(f"  {name:<20} {size(len(data)):>8}", err=True)
    except OSError as error:
        raise TorchparError(f"{path}: {error.strerror}") from None
    click.echo(brief(str(path)))
    click.echo(f"to look at it before you send it: tar -xzOf {brief(str(path))} | less", err=True)


def _collect(*, journal: bool) -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each file; what cannot be found out is a text that says so."""
    yield "version", f"torchpar {version()}\n"
    blas = {
        link.name.replace(".so.3", ""): ["update-alternatives", "--query", link.name]
        for link in sorted(_ALTERNATIVES.glob(_BLAS))
    }
    for name, argv in {**blas, **_COMMANDS, **(_JOURNAL if journal else {})}.items():
        done = run(argv, seconds=_SECONDS)
        text = done.stdout[:_MOST]
        if done.stderr.strip() or done.returncode:
            text += f"\n# {' '.join(argv)}: exit status {done.returncode}\n{done.stderr[:_MOST]}"
        yield name, text


def _hosts() -> Iterator[str]:
    name = socket.gethostname()
    yield from (name, name.partition(".")[0])


def _users() -> Iterator[str]:
    """Yields the names of people: users that may log in, and those that have, whom a directory may know."""
    users = pwd.getpwall()
    yield from (user.pw_name for user in users if _is_person(user))
    known = {user.pw_name for user in users}
    yield from {rollback.person for rollback in read_rollbacks(Store())} - known - {""}


def _is_person(user: pwd.struct_passwd) -> bool:
    return 1000 <= user.pw_uid < 65000

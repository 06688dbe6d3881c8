"""torchpar-generator: a shell script, run on stores that this program wrote, with other paths and owners."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from torchpar.conf.syntax import ConfFile
from torchpar.generations.generation import Content
from torchpar.generations.store import Store

GENERATOR = Path(__file__).parents[3] / "systemd" / "torchpar-generator"

# All that it may start; anything else would not be found.
PROGRAMS = ("cat", "cp", "find", "ln", "mkdir", "mv", "readlink", "rm", "sha256sum")

FILES = {
    "torchpar-train@a.service.d/20-torchpar.conf": "[Service]\nCPUAffinity=0\n",
    "torchpar-infer@b.service.d/20-torchpar.conf": "[Service]\nCPUAffinity=1\n",
}
LINKS = {"torchpar.target.wants/torchpar-train@a.service": "/usr/lib/systemd/system/torchpar-train@.service"}
RECOMPILE = {
    "torchpar-train@.service.d/90-recompile.conf",
    "torchpar-infer@.service.d/90-recompile.conf",
    "torchpar.target.wants/torchpar-recompile.service",
}

pytestmark = pytest.mark.subprocess


@dataclass(frozen=True)
class Host:
    """A host with a generation in force for two CPUs and one memory node, below a directory of the test's own."""

    root: Path

    @property
    def generation(self) -> Path:
        return self.root / "store" / "active"

    @property
    def output(self) -> Path:
        return self.root / "output"

    def set_online(self, what: str, text: str | None) -> None:
        """What /sys/devices/system/WHAT/online says; None: there is no such file."""
        path = self.root / "sys" / what / "online"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(f"{text}\n")

    def generate(self, *arguments: str, before_program: str = "") -> subprocess.CompletedProcess[str]:
        """Run it as systemd does, with $1 the output if no arguments are given.

        `before_program` is shell text that runs before every program that it starts, whose name is $0.
        """
        script = GENERATOR.read_text()
        for old, new in {
            "store=/var/lib/torchpar\n": f"store={self.root}/store\n",
            "sysfs=/sys/devices/system\n": f"sysfs={self.root}/sys\n",
            "owner=0\n": f"owner={os.geteuid()}\n",
        }.items():
            assert script.count(old) == 1
            script = script.replace(old, new)
        script = script.replace("/dev/kmsg", f"{self.root}/no-kernel-log")
        programs = self.root / "bin"
        programs.mkdir(exist_ok=True)
        for name in PROGRAMS:
            (programs / name).write_text(f'#!/bin/sh\n{before_program}\nexec {shutil.which(name)} "$@"\n')
            (programs / name).chmod(0o755)
        return subprocess.run(
            ["/bin/sh", "-c", script, "torchpar-generator", *(arguments or [str(self.output)])],
            env={"PATH": str(programs), "ROOT": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )

    def entries(self) -> dict[str, str]:
        """What is in the output: path → text, or → target of a link. Names that systemd ignores count too."""
        found = {}
        for path in self.output.rglob("*"):
            if path.is_symlink():
                found[str(path.relative_to(self.output))] = os.readlink(path)
            elif path.is_file():
                found[str(path.relative_to(self.output))] = path.read_text()
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    tmp_path.chmod(0o755)
    store = Store(tmp_path / "store")
    manifest = {"cpus_online": "0-1", "nodes_online": "0"}
    conf = (ConfFile("/etc/torchpar.conf", "[Train a]\n"),)
    with store.locked():
        store.activate(store.write(Content(FILES, LINKS, "{}\n", conf, manifest)))
    made = Host(tmp_path)
    made.set_online("cpu", "0-1")
    made.set_online("node", "0")
    made.output.mkdir()
    return made


def test_what_is_in_force_is_copied_and_nothing_else(host: Host) -> None:
    """Every file and link of the active generation, and not a word."""
    done = host.generate()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert host.entries() == {**FILES, **LINKS}


def test_what_others_have_named_is_not_told(host: Host) -> None:
    """It would be a line of a unit."""
    path = host.root / "store/active/units" / "x\"\n[Service]\nExecStartPre=+sh"
    path.touch(mode=0o666)
    path.chmod(0o666)
    done = host.generate()
    assert f"what decides what runs: {host.root}/store\n" in done.stderr
    assert "[Service]\nExecStartPre=+" not in "".join(map(str, host.entries().values()))


def test_a_link_of_somebody_else_on_the_way_is_not_followed(host: Host) -> None:
    """Also where it leads back to what is root's; what leads there by links of root's own is."""
    (host.root / "store").rename(host.root / "there")
    (host.root / "open").mkdir()
    (host.root / "open/through").symlink_to("../there")
    (host.root / "store").symlink_to(f"{host.root}/open/./through/")
    host.generate()
    assert host.entries().keys() == FILES.keys() | LINKS.keys()
    (host.root / "open").chmod(0o777)
    assert "can change" in host.generate().stderr
    if os.geteuid() == 0:
        (host.root / "open").chmod(0o755)
        os.lchown(host.root / "open/through", 4242, 4242)
        assert f"what decides what runs: {host.root}/open/through" in host.generate().stderr


def test_it_starts_six_programs(host: Host) -> None:
    """It runs at every daemon-reload of the host, so every process counts; and none of them is Python or systemctl."""
    host.generate(before_program='echo "${0##*/}" >>"$ROOT/started"')
    assert (host.root / "started").read_text().split() == ["readlink", "find", "cp", "sha256sum", "mv", "rm"]


def test_no_name_is_there_before_what_it_names_is_complete(host: Host) -> None:
    """Until the one move at the end the output holds a name that systemd ignores."""
    host.generate(before_program='echo "${0##*/}" "$ROOT"/output/* >>"$ROOT/seen"')
    seen = [line.split() for line in (host.root / "seen").read_text().splitlines()]
    before = [program for program, *names in seen if names == [f"{host.output}/*"]]
    assert before == ["readlink", "find", "cp", "sha256sum", "mv"]


@pytest.mark.parametrize("number", range(6))
def test_killed_anywhere_it_leaves_all_or_nothing(host: Host, number: int) -> None:
    """systemd uses what a generator has written, whatever becomes of the generator."""
    kill = f'echo >>"$ROOT/count"; [ "$(wc -l <"$ROOT/count")" -le {number} ] || kill -9 "$PPID" $$'
    # wc is found by the programs' own shells alone.
    kill = kill.replace("wc", str(shutil.which("wc")))
    assert host.generate(before_program=kill).returncode == -9
    visible = {path: text for path, text in host.entries().items() if not path.startswith(".")}
    assert visible == ({**FILES, **LINKS} if number == 5 else {})


def test_a_host_without_memory_nodes_is_the_one_it_was_made_for(host: Host) -> None:
    """A kernel without NUMA has no node/online; the manifest then says so."""
    host.set_online("node", None)
    assert "made for memory nodes 0 and this host has -" in host.generate().stderr


@pytest.mark.parametrize(
    ("what", "online", "why"),
    [
        ("cpu", "0", "it was made for CPUs 0-1 and this host has 0"),
        ("cpu", "0-3", "it was made for CPUs 0-1 and this host has 0-3"),
        ("node", "0-1", "it was made for memory nodes 0 and this host has 0-1"),
    ],
)
def test_on_another_host_no_job_starts_before_a_new_placement(host: Host, what: str, online: str, why: str) -> None:
    """What runs keeps its drop-in; what starts has the new placement made first, and else says why it does not."""
    host.set_online(what, online)
    done = host.generate()
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"torchpar-generator: no placement for this host: {why}\n"
    entries = host.entries()
    assert entries.keys() == FILES.keys() | LINKS.keys() | RECOMPILE
    assert {path: entries[path] for path in FILES} == FILES
    assert entries["torchpar-train@.service.d/90-recompile.conf"] == (
        f"# Made by torchpar-generator: no placement for this host: {why}\n"
        "[Unit]\nWants=torchpar-recompile.service\nAfter=torchpar-recompile.service\n\n"
        "[Service]\nCPUAffinity=\nNUMAPolicy=default\nNUMAMask=\nRestartSec=1min\nExecStartPre=\n"
        "ExecStartPre=:/bin/sh -c 'echo \"$1\" >&2; exit 78' sh "
        f'"no placement for this host: {why}; see: systemctl status torchpar-recompile, torchpar apply"\n'
    )


@pytest.mark.parametrize(
    "damage",
    [
        "echo x >>plan.json",
        "echo x >>units/torchpar-train@a.service.d/20-torchpar.conf",
        "rm units/torchpar-train@a.service.d/20-torchpar.conf",
        "rm conf/000",
        ": >sha256sums",
        "rm sha256sums",
        "sed -i 1d manifest",
        ": >manifest; sed -i /manifest/d sha256sums",
        "rm -r units/torchpar.target.wants",
        "ln -sf x units/torchpar.target.wants/torchpar-train@b.service",
        "rm links",
        "echo x >units/x.service",
        "touch 'units/a\nb'",
    ],
)
def test_of_a_damaged_generation_nothing_is_started(host: Host, damage: str) -> None:
    """Whatever is damaged; and what is left of the units is there for the jobs that run."""
    subprocess.run(["sh", "-c", damage], cwd=host.generation, check=True)
    done = host.generate()
    assert done.returncode == 0 and "is damaged" in done.stderr
    assert host.entries().keys() >= RECOMPILE
    assert host.entries()["torchpar-infer@b.service.d/20-torchpar.conf"] == "[Service]\nCPUAffinity=1\n"


@pytest.mark.parametrize("place", [".", "generations", "active/", "active/units", "active/sha256sums", "active/conf"])
@pytest.mark.parametrize("mode", ["g+w", "o+w"])
def test_of_what_others_can_change_nothing_is_copied(host: Host, place: str, mode: str) -> None:
    """It would run as root, with a plan and checksums that fit."""
    subprocess.run(["chmod", mode, host.root / "store" / place], check=True)
    done = host.generate()
    assert done.returncode == 0 and "others than root can change what decides what runs: " in done.stderr
    assert host.entries().keys() == RECOMPILE


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("rm -r store", "there is no generation in force in"),
        ("rm store/active", "there is no generation in force in"),
        ("ln -sfn generations/9 store/active", "there is no generation in force in"),
        ("rm -r store/active/units", "cannot be copied to"),
        ("rm -r store/active/units && touch store/active/units", "cannot be copied to"),
    ],
)
def test_without_a_generation_only_the_new_placement_is_asked_for(host: Host, damage: str, why: str) -> None:
    """The first boot of an image, a store on a file system that is not mounted yet, or a store that is lost."""
    subprocess.run(["sh", "-c", damage], cwd=host.root, check=True)
    done = host.generate()
    assert done.returncode == 0 and why in done.stderr
    assert host.entries().keys() == RECOMPILE


@pytest.mark.parametrize("output", ["missing", "a-file", "read-only"])
def test_it_never_fails(host: Host, output: str) -> None:
    """A generator's exit status helps nobody: what is wrong is said, and nothing is made elsewhere."""
    (host.root / "a-file").touch()
    # Not by its mode, which does not count for root.
    (host.root / "read-only").symlink_to("/proc/self")
    before = set(host.root.iterdir())
    done = host.generate(str(host.root / output))
    assert done.returncode == 0 and done.stderr
    assert set(host.root.iterdir()) - before == {host.root / "bin"}


def test_called_by_hand_without_arguments_it_says_what_it_takes() -> None:
    """And writes nothing anywhere."""
    done = subprocess.run(["/bin/sh", GENERATOR], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr.startswith("usage: ")

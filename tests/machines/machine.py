"""A booted throw-away Debian with real systemd, for tests.

    with Machine(Suite.TRIXIE) as machine:
        machine.run("systemctl", "start", "torchpar-train@demo")

What it is not: it runs on this host's kernel, so its control groups have the controllers that the host left over (none
where the host uses cgroup v1), its /proc/cpuinfo and its memory are the host's, and it shares the host's network.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from tests.machines.container import ENVIRONMENT, Container
from tests.machines.roots import TREE, Report, Root, Suite, base_root, cache, make_root

LOGS = TREE / "build" / "machine-logs"
# Seconds, of which a host that is busy with other things needs a tenth: only what hangs takes longer.
PATIENCE = 300.0

T = TypeVar("T")

_CPUS_ONLINE = "/sys/devices/system/cpu/online"

# Keep what apt downloaded, to have it the next time; try again what a network loses; and do not wait for a disk that is
# thrown away.
_APT_CONF = """\
APT::Keep-Downloaded-Packages "true";
Binary::apt::APT::Keep-Downloaded-Packages "true";
Acquire::Retries "3";
Acquire::Languages "none";
DPkg::Options { "--force-unsafe-io"; };
"""

# $1 the control group; then the command. A login shell of a real machine is below user.slice too.
_JOIN = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"'


class MachineError(Exception):
    """A machine did not boot, or did not do in time what it was asked to."""


class CommandError(AssertionError):
    """A command in the machine failed. The message holds the command and all that it printed."""

    def __init__(self, argv: Sequence[str], status: int | str, output: str, errors: str) -> None:
        self.argv = list(argv)
        self.status = status
        self.output = output
        self.errors = errors
        parts = [f"{shlex.join(argv)}: {status if isinstance(status, str) else f'exit status {status}'}"]
        parts += [f"-- {name} --\n{text.rstrip()}" for name, text in (("stdout", output), ("stderr", errors)) if text]
        super().__init__("\n".join(parts))


class Machine:
    """Boots when entered, and is gone without a trace when left. `name` is the start of its folder's and logs' name.

    `mounts` are folders of this host, by where the machine has them, for reading; `root` is what it boots, that of a
    fresh minimal server if none is given.
    """

    def __init__(
        self,
        suite: Suite,
        name: str = "machine",
        *,
        mounts: Mapping[str, Path] | None = None,
        root: Root | None = None,
        report: Report = print,
    ) -> None:
        self.suite = suite
        self.name = f"{suite.value}-{name}"
        self.leader = 0
        self._mounts = mounts or {}
        self._root = root or base_root(suite)
        self._report = report
        self._container: Container | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._online: str | None = None
        self._updated = False

    def __enter__(self) -> Machine:
        root = make_root(self._root, self._report)
        self._container = Container(root, self.name)
        try:
            self._container.open()
            self._prepare()
            self._boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nothing in it is worth an orderly stop. The end of its PID 1 is the end of all its processes.
        self._stop(signal.SIGKILL)
        if self._container:
            self._keep_packages()
            self._container.close()
            self._container = None

    # ---- commands and files ----

    def run(
        self,
        *argv: str,
        check: bool = True,
        input: str | None = None,
        timeout: float = PATIENCE,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root, in an environment that holds nothing of this host's. Raises CommandError.

        It is not part of any unit: what a unit does is for `systemctl start` and `systemd-run`.
        """
        process = self.start(*argv, stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL, env=env)
        try:
            output, errors = process.communicate(input, timeout=timeout)
        except BaseException as error:
            # The whole group: the command itself is a child of nsenter, and would hold our pipes open.
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandError(argv, f"still running after {timeout:g} s", output, errors) from None
            raise
        if check and process.returncode:
            raise CommandError(argv, process.returncode, output, errors)
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def sh(
        self, script: str, *arguments: str, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a script with `sh -eu`; the arguments are its $1, $2, ..."""
        return self.run("sh", "-euc", script, "sh", *arguments, check=check, timeout=timeout)

    def start(
        self,
        *argv: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command as `run` does, with pipes for what it prints, and leave it to the caller."""
        if not self.leader:
            raise MachineError(f"{self.name} is not running")
        return subprocess.Popen(
            ["sh", "-euc", _JOIN, "sh", self._join_group()]
            + ["nsenter", f"--target={self.leader}", "--all", "--root", "--wd", "--", *argv],
            text=True,
            errors="replace",
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # Of this folder the machine knows nothing, and sh would export it as PWD.
            cwd="/",
            env={**ENVIRONMENT, **(env or {})},
            start_new_session=True,
        )

    def follow(self, *argv: str, timeout: float = PATIENCE) -> Iterator[str]:
        """The lines that a command prints, as they come. Raises CommandError at the end if it failed.

        Whoever stops listening before the end stops the command.
        """
        process = self.start(*argv, stderr=subprocess.STDOUT)
        assert process.stdout
        late = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        lines: deque[str] = deque(maxlen=60)
        try:
            for line in process.stdout:
                lines.append(line)
                yield line.rstrip("\n")
            status: int | str = process.wait()
        finally:
            in_time = late.is_alive()
            late.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()
        if status:
            raise CommandError(argv, status if in_time else f"still running after {timeout:g} s", "".join(lines), "")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file, and the folders above it."""
        self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, input=text)

    def read(self, path: str) -> str:
        """The text of a file."""
        return self.run("cat", path).stdout

    def exists(self, path: str) -> bool:
        """Whether there is a file, a folder, or a link, also one that leads nowhere."""
        return not self.sh('[ -e "$1" ] || [ -L "$1" ]', path, check=False).returncode

    def push(self, local: Path, remote: str, mode: int = 0o644) -> None:
        """Copy a file of this host into the machine."""
        with local.open("rb") as file:
            process = self.start("install", "-D", "-m", f"{mode:o}", "/dev/stdin", remote, stdin=file)
            output, errors = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise CommandError(["push", str(local), remote], process.returncode, output, errors)

    # ---- packages ----

    def install(self, *packages: str, recommends: bool = True, each_line: Report = lambda line: None) -> str:
        """apt-get install, of names or of files in the machine; what apt printed, also given line by line."""
        if not self._updated:
            self.run("apt-get", "update", timeout=300)
            self._updated = True
        options = [] if recommends else ["--no-install-recommends"]
        lines = []
        for line in self.follow("apt-get", "install", "--yes", *options, *packages, timeout=900):
            lines.append(line)
            each_line(line)
        self._keep_packages()
        return "\n".join(lines)

    def install_deb(self, deb: Path, *, recommends: bool = True, each_line: Report = lambda line: None) -> str:
        """What a person does: copy the package there, `apt install ./torchpar.deb`."""
        # Not in /tmp, which is in memory, nor in /root, which apt's own user cannot read.
        self.push(deb, "/var/tmp/torchpar.deb")
        return self.install("/var/tmp/torchpar.deb", recommends=recommends, each_line=each_line)

    # ---- systemd ----

    def show(self, unit: str, name: str) -> str:
        """The value of a unit's property."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def journal(self, unit: str | None = None) -> str:
        """The journal of this boot, of all or of a unit without what torchpard repeats about that.

        `journalctl --unit` takes UNIT= of PID 1 alone; of a process that ends at once (a program that
        cannot be executed says so itself from systemd 254 on) journald often no longer sees the unit it was of.
        """
        # What a process said before it ended may be on its way.
        self.run("journalctl", "--sync", check=False)
        # The fields have the whole name, which systemctl does not ask for.
        if unit and not unit.endswith((".service", ".socket", ".target", ".timer", ".slice")):
            unit = f"{unit}.service"
        fields = ("_SYSTEMD_UNIT", "UNIT", "OBJECT_SYSTEMD_UNIT", "COREDUMP_UNIT")
        of_unit = " + ".join(f"{field}={unit}" for field in fields).split() if unit else []
        lines = self.run("journalctl", "--boot", "--no-pager", *of_unit).stdout.splitlines(keepends=True)
        repeated = re.compile(rf"\]: (no longer: )?{re.escape(unit)} ") if unit else None
        return "".join(line for line in lines if not (repeated and repeated.search(line)))

    def wait_until(self, condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
        """Ask until the answer is true, and return it. Raises MachineError with the end of the journal."""
        deadline = time.monotonic() + timeout
        while True:
            if answer := condition():
                return answer
            if time.monotonic() > deadline:
                tail = "\n".join(self.journal().splitlines()[-40:])
                raise MachineError(f"{self.name}: not within {timeout:g} s: {what}\n-- journal --\n{tail}")
            time.sleep(0.1)

    def reboot(self) -> None:
        """Stop the machine in order, and boot it again with the same disk."""
        self.poweroff()
        self._boot()

    def poweroff(self) -> None:
        """Stop the machine in order. Its disk is there until the machine is left."""
        # What logind or a power button asks of PID 1: poweroff.target (systemd(1), SIGRTMIN+4).
        self._stop(signal.SIGRTMIN + 4)

    # ---- another host than this one ----

    def pretend_cpus(self, online: str | None) -> None:
        """Let /sys/devices/system/cpu/online say this cpulist, now and at the next boots; None: the truth again.

        Only that file: the CPUs' own folders, /proc/cpuinfo and what processes are allowed to run on stay as they are.
        """
        if self._online is not None:
            self.run("umount", _CPUS_ONLINE)
        self._online = online
        if online is not None:
            self.write("/run/pretended-cpus", f"{online}\n")
            self.run("mount", "--bind", "/run/pretended-cpus", _CPUS_ONLINE)
        # With systemd 257 a service sees no mount that comes or goes once it runs.
        self.run("systemctl", "try-restart", "torchpard", check=False)

    @contextlib.contextmanager
    def full_disk(self, path: str) -> Iterator[None]:
        """Let the folder be on a disk without a free block: it holds what it held, and every write fails.

        Empty files and folders can still be made, as on a disk that keeps inodes apart. What is changed there meanwhile
        is lost.
        """
        self.sh(
            'mkdir -p "$1"; mount -t tmpfs -o size=16m,mode=755 full /mnt; cp -a "$1/." /mnt;'
            ' ! dd if=/dev/zero of=/mnt/.full bs=4k 2>/dev/null; mount --bind /mnt "$1"; umount /mnt',
            path,
        )
        try:
            yield
        finally:
            self.run("umount", "--lazy", path)

    # ---- logs ----

    def save_logs(self, name: str) -> Path:
        """Keep the journal, the state of the units and the console in build/machine-logs, and return the folder."""
        folder = LOGS / name
        folder.mkdir(parents=True, exist_ok=True)
        if self._console.exists():
            shutil.copy(self._console, folder / "console.txt")
        if self.leader:
            for file, argv in {
                "journal.txt": ["journalctl", "--no-pager", "--output=short-precise"],
                "status.txt": ["systemctl", "status", "--no-pager", "--full", "--all"],
                "failed.txt": ["systemctl", "list-units", "--failed", "--no-pager"],
            }.items():
                result = self.run(*argv, check=False)
                (folder / file).write_text(result.stdout + result.stderr, encoding="utf-8")
        return folder

    # ---- how it boots ----

    @property
    def _console(self) -> Path:
        assert self._container
        return self._container.folder / "console"

    @property
    def _archives(self) -> Path:
        """The downloaded packages of this release that all machines have had so far."""
        return cache() / "archives" / self.suite.value

    def _prepare(self) -> None:
        assert self._container
        conf = self._container.layer / "etc/apt/apt.conf.d/90test-machine"
        conf.parent.mkdir(parents=True, exist_ok=True)
        conf.write_text(_APT_CONF)
        self._archives.mkdir(parents=True, exist_ok=True)
        for deb in self._archives.glob("*.deb"):
            _link(deb, self._container.layer / "var/cache/apt/archives" / deb.name)

    def _keep_packages(self) -> None:
        assert self._container
        for deb in (self._container.layer / "var/cache/apt/archives").glob("*.deb"):
            _link(deb, self._archives / deb.name)

    def _boot(self) -> None:
        assert self._container
        folder = self._container.folder
        options = ["--boot", "--notify-ready=yes", "--resolv-conf=bind-host"]
        options += [f"--bind-ro={here}:{there}" for there, here in self._mounts.items()]
        if self._online is not None:
            (folder / "cpus-online").write_text(f"{self._online}\n")
            options.append(f"--bind-ro={folder / 'cpus-online'}:{_CPUS_ONLINE}")
        notify = folder / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.bind(str(notify))
            self._process = self._container.start(*options, console=self._console, notify=notify)
            try:
                self._await_ready(channel, self._process)
            except MachineError as error:
                logs = self.save_logs(f"{self._container.name}-boot")
                console = self._console.read_text(errors="replace")[-2000:]
                raise MachineError(f"{error}; see {logs}\n{console}") from None
        # READY=1 is sent when the start jobs are done; this waits for those that they started in turn. A failed unit is
        # for the test to find.
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def _await_ready(self, channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Read what nspawn sends, sd_notify(3): its PID 1, and that this says READY=1."""
        deadline = time.monotonic() + PATIENCE
        ended = os.pidfd_open(process.pid)
        try:
            while True:
                left = max(0, deadline - time.monotonic())
                readable, _, _ = select.select([channel.fileno(), ended], [], [], left)
                if not readable:
                    raise MachineError(f"{self.name} did not boot within {PATIENCE:g} s")
                if channel.fileno() not in readable:
                    raise MachineError(f"systemd-nspawn ended with status {process.wait()}")
                for line in channel.recv(8192).decode().splitlines():
                    key, _, value = line.partition("=")
                    if key == "X_NSPAWN_LEADER_PID":
                        self.leader = int(value)
                    elif line == "READY=1":
                        return
        finally:
            os.close(ended)

    def _join_group(self) -> str:
        """The control group, seen from this host, for commands that are not in a unit."""
        groups = Path(f"/proc/{self.leader}/cgroup").read_text().splitlines()
        own = next(line.removeprefix("0::") for line in groups if line.startswith("0::"))
        assert self._container
        group = self._container.hierarchy / own.lstrip("/").removesuffix("/init.scope") / "user.slice" / "tests.scope"
        group.mkdir(parents=True, exist_ok=True)
        return str(group)

    def _stop(self, how: int) -> None:
        """Send PID 1 a signal that ends it, and wait until all of the machine has ended."""
        if not self._process:
            return
        if self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, how)
        else:
            self._process.kill()
        try:
            self._process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            if self.leader and how != signal.SIGKILL:
                logs = self.save_logs(f"{self.name}-poweroff")
                self._stop(signal.SIGKILL)
                raise MachineError(f"{self.name} did not power off within {PATIENCE:g} s; see {logs}") from None
            self._process.kill()
            self._process.wait()
        self._process = None
        self.leader = 0


def _link(source: Path, target: Path) -> None:
    """Have the file there too, unless it is, at no cost where both are on one file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        try:
            os.link(source, target)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise
            shutil.copy2(source, target)

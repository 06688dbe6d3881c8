"""A throw-away copy of a cached root, and how systemd-nspawn runs in it.

What a container leaves behind is a folder, a mount and a control group. The mount is made in a mount namespace of its
own, so that it is gone when nspawn is; nspawn gets a signal when its parent dies; and a folder whose owner is gone is
removed by the next container that is made.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.machines.roots import cache, locked

# What a command in a container finds in its environment, and nothing of this host's.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    # systemctl and journalctl would start one where they see a terminal.
    "SYSTEMD_PAGER": "",
}

# $1 the folder, $2 the root below, or "" for a full copy; $3 the control group, or ""; then the command. The processes
# of a container must not be in the group of another one: both would have the same system.slice. nspawn keeps folders in
# /run that it does not remove where /run is on a disk.
_ENTER = """
folder=$1 lower=$2 group=$3; shift 3
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn
[ -z "$group" ] || echo $$ >"$group/cgroup.procs"
rm -rf "$folder/work"
mkdir "$folder/work"
[ -z "$lower" ] || mount -t overlay overlay \
    -o "volatile,lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" "$folder/tree"
exec "$@"
"""


class Container:
    """A writable copy of `root`: an overlay, or a full copy where the file system cannot have one on it.

    Entering it makes it (`open`), leaving it removes it (`close`); `start` runs systemd-nspawn in it, any number of
    times but one at a time.
    """

    def __init__(self, root: Path, label: str) -> None:
        self._root = root
        self._label = label
        self._lock = contextlib.ExitStack()
        self.folder = Path()
        self.name = ""
        self._lower = ""
        self._group: Path | None = None

    def __enter__(self) -> Container:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tree(self) -> Path:
        """Where the command of `start` finds the copy. An overlay is mounted there for that command alone."""
        return self.folder / "tree"

    @property
    def layer(self) -> Path:
        """Where a file can be put before `start`, to be in the copy."""
        return self.folder / "upper" if self._lower else self.tree

    @property
    def hierarchy(self) -> Path:
        """Where this host has cgroup v2."""
        return _unified_hierarchy()

    def open(self) -> None:
        """Make the copy."""
        containers = cache() / "machines"
        containers.mkdir(parents=True, exist_ok=True)
        # Held so that nobody takes the new folder, not locked yet, for an abandoned one.
        with locked(cache() / "machines.lock"):
            _remove_abandoned(containers)
            # Not mkdtemp: its names may hold or end in '_', which the name of a machine may not.
            self.folder = containers / f"{self._label}-{secrets.token_hex(4)}"
            self.folder.mkdir(mode=0o700)
            self._lock.enter_context(locked(self.folder / "lock"))
        self.name = self.folder.name
        for name in ("upper", "work", "tree"):
            (self.folder / name).mkdir()
        # The folder is root's alone; / of the copy is not.
        (self.folder / "upper").chmod(0o755)
        self._lower = str(self._root)
        if subprocess.run(self._enter("true"), stderr=subprocess.DEVNULL).returncode:
            self._lower = ""
            self.tree.rmdir()
            subprocess.run(["cp", "--reflink=auto", "-a", str(self._root), str(self.tree)], check=True)

    def start(
        self, *options: str, console: Path, notify: Path | None = None, command: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start systemd-nspawn with these further options, and then the command. What it prints goes to `console`."""
        self._make_group()
        argv = [
            "systemd-nspawn",
            "--quiet",
            f"--directory={self.tree}",
            f"--machine={self.name}",
            "--register=no",
            # Without systemd on this host there is nobody to ask for a scope unit.
            *([] if _has_systemd() else ["--keep-unit"]),
            "--console=pipe",
            "--settings=no",
            "--link-journal=no",
            "--timezone=off",
            *options,
            *command,
        ]
        environment = {**ENVIRONMENT, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        if notify:
            environment["NOTIFY_SOCKET"] = str(notify)
        with console.open("ab") as output:
            return subprocess.Popen(
                self._enter(*argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C is for the tests, which then stop the machine in order.
                start_new_session=True,
            )

    def close(self) -> None:
        """Remove the copy, which nothing may use any more."""
        self._remove_group()
        if self.folder.name:
            _remove(self.folder)
        self._lock.close()

    def _enter(self, *argv: str) -> list[str]:
        return [
            *("setpriv", "--pdeathsig=TERM"),
            *("unshare", "--mount", "--propagation=slave"),
            *("sh", "-euc", _ENTER, "sh", str(self.folder), self._lower, str(self._group or "")),
            *argv,
        ]

    def _make_group(self) -> None:
        if _has_systemd() or self._group:
            return
        self._group = _unified_hierarchy() / f"torchpar-{self.name}"
        self._group.mkdir()

    def _remove_group(self) -> None:
        if not self._group:
            return
        _wait_until_empty(self._group)
        # nspawn makes the same groups in systemd's own v1 hierarchy, where there is one.
        for hierarchy in {self._group.parent, Path("/sys/fs/cgroup/systemd")}:
            for folder, _, _ in os.walk(hierarchy / self._group.name, topdown=False):
                os.rmdir(folder)
        self._group = None


def _has_systemd() -> bool:
    """Whether systemd is this host's PID 1: sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def _unified_hierarchy() -> Path:
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    raise RuntimeError("no cgroup2 is mounted on this host: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")


def _wait_until_empty(group: Path) -> None:
    """Wait until the last process of a control group is reaped, for at most 10 s."""
    with (group / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            if not poll.poll(10_000):
                raise RuntimeError(f"processes are left in {group}")
            events.seek(0)


def _remove_abandoned(containers: Path) -> None:
    for folder in containers.iterdir():
        # In use by somebody, or just being removed.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), locked(folder / "lock", wait=False):
            _remove(folder)


def _remove(folder: Path) -> None:
    # Not rmtree: what runs in a container may leave names, modes and depths that it stumbles over.
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)


def missing_here() -> str:
    """What is missing on this host to run containers, for a person; "" when nothing is."""
    if os.geteuid() != 0:
        return "test machines need root: sudo"
    missing = [name for name in ("mmdebstrap", "systemd-nspawn") if not shutil.which(name)]
    return f"test machines need {' and '.join(missing)}: apt install mmdebstrap systemd-container" if missing else ""

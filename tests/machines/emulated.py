"""An emulated machine with NUMA nodes, Debian's own kernel and the cpuset controller, which containers do not have.

QEMU's own emulation (TCG): slow, but everywhere the same. A scenario, a Python script, runs in the machine when it has
booted; what it prints comes back on a serial line. Each boot may have other nodes; the disk stays.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.machines.roots import Report, Suite, make_root, numa_root

NODE_MEMORY = 640  # MiB
CPUS_PER_NODE = 2
BOOT_SECONDS = 1800
_MOST_PANICS = 3

# Runs last of all, says what it has to say on the second serial line, and ends the machine.
_UNIT = """\
[Unit]
Description=the scenario of a test
After=multi-user.target

[Service]
ExecStart=/usr/bin/python3 /srv/scenario.py
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
ExecStopPost=/usr/bin/systemctl --no-block start poweroff.target

[Install]
WantedBy=multi-user.target
"""

# What belongs to Slurm is started by a scenario that has it; podman needs no service.
_INSTALL = """
dpkg --install /var/tmp/torchpar.deb
systemctl disable munge slurmctld slurmd
systemctl disable podman podman.socket podman-auto-update podman-auto-update.timer podman-restart
systemctl enable scenario.service
"""

# Every instruction counts: an emulated CPU is some twenty times slower. What udev would find is not of interest.
_MASKED = (
    *("getty@tty1", "serial-getty@ttyS0", "ldconfig", "e2scrub_reap", "systemd-binfmt", "systemd-logind"),
    *("systemd-journal-catalog-update", "systemd-random-seed", "systemd-udev-trigger", "systemd-udevd"),
    *(f"modprobe@{module}" for module in ("configfs", "dm_mod", "drm", "efi_pstore", "fuse", "loop")),
)
# Debian's kernels have NVMe and ext4 built in, so no initramfs is needed. A panic ends the emulator (-no-reboot).
_KERNEL_COMMAND_LINE = " ".join(
    [
        "root=/dev/nvme0n1 rw console=ttyS0 quiet panic=-1 mitigations=off audit=0 apparmor=0 systemd.getty_auto=no",
        *(f"systemd.mask={name}.service" for name in _MASKED),
    ]
)


class EmulatedMachine:
    """A disk with the package and a scenario on it; `boot` runs it once. Gone when left."""

    def __init__(self, suite: Suite, deb: Path, files: dict[str, str], *, report: Report = print) -> None:
        self._suite = suite
        self._report = report
        self._folder = Path(tempfile.mkdtemp(prefix="torchpar-emulated-", dir="/var/tmp"))
        self._disk = self._folder / "disk"
        root = self._folder / "root"
        subprocess.run(["cp", "-a", "--reflink=auto", make_root(numa_root(suite), report), root], check=True)
        # A link in the root's own /, which Debian's kernel packages keep.
        shutil.copy(root / (root / "vmlinuz").readlink(), self._folder / "vmlinuz")
        shutil.copy(deb, root / "var/tmp/torchpar.deb")
        for path, text in {**files, "etc/systemd/system/scenario.service": _UNIT, "etc/fstab": ""}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        done = subprocess.run(
            ["chroot", root, "sh", "-euc", _INSTALL],
            capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        subprocess.run(["truncate", "--size=3G", self._disk], check=True)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, self._disk], check=True)
        shutil.rmtree(root)

    def __enter__(self) -> EmulatedMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder)

    def boot(self, nodes: int) -> str:
        """Boot with so many nodes, let the scenario run to its end, and return what it printed."""
        self._report(f"emulating {self._suite.release} and its NUMA nodes ({nodes}): about a minute")
        printed, console = self._folder / "printed", self._folder / "console"
        argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-nodefaults"]
        argv += ["-display", "none", "-no-reboot", "-smp", str(nodes * CPUS_PER_NODE), "-m", str(nodes * NODE_MEMORY)]
        for node in range(nodes):
            cpus = f"{node * CPUS_PER_NODE}-{(node + 1) * CPUS_PER_NODE - 1}"
            argv += ["-object", f"memory-backend-ram,id=m{node},size={NODE_MEMORY}M"]
            argv += ["-numa", f"node,nodeid={node},cpus={cpus},memdev=m{node}"]
        argv += ["-drive", f"file={self._disk},if=none,id=disk,format=raw,cache=unsafe"]
        argv += ["-device", "nvme,drive=disk,serial=disk"]
        argv += ["-kernel", str(self._folder / "vmlinuz"), "-append", _KERNEL_COMMAND_LINE]
        argv += ["-serial", f"file:{console}", "-serial", f"file:{printed}"]
        for _ in range(_MOST_PANICS):
            try:
                subprocess.run(argv, check=True, timeout=BOOT_SECONDS, stdin=subprocess.DEVNULL)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"the machine did not end in {BOOT_SECONDS} s\n{_end(console)}") from None
            if "Kernel panic" not in (said := _end(console)):
                return printed.read_text(errors="replace").replace("\r\n", "\n")
            # Before it has started anything it has nothing of ours: the emulator runs the code that the kernel changes.
            assert not printed.read_bytes(), said
            self._report(f"the kernel of {self._suite.release} did not survive its emulator; once more")
        raise AssertionError(f"{_MOST_PANICS} panics before anything was started\n{said}")


def _end(console: Path) -> str:
    """What the kernel has said last."""
    return "\n".join(console.read_text(errors="replace").splitlines()[-60:])

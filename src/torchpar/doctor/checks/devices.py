"""Checks accelerators and RDMA devices: that they are there for services, and ready."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchpar.doctor.check import check
from torchpar.doctor.conditions import GPUS_IN_FORCE, NVIDIA, RDMA, SERVICES
from torchpar.doctor.finding import Finding, fail, note, unknown, warn
from torchpar.doctor.host import Host

_NO = ("no", "false", "0", "off", "n", "f")
# That NVIDIA's documentation calls a fault of a program, not of the device.
_OF_PROGRAMS = ("13", "31", "43", "45", "68")


@check(
    "gpu.nodes",
    passed="the device files of the GPUs are there",
    where=NVIDIA,
    source="nvidia-modprobe(1): a process without rights cannot make them",
)
def gpu_nodes(host: Host) -> Iterator[Finding]:
    """Finds NVIDIA's device files missing: the driver makes them only when root uses it."""
    missing = [path for path in ("dev/nvidiactl", "dev/nvidia-uvm") if not host.tree.exists(path)]
    if missing:
        yield fail(
            "services find no GPU: their device files are not there",
            "there is no /" + ", no /".join(missing),
            "",
            "nvidia-modprobe -u -c=0",
        )


@check(
    "gpu.driver",
    passed="every NVIDIA GPU has a driver that can compute",
    where=SERVICES,
    source="nouveau has no CUDA; the NVIDIA driver's README",
)
def gpu_driver(host: Host) -> Iterator[Finding]:
    """Finds boards for computing that no driver for computing has."""
    for gpu in host.facts.gpus:
        # 0302: a 3D controller, which has no display to drive.
        compute = gpu.vendor == "0x10de" and (gpu.class_code or "").startswith("0x0302") and not gpu.excluded
        if compute and gpu.driver_stated and gpu.driver in (None, "nouveau"):
            yield warn(
                f"the GPU {gpu.pci} cannot be used: {gpu.driver or 'no driver'} has it",
                f"/sys/bus/pci/devices/{gpu.pci}/driver",
                "install the driver (non-free): apt-get install --yes nvidia-driver; then restart the host",
            )


@check(
    "gpu.persist",
    passed="the driver stays initialised between jobs",
    where=NVIDIA,
    source="NVIDIA's documentation on driver persistence",
)
def gpu_persist(host: Host) -> Iterator[Finding]:
    """Finds no persistence daemon: each first use of an idle GPU then takes seconds, and loses its settings."""
    if not host.tree.exists("run/nvidia-persistenced/socket"):
        yield note(
            "each start on an idle GPU initialises it anew, which takes seconds",
            "there is no /run/nvidia-persistenced/socket",
            "apt-get install --yes nvidia-persistenced",
        )


@check(
    "gpu.xid",
    passed="NVIDIA's driver has reported no error of a GPU within an hour",
    where=NVIDIA,
    source="NVIDIA's documentation of Xid errors; deepops: check_xid_errors",
)
def gpu_xid(host: Host) -> Iterator[Finding]:
    """Finds Xid errors in the kernel's log."""
    lines = host.doors.kernel_log("NVRM: Xid")
    if lines is None:
        yield unknown("the kernel's log cannot be read")
        return
    for line in lines:
        match = re.search(r"Xid \(PCI:([0-9a-f:.]+)\): (\d+)", line)
        if match and match[2] not in _OF_PROGRAMS:
            yield fail(
                f"the GPU {match[1]} has reported error {match[2]}",
                line,
                "look the number up in NVIDIA's list of Xid errors; see: nvidia-smi -q -d ECC,PAGE_RETIREMENT",
            )
            return


@check(
    "gpu.hidden",
    passed="services that have accelerators can open them",
    where=GPUS_IN_FORCE,
    source="systemd.exec(5): PrivateDevices= leaves only pseudo devices",
)
def gpu_hidden(host: Host) -> Iterator[Finding]:
    """Finds PrivateDevices= in a service with accelerators."""
    for service in host.services:
        if service.record and service.record.gpus and (service.directive("PrivateDevices") or "no").lower() not in _NO:
            yield fail(
                f"{service.title} has accelerators and cannot see their device files",
                "Service.PrivateDevices=yes",
                f"take Service.PrivateDevices= out of {service.section}, then: torchpar apply",
            )


@check(
    "rdma.closed",
    passed="RDMA devices are open to services",
    where=RDMA,
    source="rdma-core: rdma_cm and uverbs have mode 0666 by its udev rules; torchpar.conf(5)",
)
def rdma_closed(host: Host) -> Iterator[Finding]:
    """Finds device files of RDMA missing, or closed to other users than root."""
    verbs = [name for name in host.tree.names("dev/infiniband") if name.startswith("uverbs")]
    if not verbs:
        yield fail(
            "there is an RDMA device, and no file to use it by: NCCL falls back to TCP",
            "there is no /dev/infiniband/uverbs0",
            "",
            "apt-get install --yes rdma-core && modprobe ib_uverbs",
        )
    for name in (*verbs, "rdma_cm"):
        mode = host.tree.mode(f"dev/infiniband/{name}")
        if mode is not None and mode & 0o006 != 0o006:
            yield fail(
                f"only root, or a group, may use the RDMA device {name}: NCCL falls back to TCP",
                f"/dev/infiniband/{name} has mode {mode:04o}",
                "with rdma-core's udev rules it has 0666: apt-get install --yes rdma-core, then: udevadm trigger",
            )
            return

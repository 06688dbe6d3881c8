"""Reads what NVIDIA's driver shows of its GPUs below /proc: UUIDs, device minors, and MIG's instances.

Sources: "Using the /proc File System Interface" in the driver's README; "Device Nodes and Capabilities" in NVIDIA's MIG
User Guide. The driver asks the GPU for its UUID when it is first used, and shows question marks until then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchpar.host.sysfs import Tree

_DRIVER = "proc/driver/nvidia"


@dataclass(frozen=True)
class NvidiaGpu:
    """One GPU as the driver knows it. `mig` are its compute instances as "GI/CI"; `excluded`: the driver leaves it."""

    uuid: str | None = None
    mig: tuple[str, ...] = ()
    excluded: bool = False


def read_nvidia_gpu(tree: Tree, address: str) -> NvidiaGpu:
    """Reads the GPU at a PCI address; nothing is known of it where the driver is not loaded."""
    text = tree.text(f"{_DRIVER}/gpus/{address}/information") or ""
    values = dict(re.findall(r"^([^:\n]+):[ \t]*(.*?)[ \t]*$", text, re.MULTILINE))
    uuid = values.get("GPU UUID", "")
    minor = values.get("Device Minor", "")
    return NvidiaGpu(
        uuid if re.fullmatch(r"GPU-[0-9a-f]+(-[0-9a-f]+)*", uuid) else None,
        _mig_instances(tree, int(minor)) if minor.isascii() and minor.isdigit() and len(minor) < 6 else (),
        values.get("GPU Excluded", values.get("GPU Blacklisted")) == "Yes",
    )


def _mig_instances(tree: Tree, minor: int) -> tuple[str, ...]:
    """Lists compute instances: gpu0/mig/gi1/ci0 is number 0 of GPU instance 1 of the GPU with /dev/nvidia0."""
    mig = f"{_DRIVER}/capabilities/gpu{minor}/mig"
    return tuple(
        f"{gpu_instance}/{compute_instance}"
        for gpu_instance in tree.numbered(mig, "gi")
        for compute_instance in tree.numbered(f"{mig}/gi{gpu_instance}", "ci")
    )

"""PCI devices that matter for placement: displays and accelerators, network and InfiniBand.

Sources: Documentation/ABI/testing/sysfs-bus-pci; the class codes are those of the PCI Code and ID Assignment
Specification (03 display, 12 processing accelerator, 0b40 co-processor, 02 network, 0c06 InfiniBand).
"""

from __future__ import annotations

import dataclasses

from torchpar.contract.errors import printable
from torchpar.facts.topology import PciDevice
from torchpar.host.nvidia import read_nvidia_gpu
from torchpar.host.sysfs import Tree

_DEVICES = "sys/bus/pci/devices"
_GPU_CLASSES = ("0x03", "0x12", "0x0b40")
_NIC_CLASSES = ("0x02", "0x0c06")


def read_pci_devices(tree: Tree) -> tuple[tuple[PciDevice, ...], tuple[PciDevice, ...]]:
    """Reads the display and accelerator devices, and the network and InfiniBand devices, each by address."""
    gpus, nics = [], []
    addresses = tree.names(_DEVICES)
    # Every machine has a device with a driver, if only a bridge; a capture may have left out all of these links.
    driver_stated = any(tree.link_name(f"{_DEVICES}/{address}/driver") for address in addresses)
    for address in addresses:
        class_code = tree.word(f"{_DEVICES}/{address}/class") or ""
        if class_code.startswith(_GPU_CLASSES):
            gpu = _read_device(tree, address, class_code)
            gpus.append(dataclasses.replace(gpu, driver_stated=driver_stated, integrated=_is_integrated(tree, gpu)))
        elif class_code.startswith(_NIC_CLASSES):
            nics.append(_read_device(tree, address, class_code))
    return tuple(gpus), tuple(nics)


def _is_integrated(tree: Tree, gpu: PciDevice) -> bool:
    """Says whether a GPU is a part of the processor: no file says so, but its address does.

    Intel's is device 2 on the bus of the processor itself, its boards are behind a bridge. AMD's is behind a bridge
    too, and one slot with the encryption controller of its processor (class 1080), which no board has; boards for
    computing, MI300A among them, are no displays.
    """
    if gpu.vendor == "0x8086":
        return gpu.pci.startswith("0000:00:02.")
    if gpu.vendor == "0x1002" and (gpu.class_code or "").startswith("0x03"):
        slot = gpu.pci.rpartition(".")[0]
        return any((tree.text(f"{_DEVICES}/{slot}.{n}/class") or "").startswith("0x1080") for n in range(1, 8))
    return False


def _read_device(tree: Tree, address: str, class_code: str) -> PciDevice:
    path = f"{_DEVICES}/{address}"
    nvidia = read_nvidia_gpu(tree, address)
    return PciDevice(
        pci=address,
        vendor=tree.word(f"{path}/vendor"),
        device=tree.word(f"{path}/device"),
        class_code=class_code,
        numa_node=tree.number(f"{path}/numa_node"),
        numa_node_stated=tree.text(f"{path}/numa_node") is not None,
        local_cpus=tree.cpulist(f"{path}/local_cpulist") or tree.cpumask(f"{path}/local_cpus"),
        driver=tree.link_name(f"{path}/driver"),
        drm=_names(tree, f"{path}/drm"),
        netdevs=_names(tree, f"{path}/net"),
        infiniband=_names(tree, f"{path}/infiniband"),
        uuid=nvidia.uuid,
        mig_instances=nvidia.mig,
        excluded=nvidia.excluded,
    )


def _names(tree: Tree, path: str) -> tuple[str, ...]:
    """Lists the names of network cards: any text without a slash or a blank."""
    return tuple(printable(name) for name in tree.names(path))

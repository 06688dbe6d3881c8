"""Accelerators as NVIDIA's driver shows them: UUIDs, MIG instances, and what CUDA is told to see."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.unit.host.test_facts import MACHINE, write
from tests.unit.hosts import make_gpu, make_host
from tests.unit.placement.test_staying import apply
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.facts.topology import Distances, HostFacts, NumaNode, facts_json, parse_facts
from torchpar.host.facts import read_facts
from torchpar.plan.plan import ServicePlan

UUID = "GPU-5c8c2a1f-0d3e-4b7a-9f60-1e2d3c4b5a6{}"

INFORMATION = """\
Model: \t\t NVIDIA A100-SXM4-40GB
IRQ:   \t\t 180
GPU UUID: \t {uuid}
Video BIOS: \t 92.00.45.00.03
Bus Type: \t PCIe
DMA Size: \t 47 bits
DMA Mask: \t 0x7fffffffffff
Bus Location: \t {address}
Device Minor: \t {minor}
GPU Firmware: \t 535.129.03
GPU Excluded:\t {excluded}
"""
ACCESS = "DeviceFileMinor: {}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"


def gpu_files(number: int, *, minor: int, uuid: str, excluded: str = "No", mig: tuple[str, ...] = ()) -> dict[str, str]:
    """What sysfs and the driver show of the board at bus 0x10 + number; `mig` are "GI/CI"."""
    address = f"0000:{0x10 + number:02x}:00.0"
    device, driver = f"sys/bus/pci/devices/{address}", "proc/driver/nvidia"
    files = {
        f"{device}/class": "0x030200\n",
        f"{device}/vendor": "0x10de\n",
        f"{device}/device": "0x20b0\n",
        f"{device}/numa_node": "0\n",
        f"{driver}/gpus/{address}/information": INFORMATION.format(
            uuid=uuid, address=address, minor=minor, excluded=excluded
        ),
    }
    for instance in mig:
        gpu_instance, compute_instance = instance.split("/")
        folder = f"{driver}/capabilities/gpu{minor}/mig/gi{gpu_instance}"
        files[f"{folder}/access"] = ACCESS.format(3)
        files[f"{folder}/ci{compute_instance}/access"] = ACCESS.format(4)
    return files


def read(root: Path, *gpus: dict[str, str]) -> HostFacts:
    """A machine with these boards, and without those of the other tests."""
    files = {path: text for path, text in MACHINE.items() if "pci" not in path and "nvidia" not in path}
    for gpu in gpus:
        files |= gpu
    write(root, {path: text.encode() for path, text in files.items()})
    return read_facts(root)


def visible(service: ServicePlan) -> str:
    """What CUDA is told to see."""
    assert service.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    return service.environment["CUDA_VISIBLE_DEVICES"]


def test_the_driver_shows_uuids_and_mig_instances(tmp_path: Path) -> None:
    """The number of a GPU in capabilities/ is its device minor, not its place on the bus."""
    facts = read(
        tmp_path,
        gpu_files(0, minor=1, uuid=UUID.format(0)),
        gpu_files(1, minor=0, uuid=UUID.format(1), mig=("1/0", "2/0", "2/1", "13/0")),
    )
    assert [gpu.name for gpu in facts.accelerators()] == [
        "0000:10:00.0",
        *(f"MIG-{UUID.format(1)}/{mig}" for mig in ("1/0", "2/0", "2/1", "13/0")),
    ]
    assert parse_facts(facts_json(facts)) == facts


def test_what_the_driver_excludes_or_a_virtual_machine_has_is_no_accelerator(tmp_path: Path) -> None:
    """CUDA neither shows nor counts it."""
    for address, driver in (("0000:10:00.0", "nvidia"), ("0000:11:00.0", "vfio-pci"), ("0000:12:00.0", "nvidia")):
        device = tmp_path / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    facts = read(
        tmp_path,
        gpu_files(0, minor=0, uuid=UUID.format(0), excluded="Yes"),
        gpu_files(1, minor=1, uuid=UUID.format(1)),
        gpu_files(2, minor=2, uuid=UUID.format(2)),
    )
    assert [gpu.pci for gpu in facts.accelerators()] == ["0000:12:00.0"]
    with pytest.raises(PlacementError, match="GPUs=0000:11:00.0: PyTorch cannot use it"):
        apply("a GPUs=0000:11:00.0", facts)


def test_the_visible_list_is_all_uuids_or_all_numbers(tmp_path: Path) -> None:
    """The driver shows question marks for a GPU that nobody has used yet."""
    known = gpu_files(0, minor=0, uuid=UUID.format(0)), gpu_files(1, minor=1, uuid=UUID.format(1))
    facts = read(tmp_path / "known", *known)
    assert visible(apply("a", facts)[0].services[0]) == f"{UUID.format(0)},{UUID.format(1)}"
    facts = read(tmp_path / "unknown", known[0], gpu_files(1, minor=1, uuid="GPU-????????-????-????-????-????????????"))
    assert visible(apply("a", facts)[0].services[0]) == "0,1"
    assert visible(apply("a GPUs=0000:11:00.0", facts)[0].services[0]) == "1"
    assert visible(apply("a GPUs=none", facts)[0].services[0]) == ""


MIG = dataclasses.replace(
    make_host(),
    gpus=(
        dataclasses.replace(make_gpu(0, 0), uuid=UUID.format(0)),
        dataclasses.replace(make_gpu(1, 0), uuid=UUID.format(1), mig_instances=("1/0", "2/0")),
    ),
)
INSTANCE = f"MIG-{UUID.format(1)}/1/0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (UUID.format(0), UUID.format(0)),
        (UUID.format(0).upper(), UUID.format(0)),
        ("0000:10:00.0", UUID.format(0)),
        ("00000000:10:00.0", UUID.format(0)),
        (INSTANCE, INSTANCE),
    ],
)
def test_gpus_are_named_by_address_uuid_or_mig_instance(name: str, expected: str) -> None:
    """As nvidia-smi prints them, too."""
    assert visible(apply(f"a GPUs={name}", MIG)[0].services[0]) == expected


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("0000:11:00.0", f"it is in MIG instances, of which one can be named: {INSTANCE}, "),
        (UUID.format(1), f"it is in MIG instances, of which one can be named: {INSTANCE}, "),
        (f"MIG-{UUID.format(1)}/7/0", f"no such accelerator on this host; it has: 0000:10:00.0, {INSTANCE}, "),
        ("MIG-5c8c2a1f-0d3e-4b7a-9f60-1e2d3c4b5a60", "no such accelerator on this host"),
    ],
)
def test_what_cannot_be_named_is_refused_with_what_can(name: str, why: str) -> None:
    """A GPU in instances is not there as a whole."""
    with pytest.raises(PlacementError) as error:
        apply(f"a GPUs={name}", MIG)
    assert f"GPUs={name}: {why}" in str(error.value)


def test_two_services_cannot_name_one_instance() -> None:
    """Instances are shared out like whole GPUs."""
    with pytest.raises(PlacementError, match="another enabled service holds it"):
        apply(f"a GPUs={INSTANCE}\nb GPUs={INSTANCE}", MIG)


def test_instances_are_shared_out_one_for_each_service() -> None:
    """CUDA shows a process no more than one; who has a whole GPU has no use for an instance besides."""
    host = dataclasses.replace(MIG, gpus=MIG.gpus[1:])
    plan, host = apply("b", host)
    assert visible(plan.services[0]) == INSTANCE
    plan, _ = apply("a\nb", host)
    assert [visible(service) for service in plan.services] == [f"MIG-{UUID.format(1)}/2/0", INSTANCE]
    assert visible(apply("a", MIG)[0].services[0]) == UUID.format(0)
    plan, _ = apply("a\nb Enabled=no", MIG)
    assert [visible(service) for service in plan.services] == [UUID.format(0), INSTANCE]


def test_whole_gpus_are_given_out_before_instances() -> None:
    """Two of one node are no better than one of each, if they are parts of a GPU."""
    whole = [dataclasses.replace(make_gpu(i, i), uuid=f"GPU-{i}") for i in range(3)]
    host = dataclasses.replace(
        make_host(packages=3), gpus=(dataclasses.replace(whole[0], mig_instances=("1/0", "2/0")), *whole[1:])
    )
    assert visible(apply("a GPUs=2", host)[0].services[0]) == "GPU-1,GPU-2"


def test_who_asks_for_several_instances_is_warned() -> None:
    """It gets them, and is told what CUDA makes of that."""
    (warning,) = (w for w in apply("a GPUs=3", MIG)[0].services[0].warnings if "MIG" in w)
    assert warning.startswith("/c:6: [Train a] has 3 accelerators, MIG instances among them; CUDA shows a process one")


def test_who_gets_no_accelerator_or_one_of_another_is_told() -> None:
    """A job that was to train on a GPU must not train on CPUs, or beside another on one GPU, without a word."""
    host = make_host(gpu_nodes=(0,))

    def told(text: str) -> list[str]:
        return [warning for warning in apply(text, host)[0].warnings if "accelerator" in warning]

    assert told("a") == told("a\nb GPUs=none") == told("a GPUs=none\nb Enabled=no GPUs=1") == []
    nothing = "no accelerator is left for it, enabled services have all of the host's 1; GPUs=none says that this is"
    assert told("a\nb") == [f"/c:6: [Train b]: {nothing} meant"]
    assert told("a\nb Enabled=no") == [f"/c:6: [Train b]: {nothing} meant"]
    (reason,) = (r for r in apply("a\nb", host)[0].services[1].reasons if r.key == "GPUs")
    assert (reason.value, reason.why) == ("none", "enabled services have all of the host's 1")
    for request in ("1", "0000:10:00.0"):
        (warning,) = told(f"a\nb Enabled=no GPUs={request}")
        assert warning.endswith("accelerator 0000:10:00.0 is held by [Train a], which is enabled; both will be slower")


def test_accelerators_of_one_service_are_on_one_node_where_that_can_be() -> None:
    """Two of node 1 rather than one of each; and those of the node whose CPUs it names."""
    nodes = (0, 1, 1, 0, 0)
    host = dataclasses.replace(make_host(packages=2), gpus=tuple(make_gpu(i, node) for i, node in enumerate(nodes)))
    assert [gpu.numa_node for gpu in apply("a GPUs=2", host)[0].services[0].gpus] == [1, 1]
    assert [gpu.numa_node for gpu in apply("a GPUs=2 CPUs=node:0", host)[0].services[0].gpus] == [0, 0]


def test_intel_accelerators_are_counted_in_the_order_of_the_bus_too() -> None:
    """Level Zero's own order is another."""
    gpu = dataclasses.replace(make_gpu(0, 0), vendor="0x8086", class_code="0x038000", driver="xe")
    environment = apply("a", dataclasses.replace(make_host(), gpus=(gpu,)))[0].services[0].environment
    assert environment["ZE_AFFINITY_MASK"] == "0" and environment["ZE_ENABLE_PCI_ID_DEVICE_ORDER"] == "1"


def test_intel_accelerators_are_hidden_from_who_has_none_of_them() -> None:
    """An empty mask hides nothing from Level Zero, unlike CUDA's and ROCm's."""
    intel = [dataclasses.replace(make_gpu(i, 0), vendor="0x8086", class_code="0x038000", driver="xe") for i in (0, 1)]
    host = dataclasses.replace(make_host(), gpus=tuple(intel))
    hidden = apply("a GPUs=none", host)[0].services[0].environment
    assert hidden["ONEAPI_DEVICE_SELECTOR"] == "opencl:cpu" and "ZE_AFFINITY_MASK" not in hidden
    shown = apply("a GPUs=0000:11:00.0", host)[0].services[0].environment
    assert shown["ZE_AFFINITY_MASK"] == "1" and "ONEAPI_DEVICE_SELECTOR" not in shown


@pytest.mark.parametrize(
    ("packages", "node", "local_cpus", "expected"),
    [
        (1, None, None, 0),
        (2, 1, None, 1),
        (2, None, None, None),
        (2, None, CpuSet(range(8)), None),
        (2, None, CpuSet(range(4, 8)), 1),
        (2, 2, None, 1),
        (2, 7, CpuSet(), None),
    ],
    ids=["one node", "known", "unknown", "all CPUs are local", "local CPUs", "a node without CPUs", "no such node"],
)
def test_a_gpu_is_near_the_cpus_that_the_kernel_names_in_any_way(
    packages: int, node: int | None, local_cpus: CpuSet | None, expected: int | None
) -> None:
    """Unknown stays unknown, save on a host with one node."""
    host = make_host(packages=packages)
    memory_only = NumaNode(packages, CpuSet(), 2**34)
    host = dataclasses.replace(
        host,
        numa_nodes=(*host.numa_nodes, memory_only),
        distances=Distances((0, 1, 2), ((10, 20, 30), (20, 10, 14), (30, 14, 10))) if packages == 2 else None,
        gpus=(dataclasses.replace(make_gpu(0, node), local_cpus=local_cpus),),
    )
    assert host.accelerators()[0].numa_node == expected


def display(
    root: Path, address: str, vendor: str, class_code: str, *, driver: str = "", beside: str = ""
) -> HostFacts:
    """A machine whose only board this is, beside a bridge with its driver; `beside` is the class of its slot's .2."""
    devices = "sys/bus/pci/devices"
    files = {f"{devices}/{address}/vendor": f"{vendor}\n", f"{devices}/{address}/class": f"{class_code}\n"}
    if beside:
        files[f"{devices}/{address[:-1]}2/class"] = f"{beside}\n"
    drivers = {"0000:00:01.0": "pcieport", address: driver}
    for name in filter(drivers.get, drivers):
        (root / devices / name).mkdir(parents=True)
        (root / devices / name / "driver").symlink_to(f"../../../../bus/pci/drivers/{drivers[name]}")
    return read(root, files)


@pytest.mark.parametrize(
    ("address", "vendor", "class_code", "driver", "beside", "auto", "named"),
    [
        ("0000:00:02.0", "0x8086", "0x030000", "i915", "", False, True),
        ("0000:00:02.0", "0x8086", "0x038000", "xe", "", False, True),
        ("0000:03:00.0", "0x8086", "0x030000", "xe", "", True, True),
        ("0000:0e:00.0", "0x1002", "0x030000", "amdgpu", "0x108000", False, True),
        ("0000:0e:00.0", "0x1002", "0x030000", "amdgpu", "0x0c0330", True, True),
        ("0000:0e:00.0", "0x1002", "0x120000", "amdgpu", "", True, True),
        ("0000:0e:00.0", "0x1002", "0x030000", "", "", False, False),
        ("0000:01:00.0", "0x10de", "0x030000", "nvidia", "", True, True),
        ("0000:01:00.0", "0x10de", "0x030000", "", "", False, False),
    ],
    ids=[
        "Intel's own", "Intel's own without an outlet", "Arc", "Ryzen's own", "Radeon with USB", "Instinct",
        "Radeon without driver", "GeForce", "GeForce without driver",
    ],
)  # fmt: skip
def test_a_gpu_for_the_display_makes_no_gpu_job_of_a_job_on_cpus(  # noqa: PLR0913 - a column of the table each
    address: str, vendor: str, class_code: str, driver: str, beside: str, auto: bool, named: bool, tmp_path: Path
) -> None:
    """One that is a part of the processor is used where it is named, and one without a driver not at all."""
    facts = display(tmp_path, address, vendor, class_code, driver=driver, beside=beside)
    (rank,) = apply("a", facts)[0].services[0].ranks
    assert [gpu.pci for gpu in rank.gpus] == ([address] if auto else [])
    assert (rank.threads, rank.loader_workers) == (2, 0)
    if named:
        assert apply(f"a GPUs={address}", facts)[0].services[0].ranks[0].gpus
    else:
        with pytest.raises(PlacementError, match="has no driver"):
            apply(f"a GPUs={address}", facts)


def test_a_capture_without_links_to_drivers_says_nothing_against_its_gpus(tmp_path: Path) -> None:
    """A driver that is not shown is not one that is not there."""
    facts = read(tmp_path, gpu_files(0, minor=0, uuid=UUID.format(0)))
    assert len(facts.accelerators()) == 1 and not facts.gpus[0].driver_stated


def test_match_counts_what_gpus_auto_gives(tmp_path: Path) -> None:
    """A file for hosts with GPUs is not for every desktop."""
    facts = display(tmp_path, "0000:00:02.0", "0x8086", "0x030000", driver="i915")
    conf = ConfFile("/c", "[Match]\nGPUs=>= 1\n[Train a]\nScript=/a.py\nRanks=gpu\n")
    assert not parse_config([conf], facts).services

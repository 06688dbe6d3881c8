"""For each check a host with the fault, and the same host without it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from tests.unit.doctor.made import ACTIVE, CONF, INFER, OTHER, ROOMY, TRAIN, Made, process, running
from tests.unit.hosts import make_gpu, make_host, make_hybrid_host
from torchpar.doctor.finding import Severity
from torchpar.facts.disk import Disk

WARN, FAIL, NOTE, UNKNOWN = Severity.WARN, Severity.FAIL, Severity.NOTE, Severity.UNKNOWN

LIB = "usr/lib/x86_64-linux-gnu"
ALTERNATIVES = "etc/alternatives"
LIBRARIES = "libblas.so.3 liblapack.so.3 libopenblas.so.0"
TORCH = {"usr/lib/python3/dist-packages/torch/version.py": ""}
V2 = "sys/fs/cgroup/cgroup.controllers"
RUNS = {TRAIN: ACTIVE}
RUNNING = {TRAIN: running(TRAIN, process())}
LOADING = {TRAIN: running(TRAIN, process(), process(200))}
# A loader worker has CPU 8 alone.
HYBRID, LOADS = make_hybrid_host(), CONF + "LoaderWorkers=1\n"
TWO_NODES = make_host(packages=2)
SEVERAL = CONF + "Nodes=2\nEndpoint=gpu1\n"
NAMED = SEVERAL + "Interface=eth0\n"
USER = CONF + "User=anna\n"
TWO = CONF + "CPUs=0-3\n[Train b]\nScript=/b.py\nCPUs=shared\n"
BOTH_SHARED = CONF + "CPUs=shared\n[Train b]\nScript=/b.py\nCPUs=shared\n"
INFERENCE = "[Infer i]\nModel=/m.pt\n"
GPU = make_host(packages=2, gpu_nodes=(0,))
TEXTFILES = {"var/lib/prometheus/node-exporter/torchpar.prom": ""}
IB = {"sys/class/infiniband/mlx5_0/node_type": "1: CA"}
FREQUENCY = {"sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "acpi-cpufreq"}
SOCKET = "torchpar-infer@i.socket"
HERE = CONF + "Nodes=2\nEndpoint=host\n"
INSTALLER = {"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 host\n"}
WHOLE_NAME, WHOLE_NAME_HERE = CONF + "Nodes=2\nEndpoint=host.example.org\n", {"host.example.org": ("127.0.1.1",)}
WITH_DOMAIN = {"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 host.example.org host\n"}
PORT_8000 = "  sl  local_address rem_address   st\n   0: 0100007F:1F40 00000000:0000 0A 0:0 0:0 0 0 0 1\n"
TORCHRUN = "[Host]\nReserveCores=0\n[Train a]\nModule=torch.distributed.run\n"
APT = "etc/apt/sources.list.d/torchpar.sources"
# All goes by ens3 but a network of 16 bits, which goes by eth0.
ROUTES = (
    "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    "ens3 00000000 010200C0 0003 0 0 100 00000000 0 0 0\n"
    "eth0 {} 00000000 0001 0 0 100 0000FFFF 0 0 0\n"
)


class Case(NamedTuple):
    """The check, its severity, a host with the fault and one without, and a part of what is said."""

    check: str
    severity: Severity
    fault: Made
    silence: Made
    says: str


def blas(blas: str, lapack: str, core: str, *, installed: tuple[str, ...] = ()) -> Made:
    """Debian's torch with these alternatives in force."""
    links, files = {}, dict(TORCH)
    for name, flavour in (("libblas.so.3", blas), ("liblapack.so.3", lapack), ("libopenblas.so.0", core)):
        links[f"{ALTERNATIVES}/{name}-x86_64-linux-gnu"] = f"/{LIB}/{flavour}/{name}"
        files[f"{LIB}/{flavour}/{name}"] = ""
    for flavour in installed:
        files[f"{LIB}/{flavour}/libblas.so.3"] = files[f"{LIB}/{flavour}/libopenblas.so.0"] = ""
    return Made(files=files, links=links)


OPENMP = "openblas-openmp"
FAST = blas(OPENMP, OPENMP, OPENMP)


def limits(name: str, soft: str) -> dict[str, str]:
    """A process whose limit is this."""
    return {"proc/100/limits": f"Limit   Soft Limit  Hard Limit  Units\n{name}   {soft}   unlimited   x\n"}


def shown(unit: str = TRAIN, **properties: str) -> dict[str, dict[str, str]]:
    """A unit that runs, with these properties."""
    return {unit: {**ACTIVE, **properties}}


def interfaces(*names: str) -> dict[str, str]:
    """These, which are up, and the loopback interface."""
    return {f"sys/class/net/{name}/flags": "0x1003" for name in ("lo", *names)}


def drop_in(text: str, name: str = "override.conf") -> Made:
    """A service with what torchpar renders, and a drop-in of another name."""
    ours = "/run/systemd/generator/torchpar-train@a.service.d/20-torchpar.conf"
    path = f"/etc/systemd/system/torchpar-train@a.service.d/{name}"
    rendered = "[Service]\nCPUAffinity=\nCPUAffinity=0-3\nBindPaths=/x\nEnvironment=OMP_NUM_THREADS=4\n"
    paths = " ".join(sorted((ours, path), key=lambda each: each.rpartition("/")[2]))
    return Made(files={ours[1:]: rendered, path[1:]: text}, show=shown(DropInPaths=paths))


CASES = [
    # ---- BLAS ----
    Case("blas.alternative", FAIL, blas("blas", "lapack", OPENMP), FAST, "apt-get install --yes libopenblas0-openmp"),
    Case(
        "blas.alternative",
        FAIL,
        blas("blas", "lapack", OPENMP, installed=(OPENMP,)),
        FAST,
        f"for name in {LIBRARIES}; do update-alternatives --set"
        f" $name-x86_64-linux-gnu /{LIB}/{OPENMP}/$name; done",
    ),
    Case("blas.alternative", WARN, blas(OPENMP, OPENMP, "openblas-pthread"), FAST, "not those that torch counts"),
    Case(
        "blas.alternative",
        WARN,
        blas("openblas-pthread", "openblas-pthread", "openblas-pthread"),
        FAST,
        f"apt-get install --yes libopenblas0-openmp && for name in {LIBRARIES}; do update-alternatives --set"
        f" $name-x86_64-linux-gnu /{LIB}/{OPENMP}/$name; done",
    ),
    Case(
        "blas.alternative",
        FAIL,
        blas("blas", "lapack", OPENMP, installed=("blis-openmp",)),
        FAST,
        f"for name in libblas.so.3; do update-alternatives --set $name-x86_64-linux-gnu /{LIB}/blis-openmp/$name; done",
    ),
    Case("blas.alternative", WARN, blas(OPENMP, OPENMP, "openblas-serial"), FAST, "openblas-serial"),
    Case(
        "blas.flavours",
        FAIL,
        blas(OPENMP, "lapack", "openblas-serial", installed=(OPENMP,)),
        blas(OPENMP, "lapack", OPENMP),
        f"update-alternatives --set libopenblas.so.0-x86_64-linux-gnu /{LIB}/{OPENMP}/libopenblas.so.0",
    ),
    Case(
        "blas.flavours",
        WARN,
        blas(OPENMP, OPENMP, "openblas-pthread"),
        blas("blas", "lapack", "x"),
        "not of one OpenBLAS",
    ),
    # ---- control groups ----
    Case("cg.unified", WARN, Made(files={"sys/fs/cgroup/cpu/tasks": ""}), Made(files={V2: "cpu"}), "version 1"),
    Case(
        "cg.cpuset", NOTE, Made(files={V2: "cpu memory"}), Made(files={V2: "cpuset cpu"}), "AllowedCPUs= has no effect"
    ),
    Case(
        "cg.memory",
        FAIL,
        Made(files={V2: "cpu"}, conf=CONF + "MemoryMax=1G\n"),
        Made(files={V2: "cpu memory"}, conf=CONF + "MemoryMax=1G\n"),
        "no effect (train@a)",
    ),
    Case(
        "cg.memory",
        FAIL,
        Made(files={V2: "cpu"}, conf=CONF + "MemoryHigh=1G\n"),
        Made(files={V2: "cpu"}),
        "MemoryHigh=",
    ),
    Case(
        "cg.cpu",
        FAIL,
        Made(files={V2: ""}, show=shown(CPUQuotaPerSecUSec="1s")),
        Made(files={V2: ""}),
        "CPUQuota= has no",
    ),
    Case("cg.cpu", FAIL, Made(files={V2: ""}, conf=CONF + "CPUWeight=50\n"), Made(files={V2: ""}), "CPUWeight= has no"),
    Case(
        "cg.throttle",
        FAIL,
        Made(show=RUNS, running={TRAIN: running(TRAIN, throttled=40)}),
        Made(show=RUNS, running={TRAIN: running(TRAIN, throttled=0)}),
        "40 %",
    ),
    # ---- conf ----
    Case("cfg.valid", FAIL, Made(problems=("/etc/torchpar.conf:3: x",)), Made(), "torchpar validate"),
    Case("cfg.sync", WARN, Made(state="newer"), Made(), "torchpar apply"),
    Case("cfg.cpus", FAIL, Made(cpus_now="0-1"), Made(), "CPUs 2-3"),
    Case("cfg.doubts", NOTE, Made(facts=make_host(doubts=("/sys/x: odd",))), Made(), "/sys/x: odd"),
    Case(
        "cfg.unused",
        WARN,
        Made(conf=CONF + "Enabled=yes\n", show={TRAIN: {"ActiveState": "failed"}}),
        Made(conf=CONF + "Enabled=yes\n", show={TRAIN: {"ActiveState": "inactive"}}),
        "holds CPUs 0-3",
    ),
    # ---- devices ----
    Case(
        "gpu.nodes",
        FAIL,
        Made(facts=GPU),
        Made(facts=GPU, files={"dev/nvidiactl": "", "dev/nvidia-uvm": ""}),
        "nvidia-modprobe -u -c=0",
    ),
    Case(
        "gpu.driver",
        WARN,
        Made(facts=make_host(gpus=(replace(make_gpu(0, 0), driver=None, driver_stated=True),))),
        Made(facts=GPU),
        "0000:10:00.0",
    ),
    Case(
        "gpu.persist",
        NOTE,
        Made(facts=GPU),
        Made(facts=GPU, files={"run/nvidia-persistenced/socket": ""}),
        "persistenced",
    ),
    Case(
        "gpu.xid",
        FAIL,
        Made(facts=GPU, log=("NVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus.",)),
        Made(facts=GPU, log=("NVRM: Xid (PCI:0000:10:00): 31, pid=9, name=python3",)),
        "error 79",
    ),
    Case("gpu.xid", UNKNOWN, Made(facts=GPU, log=None), Made(facts=GPU), "cannot be read"),
    Case(
        "gpu.hidden",
        FAIL,
        Made(facts=GPU, conf=CONF + "Service.PrivateDevices=yes\n"),
        Made(facts=GPU, conf=CONF + "Service.PrivateDevices=no\n"),
        "cannot see their device files",
    ),
    Case(
        "rdma.closed",
        FAIL,
        Made(conf=SEVERAL, files=IB),
        Made(conf=SEVERAL, files=IB, modes={"dev/infiniband/uverbs0": 0o777}),
        "uverbs0",
    ),
    Case(
        "rdma.closed",
        FAIL,
        Made(conf=SEVERAL, files=IB, modes={"dev/infiniband/uverbs0": 0o700}),
        Made(conf=SEVERAL, files=IB, modes={"dev/infiniband/uverbs0": 0o777}),
        "mode 0700",
    ),
    # ---- disks ----
    Case(
        "ckpt.space",
        FAIL,
        Made(disks={"/var/lib/torchpar/train/a": Disk(2**40, 0, None, 0)}),
        Made(disks={"/var/lib/torchpar/train/a": ROOMY}),
        "is full",
    ),
    Case(
        "ckpt.space",
        FAIL,
        Made(conf=CONF + "ReadWritePaths=/data\n", disks={"/data": replace(ROOMY, read_only=True)}),
        Made(conf=CONF + "ReadWritePaths=/data\n"),
        "read-only",
    ),
    Case(
        "ckpt.space",
        WARN,
        Made(disks={"/var/lib/torchpar/train/a": Disk(2**40, 2**20, None, 0)}),
        Made(),
        "nearly full",
    ),
    Case(
        "ckpt.space", WARN, Made(disks={"/var/lib/torchpar/train/a": replace(ROOMY, free_inodes=3)}), Made(), "inodes"
    ),
    Case(
        "store.space",
        FAIL,
        Made(disks={"/var/lib/torchpar": Disk(2**40, 0, None, 0)}),
        Made(),
        "cannot write a generation",
    ),
    Case(
        "sec.noexec",
        WARN,
        Made(files={"proc/self/mounts": "/dev/a / ext4 rw 0 0\n/dev/b /var ext4 rw,noexec 0 0\n"}),
        Made(files={"proc/self/mounts": "/dev/a / ext4 rw 0 0\n/dev/b /tmp ext4 rw,noexec 0 0\n"}),
        "/var is mounted noexec",
    ),
    Case(
        "sec.noexec",
        WARN,
        Made(conf=USER, files={"proc/self/mounts": "tmpfs /tmp tmpfs rw,noexec 0 0\n"}),
        Made(
            conf=USER + "Environment=TMPDIR=/srv/tmp\n", files={"proc/self/mounts": "tmpfs /tmp tmpfs rw,noexec 0 0\n"}
        ),
        "TORCHINDUCTOR_CACHE_DIR",
    ),
    # ---- environment ----
    Case(
        "env.bind",
        WARN,
        Made(conf=CONF + "Environment=OMP_PROC_BIND=close\n"),
        Made(conf=CONF + "Environment=OMP_PROC_BIND=false\n"),
        "all loader workers",
    ),
    Case(
        "env.threads",
        WARN,
        Made(conf=CONF + "Environment=MKL_NUM_THREADS=16\n"),
        Made(conf=CONF + "Environment=MKL_NUM_THREADS=4\n"),
        "16 threads on 4 CPUs",
    ),
    Case(
        "env.nccl_affinity",
        WARN,
        Made(facts=GPU, conf=CONF + "Environment=NCCL_IGNORE_CPU_AFFINITY=1\n"),
        Made(facts=GPU, conf=CONF + "Environment=NCCL_IGNORE_CPU_AFFINITY=0\n"),
        "leave the CPUs",
    ),
    Case(
        "env.gloo",
        FAIL,
        Made(conf=CONF + "Environment=GLOO_SOCKET_IFNAME=^lo\n"),
        Made(conf=CONF + "Environment=GLOO_SOCKET_IFNAME=eth0\n"),
        "^lo",
    ),
    Case("env.no_effect", NOTE, Made(conf=CONF + "Environment=TORCH_NUM_THREADS=4\n"), Made(), "no effect"),
    Case(
        "mem.jemalloc_conf",
        WARN,
        Made(conf=CONF + "Allocator=jemalloc\nAllocatorConf=background_thread=true\n"),
        Made(conf=CONF + "Allocator=jemalloc\nAllocatorConf=background_thread:true\n"),
        "not option:value",
    ),
    Case(
        "mem.preload",
        FAIL,
        Made(),
        Made(files={f"{LIB}/libtcmalloc_minimal.so.4": ""}),
        "libtcmalloc_minimal.so.4: there is no such file",
    ),
    Case("mem.allocator", WARN, Made(facts=make_host(libraries=())), Made(), "libjemalloc2"),
    # ---- kernel ----
    Case(
        "kern.numa_balancing",
        WARN,
        Made(
            facts=TWO_NODES, conf=CONF + "CPUs=node:0\nNUMAPolicy=bind\n", files={"proc/sys/kernel/numa_balancing": "1"}
        ),
        Made(
            facts=TWO_NODES, conf=CONF + "CPUs=node:0\nNUMAPolicy=bind\n", files={"proc/sys/kernel/numa_balancing": "0"}
        ),
        "kernel.numa_balancing = 0",
    ),
    Case(
        "kern.zone_reclaim",
        WARN,
        Made(facts=TWO_NODES, files={"proc/sys/vm/zone_reclaim_mode": "1"}),
        Made(facts=TWO_NODES, files={"proc/sys/vm/zone_reclaim_mode": "0"}),
        "vm.zone_reclaim_mode = 0",
    ),
    Case(
        "kern.overcommit",
        WARN,
        Made(files={"proc/sys/vm/overcommit_memory": "2"}),
        Made(files={"proc/sys/vm/overcommit_memory": "1"}),
        "Cannot allocate memory",
    ),
    Case(
        "kern.thp",
        NOTE,
        Made(files={"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]"}),
        Made(files={"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never"}),
        "large pages",
    ),
    Case(
        "kern.governor",
        WARN,
        Made(files={**FREQUENCY, "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor": "powersave"}),
        Made(
            files={
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "intel_pstate",
                "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor": "powersave",
            }
        ),
        "scaling_governor - - - - performance",
    ),
    Case(
        "kern.governor",
        WARN,
        Made(files={**FREQUENCY, "sys/devices/system/cpu/cpu1/cpufreq/energy_performance_preference": "power"}),
        Made(files={**FREQUENCY, "sys/devices/system/cpu/cpu1/cpufreq/energy_performance_preference": "balance_power"}),
        "save energy",
    ),
    Case(
        "kern.turbo",
        NOTE,
        Made(files={**FREQUENCY, "sys/devices/system/cpu/cpufreq/boost": "0"}),
        Made(files={**FREQUENCY, "sys/devices/system/cpu/cpufreq/boost": "1"}),
        "echo 1 >",
    ),
    Case(
        "kern.thermal",
        WARN,
        Made(
            files={
                "proc/uptime": "1000.50 9.0",
                "sys/devices/system/cpu/cpu3/thermal_throttle/core_throttle_total_time_ms": "5000",
            }
        ),
        Made(
            files={
                "proc/uptime": "1000.50 9.0",
                "sys/devices/system/cpu/cpu3/thermal_throttle/core_throttle_total_time_ms": "500",
            }
        ),
        "CPU 3 back for 5 s",
    ),
    Case(
        "kern.ptrace",
        NOTE,
        Made(files={"proc/sys/kernel/yama/ptrace_scope": "3"}),
        Made(files={"proc/sys/kernel/yama/ptrace_scope": "1"}),
        "nobody, not even root",
    ),
    # ---- limits ----
    Case(
        "lim.memlock",
        FAIL,
        Made(conf=SEVERAL, files={**IB, **limits("Max locked memory", "8388608")}, show=RUNS),
        Made(conf=SEVERAL, files={**IB, **limits("Max locked memory", "unlimited")}, show=RUNS),
        "8388608 bytes",
    ),
    Case(
        "lim.memlock",
        FAIL,
        Made(conf=SEVERAL, files=IB, show={TRAIN: {"LimitMEMLOCKSoft": "8388608"}}),
        Made(conf=SEVERAL, files=IB, show={TRAIN: {"LimitMEMLOCKSoft": "infinity"}}),
        "LimitMEMLOCK=",
    ),
    Case(
        "lim.nofile",
        WARN,
        Made(files=limits("Max open files", "1024"), show=shown(LimitNOFILESoft="1024"), running=LOADING),
        Made(files=limits("Max open files", "1024"), show=RUNS, running=RUNNING),
        "Service.LimitNOFILE=1048576",
    ),
    Case(
        "lim.nofile",
        WARN,
        Made(files=limits("Max open files", "20000"), show=shown(LimitNOFILESoft="1048576"), running=LOADING),
        Made(files=limits("Max open files", "1048576"), show=RUNS, running=LOADING),
        "systemd itself may have no more",
    ),
    Case(
        "lim.nofile",
        WARN,
        Made(conf=CONF + "LoaderWorkers=1\n", show={TRAIN: {"LimitNOFILESoft": "1024"}}),
        Made(conf=CONF + "LoaderWorkers=1\n", show={TRAIN: {"LimitNOFILESoft": "65536"}}),
        "LimitNOFILE= of its unit",
    ),
    Case(
        "lim.tasks",
        WARN,
        Made(show=shown(TasksCurrent="90", TasksMax="100")),
        Made(show=shown(TasksCurrent="90", TasksMax="infinity")),
        "90 of at most 100",
    ),
    Case(
        "sec.mdwe",
        FAIL,
        Made(show=shown(MemoryDenyWriteExecute="yes")),
        Made(show=shown(MemoryDenyWriteExecute="no")),
        "oneDNN",
    ),
    Case(
        "lim.visible",
        UNKNOWN,
        Made(show=RUNS, running={TRAIN: running(TRAIN, process(known=False))}, root=False),
        Made(show=RUNS, running=RUNNING, root=False),
        "only root",
    ),
    # ---- memory ----
    Case(
        "mem.swap",
        NOTE,
        Made(files={"proc/swaps": "Filename Type Size Used Priority\n"}),
        Made(files={"proc/swaps": "Filename Type Size Used Priority\n/swap file 9 0 -2\n"}),
        "mkswap",
    ),
    Case(
        "mem.limits",
        WARN,
        Made(conf="[Train]\nEnabled=yes\nMemoryMax=10G\n[Train a]\nScript=/a.py\n[Train b]\nScript=/b.py\n"),
        Made(conf="[Train]\nEnabled=yes\nMemoryMax=4G\n[Train a]\nScript=/a.py\n[Train b]\nScript=/b.py\n"),
        "20 GiB of 16 GiB",
    ),
    Case(
        "mem.pressure",
        FAIL,
        Made(show=RUNS, files={"sys/fs/cgroup/t/memory.pressure": "some avg10=0.00 avg60=55.10 avg300=1.00 total=9"}),
        Made(show=RUNS, files={"sys/fs/cgroup/t/memory.pressure": "some avg10=0.00 avg60=5.10 avg300=1.00 total=9"}),
        "55 %",
    ),
    Case(
        "mem.oom",
        FAIL,
        Made(show=RUNS, files={"sys/fs/cgroup/t/memory.events": "low 0\noom 3\noom_kill 2\n"}),
        Made(show=RUNS, files={"sys/fs/cgroup/t/memory.events": "low 0\noom 0\noom_kill 0\n"}),
        "2 processes",
    ),
    Case(
        "shm.size",
        WARN,
        Made(modes={"dev/shm": 0o1777}, disks={"/dev/shm": Disk(2**26, 2**26, None, 0)}),
        Made(modes={"dev/shm": 0o1777}, disks={"/dev/shm": Disk(2**33, 2**33, None, 0)}),
        "64 MiB of 64 MiB free",
    ),
    Case(
        "shm.size",
        WARN,
        Made(modes={"dev/shm": 0o1777}, disks={"/dev/shm": Disk(2**33, 2**20, None, 0)}),
        Made(modes={"dev/shm": 0o1777}),
        "nearly full",
    ),
    Case("shm.size", FAIL, Made(), Made(modes={"dev/shm": 0o1777}), "no /dev/shm"),
    Case("shm.size", FAIL, Made(modes={"dev/shm": 0o755}), Made(modes={"dev/shm": 0o1777}), "chmod 1777"),
    Case(
        "shm.leftovers",
        NOTE,
        Made(files={"dev/shm/torch_77_123_0": ""}),
        Made(files={"dev/shm/torch_77_123_0": "", "dev/shm/torch_x": "", "proc/77/stat": ""}),
        "nobody has: fuser -v /dev/shm/torch_*",
    ),
    Case(
        "ipc.remove",
        WARN,
        Made(
            conf=USER,
            files={"usr/lib/systemd/systemd-logind": "", "etc/passwd": "anna:x:1000:1000::/home/anna:/bin/sh"},
        ),
        Made(
            conf=USER, files={"usr/lib/systemd/systemd-logind": "", "etc/passwd": "anna:x:998:998::/home/anna:/bin/sh"}
        ),
        "enable-linger anna",
    ),
    # ---- network ----
    Case("time.sync", WARN, Made(conf=SEVERAL, clock=False), Made(conf=SEVERAL), "set-ntp true"),
    Case(
        "time.sync",
        WARN,
        Made(conf=SEVERAL, clock=False, units={"chrony.service": "active"}),
        Made(conf=SEVERAL),
        "though chrony.service runs",
    ),
    Case(
        "net.endpoint",
        FAIL,
        Made(conf=SEVERAL, names={"gpu1": ("127.0.0.1",)}),
        Made(conf=SEVERAL, names={"gpu1": ("192.0.2.1",)}),
        "loopback",
    ),
    Case(
        "net.endpoint",
        FAIL,
        Made(conf=WHOLE_NAME, names=WHOLE_NAME_HERE, files={"etc/hosts": "127.0.1.1 other.example.org other\n"}),
        Made(conf=WHOLE_NAME, names=WHOLE_NAME_HERE, files=WITH_DOMAIN),
        "loopback",
    ),
    Case(
        "net.hosts",
        FAIL,
        Made(conf=WHOLE_NAME, files={**WITH_DOMAIN, **interfaces("eth0", "eth1")}),
        Made(conf=WHOLE_NAME, files={**WITH_DOMAIN, **interfaces("eth0")}),
        "replace 127.0.1.1",
    ),
    Case(
        "net.endpoint",
        FAIL,
        Made(conf=SEVERAL, names={"gpu1": ()}),
        Made(conf=SEVERAL, names={"gpu1": ("192.0.2.1",)}),
        "does not resolve",
    ),
    Case(
        "net.endpoint",
        UNKNOWN,
        Made(conf=SEVERAL),
        Made(conf=SEVERAL, names={"gpu1": ("192.0.2.1",)}),
        "does not say in time",
    ),
    Case(
        "net.hosts",
        FAIL,
        Made(conf=HERE, files={**INSTALLER, **interfaces("eth0", "eth1")}),
        Made(conf=HERE, files={**INSTALLER, **interfaces("eth0")}),
        "replace 127.0.1.1",
    ),
    Case(
        "net.hosts",
        FAIL,
        Made(conf=HERE, files={**INSTALLER, **interfaces("eth0", "eth1")}),
        Made(conf=HERE + "Interface=eth1\n", files={**INSTALLER, **interfaces("eth0", "eth1")}),
        "interfaces: eth0 eth1",
    ),
    Case(
        "net.route",
        WARN,
        Made(conf=NAMED, names={"gpu1": ("10.1.0.9",)}, files={"proc/net/route": ROUTES.format("0000020A")}),
        Made(conf=NAMED, names={"gpu1": ("10.1.0.9",)}, files={"proc/net/route": ROUTES.format("0000010A")}),
        "ip route get 10.1.0.9: dev ens3",
    ),
    Case(
        "cfg.nccl_conf",
        WARN,
        Made(facts=GPU, files={"etc/nccl.conf": "# all jobs\nNCCL_IGNORE_CPU_AFFINITY=1\nNCCL_IB_DISABLE=1\n"}),
        Made(facts=GPU, files={"etc/nccl.conf": "#NCCL_IGNORE_CPU_AFFINITY=1\nNCCL_IB_DISABLE=1\n"}),
        "leave the planned CPUs",
    ),
    Case(
        "cfg.nccl_conf",
        WARN,
        Made(facts=GPU, files={"etc/nccl.conf": "NCCL_IB_DISABLE=1", **IB}),
        Made(facts=GPU, files={"etc/nccl.conf": "NCCL_IB_DISABLE=0", **IB}),
        "in place of the RDMA device",
    ),
    Case(
        "aff.double",
        WARN,
        Made(conf=TORCHRUN + "Arguments=--numa-binding=node x.py\n"),
        Made(conf=TORCHRUN + "Arguments=--nproc-per-node=2 x.py\n"),
        "binds its ranks by torchrun",
    ),
    Case(
        "pkg.repo",
        WARN,
        Made(files={APT: "Types: deb\n#Signed-By: /k.asc\n"}),
        Made(files={APT: "Types: deb\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n"}),
        "no Signed-By",
    ),
    Case(
        "pkg.repo",
        WARN,
        Made(files={APT: "Signed-By: /usr/share/keyrings/t.asc\n"}),
        Made(files={APT: "Signed-By: /usr/share/keyrings/t.asc\n", "usr/share/keyrings/t.asc": ""}),
        "Signed-By /usr/share/keyrings/t.asc",
    ),
    Case(
        "net.interface",
        FAIL,
        Made(conf=NAMED, files={"sys/class/net/ens3/flags": "0x1003"}),
        Made(conf=NAMED, files={"sys/class/net/eth0/flags": "0x1003"}),
        "interfaces: ens3",
    ),
    Case(
        "net.interface",
        FAIL,
        Made(conf=NAMED, files={"sys/class/net/eth0/flags": "0x1002"}),
        Made(conf=NAMED, files={"sys/class/net/eth0/flags": "0x1003"}),
        "ip link set eth0 up",
    ),
    Case(
        "net.speed",
        WARN,
        Made(
            conf=NAMED,
            files={
                f"sys/class/net/{name}/{file}": text
                for name, speed in (("eth0", "1000"), ("ib0", "100000"))
                for file, text in (("speed", speed), ("operstate", "up"), ("device/x", ""))
            },
        ),
        Made(
            conf=NAMED,
            files={
                f"sys/class/net/{name}/{file}": text
                for name, speed in (("eth0", "1000"), ("docker0", "10000"))
                for file, text in (
                    ("speed", speed),
                    ("operstate", "up" if name == "eth0" else "down"),
                    ("device/x", ""),
                )
            },
        ),
        "Interface=ib0",
    ),
    Case(
        "net.port",
        FAIL,
        Made(conf=CONF + "Nodes=2\nEndpoint=host:8000\n", files={"proc/net/tcp": PORT_8000}),
        Made(conf=CONF + "Nodes=2\nEndpoint=host:8000\n", files={"proc/net/tcp": PORT_8000}, show=RUNS),
        "sport = :8000",
    ),
    Case(
        "infer.port",
        WARN,
        Made(conf=INFERENCE, files={"proc/net/tcp": PORT_8000}, units={SOCKET: "inactive"}),
        Made(conf=INFERENCE, files={"proc/net/tcp": PORT_8000}, units={SOCKET: "active"}),
        "port 8000 is taken",
    ),
    Case(
        "net.nccl_ib",
        WARN,
        Made(conf=SEVERAL, files={**IB, "etc/nccl.conf": "NCCL_IB_DISABLE = 1\n"}),
        Made(conf=SEVERAL, files={**IB, "etc/nccl.conf": "NCCL_IB_HCA=mlx5_0\n"}),
        "/etc/nccl.conf",
    ),
    Case(
        "net.nccl_ib",
        WARN,
        Made(files=IB, conf=SEVERAL + "Environment=NCCL_IB_DISABLE=1\n"),
        Made(conf=SEVERAL, files=IB),
        "train@a tells",
    ),
    # ---- observing ----
    Case(
        "obs.torchpard",
        WARN,
        Made(units={"torchpard.service": "failed"}),
        Made(units={"torchpard.service": "active"}),
        "systemctl start torchpard.service",
    ),
    Case("obs.journal", NOTE, Made(), Made(modes={"var/log/journal": 0o755}), "journalctl --flush"),
    Case(
        "obs.textfile",
        WARN,
        Made(files=TEXTFILES, units={"torchpar-metrics.timer": "inactive"}),
        Made(files=TEXTFILES, units={"torchpar-metrics.timer": "active", "torchpar-metrics.service": "inactive"}),
        "systemctl start torchpar-metrics.timer",
    ),
    Case(
        "obs.textfile",
        WARN,
        Made(files=TEXTFILES, units={"torchpar-metrics.timer": "active", "torchpar-metrics.service": "failed"}),
        Made(files=TEXTFILES, units={"torchpar-metrics.timer": "active", "torchpar-metrics.service": "activating"}),
        "systemctl status torchpar-metrics.service",
    ),
    # ---- packages ----
    Case(
        "pkg.needrestart",
        WARN,
        Made(files={"usr/sbin/needrestart": ""}),
        Made(files={"usr/sbin/needrestart": "", "etc/needrestart/conf.d/torchpar.conf": ""}),
        "qr(^torchpar-(train|infer|tune)@)",
    ),
    Case(
        "pkg.reboot",
        WARN,
        Made(
            files={
                "usr/bin/unattended-upgrade": "",
                "etc/apt/apt.conf.d/50u": '//Unattended-Upgrade::Automatic-Reboot "false";\n'
                'Unattended-Upgrade::Automatic-Reboot "true";\n',
            }
        ),
        Made(
            files={
                "usr/bin/unattended-upgrade": "",
                "etc/apt/apt.conf.d/50u": '//Unattended-Upgrade::Automatic-Reboot "true";\n',
            }
        ),
        "restarts by itself",
    ),
    Case(
        "pkg.numad",
        WARN,
        Made(units={"numad.service": "active"}),
        Made(units={"numad.service": "inactive"}),
        "systemctl disable --now numad.service",
    ),
    Case(
        "pkg.killers",
        NOTE,
        Made(units={"earlyoom.service": "active"}),
        Made(units={"earlyoom.service": "inactive"}),
        "OOMScoreAdjust",
    ),
    Case("torch.installed", WARN, Made(), Made(files=TORCH), "python3-torch"),
    Case(
        "torch.installed",
        WARN,
        Made(conf=CONF + "Python=/srv/venv/bin/python3\n", files={"srv/venv/pyvenv.cfg": "home = /usr/bin\n"}),
        Made(
            conf=CONF + "Python=/srv/venv/bin/python3\n",
            files={"srv/venv/pyvenv.cfg": "", "srv/venv/lib/python3.13/site-packages/torch/version.py": ""},
        ),
        "/srv/venv/bin/pip install torch",
    ),
    # ---- processes ----
    Case(
        "aff.collapsed",
        FAIL,
        Made(show=RUNS, running={TRAIN: running(TRAIN, process(cpus="2"))}),
        Made(show=RUNS, running=RUNNING),
        "Cpus_allowed_list 2",
    ),
    Case(
        "aff.collapsed",
        FAIL,
        Made(show=RUNS, running={TRAIN: running(TRAIN, process(cpus="1"))}, given="2"),
        Made(show=RUNS, running={TRAIN: running(TRAIN, process(cpus="2"))}, given="2"),
        "Cpus_allowed_list 1",
    ),
    Case(
        "aff.collapsed",
        FAIL,
        Made(facts=HYBRID, conf=LOADS, show=RUNS, running={TRAIN: running(TRAIN, process(cpus="1"))}),
        Made(facts=HYBRID, conf=LOADS, show=RUNS, running={TRAIN: running(TRAIN, process(cpus="8"))}),
        "Cpus_allowed_list 1",
    ),
    Case(
        "aff.outside",
        WARN,
        Made(conf=CONF + "CPUs=0-1\n", show=RUNS, running={TRAIN: running(TRAIN, process(cpus="0-3"))}),
        Made(conf=CONF + "CPUs=0-1\n", show=RUNS, running={TRAIN: running(TRAIN, process(cpus="0-1"))}),
        "outside of its CPUs 0-1",
    ),
    Case(
        "aff.outside",
        WARN,
        Made(conf=CONF + "CPUs=0-1\n", show=RUNS, running={TRAIN: running(TRAIN, process(cpus="2-3"))}, given="2-2"),
        Made(conf=CONF + "CPUs=0-1\n", show=RUNS, running={TRAIN: running(TRAIN, process(cpus="2-3"))}, given="2-3"),
        "outside of its CPUs 0-2",
    ),
    Case(
        "aff.overlap",
        WARN,
        Made(
            conf=TWO,
            show={TRAIN: ACTIVE, OTHER: ACTIVE},
            running={TRAIN: running(TRAIN, process()), OTHER: running(OTHER, process())},
        ),
        Made(
            conf=TWO,
            show={TRAIN: ACTIVE, OTHER: ACTIVE},
            running={TRAIN: running(TRAIN, process(cpus="0-1")), OTHER: running(OTHER, process(cpus="2-3"))},
        ),
        "train@a and train@b",
    ),
    Case(
        "aff.overlap",
        WARN,
        Made(
            facts=make_host(smt=2, cores_per_complex=2),
            conf=TWO,
            show={TRAIN: ACTIVE, OTHER: ACTIVE},
            running={TRAIN: running(TRAIN, process(cpus="0")), OTHER: running(OTHER, process(cpus="2"))},
        ),
        Made(conf=TWO, show={TRAIN: ACTIVE}, running={TRAIN: running(TRAIN, process())}),
        "both may run on CPUs 0,2",
    ),
    Case(
        "aff.overlap",
        WARN,
        Made(conf=TWO, show={TRAIN: ACTIVE, OTHER: ACTIVE}),
        Made(conf=BOTH_SHARED, show={TRAIN: ACTIVE, OTHER: ACTIVE}),
        "both may run on CPUs 0-3",
    ),
    Case(
        "aff.overlap",
        WARN,
        Made(conf=TWO, show={TRAIN: ACTIVE, OTHER: ACTIVE}),
        Made(
            conf=TWO,
            show={TRAIN: ACTIVE, OTHER: ACTIVE},
            running={TRAIN: running(TRAIN, process(cpus="0-1"))},
            given="2-3",
        ),
        "both may run on CPUs 0-3",
    ),
    Case(
        "thr.oversubscribed",
        FAIL,
        Made(conf=CONF + "Environment=OMP_NUM_THREADS=16\n"),
        Made(conf=CONF + "Environment=OMP_NUM_THREADS=2\n"),
        "16 threads and loader workers on 4 CPUs",
    ),
    Case(
        "thr.openmp",
        WARN,
        Made(show=RUNS, running=RUNNING, openmp={100: ("libgomp-a34b.so.1", "libiomp5.so")}),
        Made(show=RUNS, running=RUNNING, openmp={100: ("libgomp-a34b.so.1", "libgomp.so.1")}),
        "libiomp5.so",
    ),
    Case(
        "aff.gpu_node",
        WARN,
        Made(facts=GPU, conf=CONF + "CPUs=node:1\nGPUs=1\n"),
        Made(facts=GPU, conf=CONF + "CPUs=node:0\nGPUs=1\n"),
        "CPUs=node:0",
    ),
    Case(
        "mem.remote",
        WARN,
        Made(
            facts=TWO_NODES,
            conf=CONF + "CPUs=node:0\nNUMAPolicy=bind\n",
            show=RUNS,
            running={TRAIN: running(TRAIN, process(pages={0: 100000, 1: 300000}))},
        ),
        Made(
            facts=TWO_NODES,
            conf=CONF + "CPUs=node:0\nNUMAPolicy=bind\n",
            show=RUNS,
            running={TRAIN: running(TRAIN, process(pages={0: 300000, 1: 1000}))},
        ),
        "75 %",
    ),
    # ---- units ----
    Case("unit.override", WARN, drop_in("[Service]\nCPUAffinity=0\n"), drop_in("[Service]\nNice=5\n"), "CPUAffinity="),
    Case(
        "unit.override",
        WARN,
        drop_in("[Service]\nEnvironment=OMP_NUM_THREADS=1\n"),
        drop_in("[Service]\nEnvironment=MY_OWN=1\n"),
        "systemctl daemon-reload",
    ),
    # A drop-in that sorts before ours, and one that adds to a list.
    Case(
        "unit.override",
        WARN,
        drop_in("[Service]\nCPUAffinity=0\n"),
        drop_in("[Service]\nCPUAffinity=0\n", "10-own.conf"),
        "of train@a",
    ),
    Case(
        "unit.override",
        WARN,
        drop_in("[Service]\nBindPaths=\n"),
        drop_in("[Service]\nBindPaths=/data\nCPUAffinity=0-3\n"),
        "BindPaths=",
    ),
    Case(
        "unit.enabled",
        WARN,
        Made(links={f"etc/systemd/system/multi-user.target.wants/{TRAIN}": "/x"}),
        Made(conf=CONF + "Enabled=yes\n", links={f"etc/systemd/system/multi-user.target.wants/{TRAIN}": "/x"}),
        "Enabled=yes",
    ),
    Case(
        "unit.enabled",
        WARN,
        Made(links={f"etc/systemd/system/multi-user.target.wants/{INFER}": "/x"}),
        Made(links={"etc/systemd/system/multi-user.target.wants/ssh.service": "/x"}),
        f"systemctl disable {INFER}",
    ),
    Case(
        "unit.masked", WARN, Made(show={TRAIN: {"LoadState": "masked"}}), Made(show=RUNS), f"systemctl unmask {TRAIN}"
    ),
    Case("unit.failed", FAIL, Made(show={TRAIN: {"ActiveState": "failed"}}), Made(show=RUNS), "journalctl -u"),
    Case(
        "unit.failed",
        FAIL,
        Made(show={TRAIN: {"ActiveState": "activating", "NRestarts": "9"}}),
        Made(show=shown(NRestarts="9")),
        "9 restarts",
    ),
    Case("unit.missing_files", FAIL, Made(missing=("/a.py",)), Made(), "/a.py is not there"),
    Case(
        "stop.timeout",
        FAIL,
        Made(show=shown(TimeoutStopUSec="1min 30s")),
        Made(show=shown(TimeoutStopUSec="2min 15s")),
        "after 90 s",
    ),
]

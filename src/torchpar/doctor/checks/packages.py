"""Checks other packages: those that restart or kill jobs or move them, and those that jobs need."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchpar.doctor.check import check
from torchpar.doctor.conditions import ALWAYS, DEBIANS_TORCH, SERVICES, SYSTEMD
from torchpar.doctor.finding import Finding, note, warn
from torchpar.doctor.host import Host

# The line of the package's own file, which dpkg does not bring back once it has been removed.
_LEAVE_ALONE = "$nrconf{override_rc}{qr(^torchpar-(train|infer|tune)@)} = 0;"
_SOURCES = "etc/apt/sources.list.d"
_NEEDRESTART = "etc/needrestart/conf.d/torchpar.conf"


@check(
    "pkg.needrestart",
    passed="needrestart leaves jobs alone",
    where=SERVICES,
    source="liske/needrestart#159, Debian#1100685: an upgraded library restarts whatever runs Python",
)
def needrestart(host: Host) -> Iterator[Finding]:
    """Finds needrestart without torchpar's file, by which it restarts no job."""
    if host.tree.exists("usr/sbin/needrestart") and not host.tree.exists(_NEEDRESTART):
        yield warn(
            "needrestart restarts running jobs when a library is upgraded",
            f"/usr/sbin/needrestart is there, /{_NEEDRESTART} is not",
            "",
            f"echo '{_LEAVE_ALONE}' >/{_NEEDRESTART}",
        )


@check(
    "pkg.repo",
    passed="the repository of torchpar is trusted by a key of its own",
    where=ALWAYS,
    source="sources.list(5): Signed-By; without it each key that apt trusts may sign the packages",
)
def repository(host: Host) -> Iterator[Finding]:
    """Finds torchpar's file for apt without Signed-By, or with a key that is not there."""
    for name in ("torchpar.sources", "torchpar.list"):
        text = host.tree.text(f"{_SOURCES}/{name}")
        if text is None:
            continue
        # A key may stand in the file itself, and several may be named.
        found = re.search(r"(?im)^[^#\n]*signed-by[:=][ \t]*([^\]\s]*)", text)
        if not found:
            yield warn(
                "any key that apt trusts may sign the packages of torchpar's repository",
                f"/{_SOURCES}/{name}: no Signed-By",
                "name its key there, by Signed-By; see torchpar-repository(7)",
            )
        for key in found[1].split(",") if found else ():
            if key.startswith("/") and not host.tree.exists(key.lstrip("/")):
                yield warn(
                    "apt cannot update torchpar: the key of its repository is not there",
                    f"/{_SOURCES}/{name}: Signed-By {key}",
                    "put it there again; see torchpar-repository(7)",
                )


@check(
    "pkg.reboot",
    passed="no upgrade restarts the host by itself",
    where=SERVICES,
    source="unattended-upgrades: Unattended-Upgrade::Automatic-Reboot",
)
def reboot(host: Host) -> Iterator[Finding]:
    """Finds unattended upgrades that restart the host under its jobs."""
    if not host.tree.exists("usr/bin/unattended-upgrade"):
        return
    place, value = "", ""
    folder = "etc/apt/apt.conf.d"
    for name in host.tree.names(folder):
        for line in (host.tree.text(f"{folder}/{name}") or "").splitlines():
            if match := re.match(r'\s*Unattended-Upgrade::Automatic-Reboot\s+"?(\w+)"?\s*;', line):
                place, value = f"/{folder}/{name}", match[1].lower()
    if value in ("true", "yes", "1", "on"):
        yield warn(
            "after an upgrade the host restarts by itself, whatever runs on it",
            f"{place}: Unattended-Upgrade::Automatic-Reboot {value}",
            'set it to "false" there, and restart the host when no job runs',
        )


@check(
    "pkg.numad",
    passed="no daemon moves processes between NUMA nodes",
    where=SYSTEMD,
    source="numad(8): it changes the cpuset and the memory of processes",
)
def numad(host: Host) -> Iterator[Finding]:
    """Finds numad active, which works against planned places."""
    if host.is_active("numad.service"):
        yield warn(
            "numad moves processes and their memory away from where they were placed",
            "numad.service is active",
            "if nothing else on this host needs it: systemctl disable --now numad.service",
        )


@check(
    "pkg.killers",
    passed="no daemon kills large processes before the kernel must",
    where=SYSTEMD,
    source="earlyoom(1), systemd-oomd.service(8)",
)
def killers(host: Host) -> Iterator[Finding]:
    """Finds daemons that kill what is largest when memory becomes scarce: mostly a job."""
    for unit in ("earlyoom.service", "nohang.service", "systemd-oomd.service"):
        if host.is_active(unit):
            yield note(
                f"{unit.removesuffix('.service')} kills what is largest when memory is scarce: mostly a job",
                f"{unit} is active",
                "write Service.OOMScoreAdjust=-500 (earlyoom), or Service.ManagedOOMPreference=avoid (systemd-oomd),"
                " into the section of a service that should be killed later than others",
            )


@check(
    "torch.installed",
    passed="the interpreters of services have torch",
    where=SERVICES,
    source="site(7) of Python: where modules are installed",
)
def torch_installed(host: Host) -> Iterator[Finding]:
    """Finds services whose interpreter has no torch in any of its folders."""
    for service in host.services:
        settings = service.declared.settings if service.declared else None
        if settings is None or "PYTHONPATH" in service.environment:
            continue
        # Who has a home may have torch in there.
        if settings.python == "/usr/bin/python3" and service.declared and service.declared.own_user:
            folders = [DEBIANS_TORCH, *_in_lib(host, "usr/local/lib")]
            if not any(host.tree.exists(folder) for folder in folders):
                yield warn(
                    f"the interpreter of {service.title} has no torch",
                    "neither /usr/lib/python3/dist-packages/torch nor one in /usr/local/lib",
                    f"or name the interpreter of a virtual environment that has it, as Python= in {service.section}",
                    "apt-get install --yes python3-torch",
                )
            continue
        prefix = re.sub(r"/bin/[^/]+$", "", settings.python).lstrip("/")
        config = host.tree.text(f"{prefix}/pyvenv.cfg")
        if config is None or re.search(r"^include-system-site-packages\s*=\s*true", config, re.MULTILINE):
            continue
        if not any(host.tree.exists(folder) for folder in _in_lib(host, f"{prefix}/lib")):
            yield warn(
                f"the virtual environment of {service.title} has no torch",
                f"/{prefix}: no lib/python3*/site-packages/torch",
                f"/{prefix}/bin/pip install torch",
            )


def _in_lib(host: Host, lib: str) -> Iterator[str]:
    for name in host.tree.names(lib):
        if name.startswith("python3"):
            yield f"{lib}/{name}/site-packages/torch"
            yield f"{lib}/{name}/dist-packages/torch"

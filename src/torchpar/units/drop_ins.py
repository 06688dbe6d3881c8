"""Plan → UnitSet: the text of every drop-in, and the links that start enabled services at boot.

Unit text is read by administrators: keys in a fixed order, no timestamps and no line numbers, so that the same inputs
give the same bytes and an edit elsewhere in the conf changes nothing here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torchpar.conf.services import Service
from torchpar.conf.settings import InferSettings, TrainSettings
from torchpar.conf.values import MemoryPolicy, simple_path
from torchpar.contract.paths import CERTIFICATE, GUARD, KEY, STOP, TEMPLATES
from torchpar.contract.unit_names import guard_of
from torchpar.facts.exec_limits import LINE, size
from torchpar.facts.topology import HostFacts
from torchpar.plan.opened import opened_paths
from torchpar.plan.plan import Plan, ServicePlan, is_bound
from torchpar.plan.sandbox import needed_mounts, sandbox_settings
from torchpar.units.quoting import only_unit_text, quote_path, quote_word, quote_words, whole_line

if TYPE_CHECKING:
    import jinja2

# Where the package puts the template files, and where they are in the source tree.
_TEMPLATES = (Path(TEMPLATES), Path(__file__).parents[3] / "systemd")

# RDMA's connection manager. It is one of the kernel's many "misc" devices, so the template unit cannot allow it by its
# driver; and of a path that is not there systemd 252 warns at every start.
CONNECTION_MANAGER = "/dev/infiniband/rdma_cm"

# After the grace ExecStop= sends SIGTERM, and SIGKILL ten seconds later.
AFTER_GRACE = 15

# NVIDIA, AMD and Intel; of others what is of class 0x12, processing accelerators, computes.
_GPU_VENDORS = ("0x10de", "0x1002", "0x8086")

# What a stop may take beyond DrainDelay= and DrainTimeout=, which the server keeps by itself.
STOP_SECONDS = 10

_SAY = "'echo \"$1\" >&2; exit 78'"


@dataclass(frozen=True)
class UnitSet:
    """Rendered units: relative path → text, and relative path of a link → its target."""

    files: Mapping[str, str]
    links: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def make_units(plan: Plan) -> UnitSet:
    """Makes the drop-in of every planned service. The same plan gives the same bytes."""
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    warnings: list[str] = []
    for service in plan.services:
        files[drop_in_path(service.unit)] = _render(service, plan.facts, warnings)
        if service.listen:
            files[drop_in_path(socket_of(service.unit))] = _template("socket.conf.j2").render(
                source=_source(service), name=service.service.name, listen=service.listen, conflicts=service.slot_mates
            )
        if opened := opened_paths(service.service.known_to(plan.facts.systemd_version)):
            files[drop_in_path(guard_of(service.unit))] = _template("guard.conf.j2").render(
                source=_source(service),
                name=service.service.name,
                paths=[named.path for named in opened],
                command=(GUARD, service.unit, *(f"{named.key}={named.path}" for named in opened)),
            )
        if service.service.settings.enabled:
            template_unit = f"torchpar-{service.service.kind.value}@.service"
            links[f"torchpar.target.wants/{service.unit}"] = f"/usr/lib/systemd/system/{template_unit}"
    return UnitSet(files, links, tuple(warnings))


def make_refusal(unit: str, why: str) -> dict[str, str]:
    """Makes the drop-in of a service that does not fit the host any more: its start fails and says why."""
    message = quote_word(f"{why}; see: torchpar plan, torchpar apply")
    text = f"# Made by torchpar. Do not edit\n[Service]\nExecStartPre=\nExecStartPre=:/bin/sh -c {_SAY} sh {message}\n"
    return {drop_in_path(unit): text}


def drop_in_path(unit: str) -> str:
    """Returns the path of a unit's drop-in below the generator's directory; that of `systemctl edit` sorts after it."""
    return f"{unit}.d/20-torchpar.conf"


def socket_of(unit: str) -> str:
    """Returns the socket that holds the addresses of an inference service's unit."""
    return f"{unit.removesuffix('.service')}.socket"


def unit_of(path: str) -> str:
    """Returns the unit that a rendered file or link belongs to."""
    folder, _, name = path.partition("/")
    return name if folder.endswith(".wants") else folder.removesuffix(".d")


def _render(plan: ServicePlan, facts: HostFacts, warnings: list[str]) -> str:
    service, settings = plan.service.known_to(facts.systemd_version), plan.service.settings
    warnings += plan.service.left_out(facts.systemd_version)
    train, infer = service.train(), service.infer()
    identity = {
        "User": settings.user,
        "Group": settings.group,
        "WorkingDirectory": settings.working_directory,
    }
    limits = {
        **settings.limits(),
        "Restart": settings.restart.value,
        "TimeoutStopSec": f"{_stop_seconds(train, infer)}s",
    }
    directives: list[tuple[str, str]] = []
    if infer and infer.tls_certificate and infer.tls_key:
        # systemd reads both as root, of paths without //, and hands copies to the service's user; see systemd.exec(5).
        for name, path in ((CERTIFICATE, infer.tls_certificate), (KEY, infer.tls_key)):
            directives.append(("LoadCredential", quote_path(f"{name}:{simple_path(path)}")))
    directives += service.directives
    if not _may_use_devices(service, facts):
        directives.insert(0, ("PrivateDevices", "yes"))
    if infer and plan.gpus:
        # Device groups such as render and video do not exist in a user namespace of the unit's own.
        directives.insert(0, ("PrivateUsers", "no"))
    if train and any(nic.infiniband for nic in facts.nics):
        directives.insert(0, ("DeviceAllow", f"{CONNECTION_MANAGER} rw"))
    text = _template("service.conf.j2").render(
        source=_source(plan),
        name=service.name,
        mounts=needed_mounts(service),
        guarded=bool(opened_paths(service)),
        enabled=settings.enabled,
        conflicts=plan.slot_mates,
        start_limit="StartLimitIntervalSec=0" if train and train.nodes[1] > 1 else None,
        identity=[(key, value) for key, value in identity.items() if value is not None],
        sandbox=sandbox_settings(service),
        placement=placement_settings(plan, bound=is_bound(plan.unit, facts)),
        has_home=not service.own_user,
        environment=list(plan.environment.items()),
        command=plan.command,
        stop_command=(STOP, str(train.checkpoint_grace)) if train else (),
        reload=plan.reload_command,
        limits=list(limits.items()),
        directives=directives,
    )
    for line in text.split("\n"):
        if size(line) >= LINE:
            directive = line.partition("=")[0]
            key = {"ExecStart": "Arguments", "Environment": "Environment"}.get(directive, f"Service.{directive}")
            why = f"the line of the unit has {size(line):,} bytes, and systemd takes {LINE - 1:,}; use a file instead"
            raise service.refuse(key, "", why)
    return text


def _may_use_devices(service: Service, facts: HostFacts) -> bool:
    """Says whether the host has a device that the template unit allows (DeviceAllow=), or the conf allows more."""
    return bool(
        # Also those that have no driver yet.
        any(gpu.vendor in _GPU_VENDORS or (gpu.class_code or "").startswith("0x12") for gpu in facts.gpus)
        or any(nic.infiniband for nic in facts.nics)
        or any(key == "DeviceAllow" for key, _ in service.directives)
    )


def _stop_seconds(train: TrainSettings | None, infer: InferSettings | None) -> int:
    if train:
        return train.checkpoint_grace + AFTER_GRACE
    return infer.drain_delay + infer.drain_timeout + STOP_SECONDS if infer else 0


def _source(plan: ServicePlan) -> str:
    """Returns the file that declares a service."""
    return plan.service.place("").file


def placement_settings(plan: ServicePlan, *, bound: bool = True) -> list[tuple[str, str]]:
    """Makes the CPU and memory settings. Lists merge across drop-ins, so each is reset before it is set.

    AllowedCPUs= is there besides CPUAffinity=: on kernel 6.1 a sibling that turns the cpuset controller on resets a
    bare affinity. It stays where systemd could not set that one (not `bound`). It also allows the CPUs of the loader
    workers, on which no process starts. NUMAMask= stays empty for the policies that take no node.
    """
    cpus, nodes, allowed_nodes = str(plan.cpus), str(plan.memory.nodes), str(plan.memory.allowed_nodes)
    pairs = [("CPUAffinity", ""), *([("CPUAffinity", cpus)] if bound else [])]
    pairs += [("AllowedCPUs", ""), ("AllowedCPUs", str(plan.allowed_cpus))]
    if allowed_nodes:
        pairs += [("AllowedMemoryNodes", ""), ("AllowedMemoryNodes", allowed_nodes)]
    pairs.append(("NUMAMask", ""))
    if plan.memory.policy is not MemoryPolicy.DEFAULT:
        pairs.append(("NUMAPolicy", plan.memory.policy.value))
    if nodes:
        pairs.append(("NUMAMask", nodes))
    return pairs


@functools.cache
def _template(name: str) -> jinja2.Template:
    import jinja2  # an eighth of the start of a command, and most render nothing

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(path) for path in _TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=only_unit_text,
    )
    environment.filters.update(word=quote_word, words=quote_words, path=quote_path, line=whole_line)
    return environment.get_template(name)

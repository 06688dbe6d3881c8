"""Which drop-ins of an administrator win over those of torchpar."""

from __future__ import annotations

import pytest

from torchpar.verify.overrides import find_overrides

OURS = """\
# Made by torchpar.
[Unit]
SourcePath=/etc/torchpar.conf
[Service]
CPUAffinity=
CPUAffinity=0-1
AllowedCPUs=0-1
MemoryMax=1G
Environment="OMP_NUM_THREADS=2"
Environment=LD_PRELOAD=/a.so
ExecStartPre=
"""
EDIT = "/etc/systemd/system/a.service.d/override.conf"
LIVE = "/run/systemd/system.control/a.service.d/50-AllowedCPUs.conf"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("[Service]\nCPUAffinity=0\n", ("CPUAffinity",)),
        ("[Service]\nMemoryMax=2G\nCPUAffinity=\nCPUAffinity=1\n", ("MemoryMax", "CPUAffinity")),
        ("[Service]\nMemoryMax = 1G\n", ()),
        ("[Service]\nNice=5\n# CPUAffinity=0\nSourcePath=/x\n", ()),
        ("[Service]\nEnvironment=DEBUG=1\nExecStartPre=/bin/true\n", ()),
        ("[Service]\nEnvironment=DEBUG=1 'OMP_NUM_THREADS=8'\n", ("Environment",)),
        ("[Service]\nEnvironment=\n", ("Environment",)),
        ("CPUAffinity=\\\n0\n", ("CPUAffinity",)),
        ("", ()),
    ],
)
def test_what_an_edit_sets_otherwise_is_found(text: str, keys: tuple[str, ...]) -> None:
    """And not what it adds, what torchpar does not set, or what is the same."""
    assert find_overrides(OURS, {EDIT: text}) == ({EDIT: keys} if keys else {})


def test_cpus_that_a_service_has_for_now_are_no_override() -> None:
    """`systemctl set-property` and arbitration move them; verify compares where the service is."""
    assert find_overrides(OURS, {LIVE: "[Service]\nAllowedCPUs=3\n"}) == {}
    assert find_overrides(OURS, {LIVE: "[Service]\nMemoryMax=3G\n"}) == {LIVE: ("MemoryMax",)}

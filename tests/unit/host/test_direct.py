"""To become a job in place of a unit: what cannot be is one line."""

from __future__ import annotations

import os
import pwd

import pytest

from torchpar.contract import mempolicy
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import NotPermittedError, TorchparError
from torchpar.host import direct

OWN = pwd.getpwuid(os.geteuid()).pw_name


def test_a_group_that_is_not_there_is_said() -> None:
    """As root without systemd; a unit would fail with status 216."""
    with pytest.raises(TorchparError, match="Group=no-such-group: there is no such group on this host"):
        direct.become(["/bin/true"], {}, user=OWN, group="no-such-group", directory="/")


def test_another_user_without_root_is_told_of_sudo_and_of_no_other_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torchpar nettest` comes here too."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "geteuid", lambda: 2**31)
    monkeypatch.setattr(os, "initgroups", refuse)
    with pytest.raises(NotPermittedError, match=f"to run as {OWN} this needs root; try the same with sudo$"):
        direct.become(["/bin/true"], {}, user=OWN, group=None, directory="/")


def test_a_memory_policy_that_cannot_be_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter of system calls of most containers refuses it."""

    def refuse(mode: int, nodes: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mempolicy, "set_memory_policy", refuse)
    said = direct.set_memory_policy("bind", CpuSet([0, 1]))
    assert said.startswith("memory policy bind 0-1: Operation not permitted; ") and said.endswith("CAP_SYS_NICE")

"""Holds the systemd of tests to what it stands for: it is asked as the real one is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.generations.fake_systemd import FakeSystemd
from torchpar.daemon import watch
from torchpar.generations import apply
from torchpar.generations.enforce import LiveSystemd
from torchpar.host import systemd


def parameters(function: Any) -> list[tuple[str, object, object]]:
    """Returns the name, the kind and the default of what a function takes, but for the `self` of a method."""
    taken = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in taken if each.name != "self"]


def doors() -> Iterator[Any]:
    """Yields each function of the doors to systemd, and who opens it on a host."""
    for protocol, live in ((watch.Systemd, systemd), (apply.Systemd, LiveSystemd)):
        for name in dir(protocol):
            if not name.startswith("_"):
                yield pytest.param(protocol, live, name, id=f"{protocol.__module__}.{name}")


@pytest.mark.parametrize(("protocol", "live", "name"), doors())
def test_the_systemd_of_tests_is_asked_as_the_real_one_is(protocol: Any, live: Any, name: str) -> None:
    """And both as the rooms that ask them say."""
    said = parameters(getattr(protocol, name))
    assert parameters(getattr(live, name)) == parameters(getattr(FakeSystemd, name)) == said

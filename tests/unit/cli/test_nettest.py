"""`torchpar nettest` where there is nothing to test: it says what is missing."""

from __future__ import annotations

import pytest

from tests.unit.hosts import make_host
from torchpar.cli.nettest import _find
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("[Train a]\nScript=/a.py\n", r"^/c:1: \[Train a\] runs on one host; Nodes= is how many$"),
        ("[Infer a]\nModel=/m.pt\n", r"^\[Infer a\] is no training service"),
    ],
)
def test_a_service_without_other_hosts_is_refused(conf: str, message: str) -> None:
    """With the section and the key."""
    config = parse_config([ConfFile("/c", conf)], make_host())
    with pytest.raises(ConfigError, match=message):
        _find(config.find("a"))

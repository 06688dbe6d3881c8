"""OPTIONS, as load balancers and browsers send it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.serve.running import Running, running

HEALTH = ("/", "*", "/v2/health/ready")
ABSOLUTE = ("http://x", "http://x/", "http://x?a=/b", "HTTP://x/v2/health/live", "https://x:80/v2/health/ready", "Https://x")


@pytest.fixture(scope="module")
def world() -> Iterator[Running]:
    with running() as started:
        yield started


def options(world: Running, target: str, *fields: str, version: str = "1.1") -> tuple[int, dict[str, str]]:
    """The status and the header fields; no body comes after a 200."""
    with socket.create_connection(("127.0.0.1", world.port), timeout=300) as client:
        lines = [f"OPTIONS {target} HTTP/{version}", *(["Host: x"] if version == "1.1" else []), *fields]
        client.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        text = b""
        while part := client.recv(65536):
            text += part
    head, _, body = text.decode().partition("\r\n\r\n")
    first, *rest = head.split("\r\n")
    status, named = int(first.split()[1]), (line.partition(": ") for line in rest)
    assert status != 200 or body == ""
    return status, {name.lower(): value for name, _, value in named}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("target", [*HEALTH, "/v2/health/live", *ABSOLUTE])
def test_a_load_balancers_check_finds_the_server_well(world: Running, target: str, version: str) -> None:
    """HAProxy's default is OPTIONS / HTTP/1.0 without Host."""
    status, fields = options(world, target, version=version)
    assert (status, fields["content-length"]) == (200, "0")
    assert {"GET", "HEAD", "OPTIONS"} <= set(fields["allow"].split(", "))


def test_the_check_fails_where_the_server_is_not_ready(world: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.engine, "ready", lambda *_: False)
    for target in (*HEALTH, "/v2/models/simple/ready"):
        assert options(world, target)[0] == 503
    assert options(world, "/v2/health/live")[0] == 200


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("/predict", "POST, OPTIONS"),
        ("/predict/simple", "POST, OPTIONS"),
        ("/v2/models/simple/infer", "POST, OPTIONS"),
        ("/v2/models/simple/versions/1/infer", "POST, OPTIONS"),
        ("/v2/models/simple", "GET, HEAD, OPTIONS"),
        ("/v2/logging", "GET, HEAD, POST, OPTIONS"),
        ("/v2/repository/models/simple/load", "POST, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
    ],
)
def test_what_a_path_takes_is_told_and_not_done(world: Running, target: str, allowed: str) -> None:
    asked = len(world.engine.requests)
    status, fields = options(world, target)
    assert (status, fields["allow"]) == (200, allowed)
    assert len(world.engine.requests) == asked


def test_a_page_of_another_origin_is_allowed_nothing(world: Running) -> None:
    preflight = ("Origin: http://elsewhere", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: a")
    _, fields = options(world, "/predict", *preflight)
    assert not [name for name in fields if name.startswith("access-control-")]


def test_what_is_not_there_has_no_methods(world: Running) -> None:
    assert options(world, "/nothing")[0] == 404

"""The same over TLS: what is refused is still told, and a handshake that does not come ends."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.serve.http.conversation import World, converse, until
from torchpar.serve.limits import Limits

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl"),
]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's, and a client's that trusts it."""
    directory: Path = tmp_path_factory.mktemp("tls")
    key, certificate = str(directory / "key"), str(directory / "certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


def test_requests_large_answers_and_refusals(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, trusting = contexts

    async def story(world: World) -> None:
        client = await world.connect(tls=trusting)
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
        client.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert len((await client.answer())[2]) == 10_000_000
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000000\r\n\r\n")
        assert (await client.answer())[0] == 413

    converse(story, tls=server)


def test_a_client_that_does_not_shake_hands_is_gone_soon(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, trusting = contexts

    async def story(world: World) -> None:
        silent = await world.connect()
        assert await silent.rest() == b""
        plain = await world.connect()
        plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not (await plain.rest()).startswith(b"HTTP/1.1 200")
        client = await world.connect(tls=trusting)
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer())[0] == 200
        client.writer.close()
        await until(lambda: world.server.state.connections() == 0)

    converse(story, Limits(header_seconds=0.5), tls=server)

"""The sockets that systemd passes, where they may be, and HTTPS on them."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from torchpar.serve.errors import StartError
from torchpar.serve.sockets import adopt_sockets, is_loopback, refuse_unnamed, split_by_protocol
from torchpar.serve.tls import make_tls


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("fe80::1%eth0", False),
    ],
)  # fmt: skip
def test_loopback_is_what_only_this_host_reaches(host: str, loopback: bool) -> None:
    """A wildcard is everybody."""
    assert is_loopback(host) is loopback


def test_other_hosts_reach_only_what_listen_names() -> None:
    """A socket unit alone, given another address by a drop-in, does not open the service to others."""
    everybody = socket.create_server(("0.0.0.0", 0))
    here = socket.create_server(("127.0.0.1", 0))
    try:
        address = f"0.0.0.0:{everybody.getsockname()[1]}"
        refuse_unnamed([here, everybody], ["127.0.0.1:1", address])
        with pytest.raises(StartError, match=f"^{address} can be reached from other hosts, and Listen= "):
            refuse_unnamed([here, everybody], ["127.0.0.1:1"])
    finally:
        everybody.close()
        here.close()


def test_sockets_are_told_apart_by_their_addresses(tmp_path: Path) -> None:
    """Listen= names those of gRPC; a Unix socket, which a drop-in may add, is for HTTP."""
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(tmp_path / "s"))
    several = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    several += [local, socket.create_server(("::1", 0), family=socket.AF_INET6)]
    try:
        four = f"127.0.0.1:{several[1].getsockname()[1]}"
        six = f"[::1]:{several[3].getsockname()[1]}"
        found = split_by_protocol(several, [six, "0.0.0.0:1", four])
        assert found == ([several[0], local], [several[3], several[1]], ["0.0.0.0:1"])
    finally:
        for each in several:
            each.close()


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}],
)
def test_without_a_socket_there_is_nothing_to_serve_on(environ: dict[str, str]) -> None:
    """Nor are those of another process taken, which have the same numbers."""
    with pytest.raises(StartError, match="no socket was passed, .*: systemctl status torchpar-infer@a.socket$"):
        adopt_sockets(environ, "torchpar-infer@a.service")
    assert not environ


def test_without_a_certificate_it_is_plain_http(tmp_path: Path) -> None:
    """Other credentials of the service mean nothing here."""
    (tmp_path / "token").write_text("x")
    assert make_tls({}) is None
    assert make_tls({"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None


@pytest.mark.subprocess
def test_a_certificate_that_is_of_no_use_is_refused(tmp_path: Path) -> None:
    """At the start, with the names of the keys, rather than at the first connection."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    for name in ("a", "b"):
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        files = ["-subj", "/CN=localhost", "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.crt"]
        subprocess.run([*make, *files], check=True, capture_output=True)
    certificate, key = tmp_path / "tls-certificate", tmp_path / "tls-key"
    shutil.copy(tmp_path / "a.crt", certificate)
    shutil.copy(tmp_path / "b.key", key)
    with pytest.raises(StartError, match="^TLSCertificate= and TLSKey= cannot be used together: "):
        make_tls({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    shutil.copy(tmp_path / "a.key", key)
    context = make_tls({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert context and context.minimum_version == ssl.TLSVersion.TLSv1_2

"""The HAProxy configuration of services that several hosts serve: its text, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.hosts import exported, make_host
from torchpar.cli.main import run
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError
from torchpar.fleet.haproxy import Balancer, Frontend, find_offers, make_haproxy
from torchpar.plan.plan import Plan, make_plan

WEB = "[Infer web]\nModel=/m.pt\nListen=*:8000 grpc:*:8001\nDrainDelay=5s\n"

SECTIONS = """\
frontend web-http from torchpar
    bind [::]:8000 v4v6
    default_backend web-http

backend web-http from torchpar
    option httpchk
    http-check send meth GET uri /v2/health/ready ver HTTP/1.1 hdr Host web
    http-check expect status 200
    default-server check inter 1s fastinter 500ms downinter 1s fall 2 rise 2 maxconn 500 pool-max-conn 500
    server gpu1 gpu1:8000 weight 43
    server gpu2 gpu2:8000 weight 100

frontend web-grpc from torchpar
    bind [::]:8001 v4v6
    default_backend web-grpc

backend web-grpc from torchpar
    option httpchk
    http-check send meth GET uri /v2/health/ready ver HTTP/1.1 hdr Host web
    http-check expect status 200
    default-server check inter 1s fastinter 500ms downinter 1s fall 2 rise 2 maxconn 500 pool-max-conn 500
    server gpu1 gpu1:8001 proto h2 check-proto h1 port 8000 weight 43
    server gpu2 gpu2:8001 proto h2 check-proto h1 port 8000 weight 100
"""


def make(conf: str = WEB, *, host: str = "", cores: int = 4) -> Plan:
    facts = make_host(hostname=host or "gpu1", cores_per_complex=cores)
    return make_plan(parse_config((ConfFile("/etc/torchpar.conf", conf),), facts), facts)


def balance(*plans: Plan, name: str | None = None, frontend: Frontend | None = None) -> Balancer:
    offers = [offer for plan in plans for offer in find_offers(plan, name)]
    return make_haproxy(offers, frontend or Frontend())


def test_each_protocol_has_a_backend_with_all_hosts_by_their_cores() -> None:
    """The health of gRPC is asked for over HTTP, too; whatever order the hosts come in, the text is the same."""
    hosts = make(host="gpu2", cores=8), make()
    made = balance(*hosts)
    assert made.text.endswith(f"\n{SECTIONS}") and made.warnings == ()
    assert made.text.startswith("# Made by torchpar fleet haproxy: web; 2 hosts.\nglobal\n")
    assert balance(*reversed(hosts)) == made


def test_nothing_that_a_model_may_have_computed_is_sent_twice() -> None:
    """Only what has found no connection is sent to another host."""
    assert re.findall(r"^ *(retry-on .*)$", balance(make()).text, re.MULTILINE) == ["retry-on conn-failure"]


def test_one_service_can_be_chosen_and_listened_for_elsewhere() -> None:
    """--service and --listen: the hosts' ports may then differ."""
    plans = make(), make(WEB.replace("800", "900") + WEB.replace("web", "spare").replace("800", "700"), host="gpu2")
    with pytest.raises(ConfigError, match=r"\[Infer web\] has ports 8000, 9000: give --listen \*:PORT"):
        balance(*plans)
    listen = ("192.0.2.9:80", "grpc:[::]:81")
    text = balance(*plans, name="web", frontend=Frontend(listen)).text
    assert "    bind 192.0.2.9:80\n" in text and "    bind [::]:81 v4v6\n" in text and "spare" not in text
    assert "server gpu1 gpu1:8000 " in text and "server gpu2 gpu2:9001 proto h2 check-proto h1 port 9000 " in text
    with pytest.raises(ConfigError, match="answers gRPC, too: give --listen for that"):
        balance(*plans, name="web", frontend=Frontend(listen[:1]))


def test_a_service_that_others_do_not_reach_is_left_out_and_named() -> None:
    """Also one of which only gRPC is reached: it has no health then."""
    alone = make("[Infer web]\nModel=/m.pt\nListen=grpc:*:8001\n", host="gpu2")
    made = balance(make(), alone, make("[Train t]\nScript=/t.py\n", host="gpu3"))
    assert "gpu2" not in made.text and "gpu3" not in made.text
    assert made.warnings == (
        "gpu2: /etc/torchpar.conf:3: [Infer web] is left out: HTTP, by which its health is checked, answers that host "
        "alone; write Listen=*:8000",
        "[Infer web] is on gpu1 alone: nobody answers while it is stopped",
    )
    with pytest.raises(ConfigError, match=r"Listen=\*:8000\nno host has an inference service that other hosts reach"):
        balance(alone, name="web")


def test_a_host_that_would_keep_requests_waiting_is_named() -> None:
    """HAProxy has to see a stop before it begins."""
    hasty = WEB.replace("DrainDelay=5s\n", "")
    made = balance(make(), *(make(hasty, host=f"h{number}") for number in range(7)))
    (warning,) = made.warnings
    assert "no DrainDelay= of 3s or more on h0, h1, h2, h3, h4 and 2 more: " in warning


def test_https_is_not_opened_up_by_the_way() -> None:
    """Clients get HTTPS from HAProxy as well, and HAProxy looks whom it talks to."""
    conf = f"{WEB}TLSCertificate=/c.pem\nTLSKey=/k.pem\n"
    with pytest.raises(ConfigError, match="in the clear: give --certificate FILE"):
        balance(make(conf))
    text = balance(make(conf), frontend=Frontend(certificate="/etc/my cert.pem")).text
    assert "bind [::]:8000 v4v6 ssl crt /etc/my\\ cert.pem alpn h2,http/1.1\n" in text
    verify = "ca-file /etc/ssl/certs/ca-certificates.crt verify required verifyhost gpu1"
    assert f"server gpu1 gpu1:8000 ssl {verify} sni str(gpu1) check-sni gpu1 weight 100\n" in text
    assert f" gpu1:8001 proto h2 check-proto h1 port 8000 check-ssl {verify} check-sni gpu1 weight 100\n" in text


def test_the_health_of_grpc_is_asked_for_where_http_is() -> None:
    """Each may have an address of its own."""
    conf = WEB.replace("*:8000 grpc:*:8001", "192.0.2.1:8000 grpc:[2001:db8::1]:8001 127.0.0.1:8002")
    line = "server gpu1 [2001:db8::1]:8001 proto h2 check-proto h1 addr 192.0.2.1 port 8000 weight 100\n"
    assert line in balance(make(conf)).text


@pytest.mark.parametrize("host", ["gpu 1", "gpu1\nglobal", "-x", "a" * 300, "ü"])
def test_a_name_that_is_none_of_a_host_is_refused(host: str) -> None:
    """Facts are what some host says of itself, and HAProxy's words are not escaped in its lines."""
    with pytest.raises(ConfigError, match="is no name by which HAProxy could reach a host"):
        balance(make(host=host))


def test_two_services_cannot_have_one_address() -> None:
    """HAProxy would give its connections to either."""
    spare = make(WEB.replace("web", "spare"), host="gpu2")
    with pytest.raises(ConfigError, match=r"with --service and --listen, .* address: \[::\]:8000, \[::\]:8001"):
        balance(make(), spare)


def test_the_command_prints_it_for_all_hosts_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No facts are passed over: HAProxy would send that host nothing, and nobody would know."""

    def haproxy(*more: str) -> tuple[int, str, str]:
        where = ("--facts", str(tmp_path / "facts"), "--config", str(tmp_path / "conf"))
        status = run(["fleet", "haproxy", *where, *more])
        return (status, *capsys.readouterr())

    (tmp_path / "facts").mkdir()
    (tmp_path / "conf").write_text(WEB)
    status, printed, said = haproxy()
    assert (status, printed) == (3, "") and "has no facts in it" in said
    for name, cores in (("gpu1", 4), ("gpu2", 8)):
        host = make_host(hostname=name, cores_per_complex=cores)
        (tmp_path / "facts" / name).write_text(exported(host))
    assert haproxy() == (0, balance(make(), make(host="gpu2", cores=8)).text, "")
    status, printed, said = haproxy("--service", "nosuch")
    assert (status, printed) == (78, "") and "no host has an inference service that other hosts reach" in said
    status, printed, said = haproxy("--listen", "nosuch")
    assert (status, printed) == (64, "") and "'nosuch' is not ADDRESS:PORT" in said
    (tmp_path / "conf").write_text(f"{WEB}Enabled=yes\nCPUs=0-5\n")
    status, printed, said = haproxy()
    assert (status, printed) == (78, "") and re.search(r"(?m)^torchpar: gpu1: .*:6: \[Infer web\] CPUs=0-5: ", said)
    (tmp_path / "facts/gpu1").write_text("{")
    status, printed, said = haproxy()
    assert (status, printed) == (3, "") and "facts/gpu1: " in said

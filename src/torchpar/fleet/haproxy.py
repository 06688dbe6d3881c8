"""Makes a HAProxy configuration that divides the requests of inference services among the hosts that serve them.

It is for HAProxy 2.6, which Debian 12 has, and later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchpar.contract.errors import ConfigError, printable
from torchpar.plan.listening import addresses
from torchpar.plan.plan import Plan, ServicePlan

# Connections to one server, of the 1024 that a serving process takes before it closes idle ones: two load balancers
# together keep below that.
_MOST_CONNECTIONS = 500
# As many as HAProxy's checks need to see that a server is not ready: two, one second and half a second apart.
SEEN_SECONDS = 3

_GLOBAL = """\
global
    log /dev/log local0
    chroot /var/lib/haproxy
    stats socket /run/haproxy/admin.sock mode 660 level admin
    user haproxy
    group haproxy

defaults torchpar
    log global
    mode http
    option httplog
    # A line for each request would be thousands a second: for those alone that went wrong.
    option dontlog-normal
    option dontlognull
    option log-health-checks
    # So that a server knows that it is not asked from its own host, which alone may load and unload models.
    option forwardfor
    # Who has gone is not computed for.
    option abortonclose
    balance leastconn
    # Another host is asked only where no connection came about. What was sent may have been computed, and is not sent
    # twice: some models count, write, or kill the process that computes them.
    retries 3
    retry-on conn-failure
    option redispatch 1
    timeout connect 2s
    timeout http-request 10s
    timeout http-keep-alive 60s
    timeout queue 30s
    # The longest that a model may take, or a stream may be silent.
    timeout client 5m
    timeout server 5m
    timeout check 2s
    # The server's own answers are JSON, too.
    http-error status 502 content-type application/json string '{"error":"the host was lost while it answered"}'
    http-error status 503 content-type application/json string '{"error":"no host is ready"}' hdr Retry-After 1
    http-error status 504 content-type application/json string '{"error":"the host has not answered in time"}'
"""

_BACKEND = """\
    option httpchk
    http-check send meth GET uri /v2/health/ready ver HTTP/1.1 hdr Host {name}
    http-check expect status 200
    default-server check inter 1s fastinter 500ms downinter 1s fall 2 rise 2 maxconn {most} pool-max-conn {most}
"""


@dataclass(frozen=True)
class Server:
    """A host that serves: where others reach its HTTP and, where it has any, its gRPC, each as address and port.

    `cores` are those that its service computes on; `tls` says that HTTP is HTTPS; `drain_delay` is in seconds.
    """

    host: str
    http: tuple[str, int]
    grpc: tuple[str, int] | None
    cores: int
    tls: bool
    drain_delay: int


@dataclass(frozen=True)
class Offer:
    """A service on a host, and its server; without one, `why` others cannot reach it."""

    service: str
    server: Server | None
    why: str = ""


@dataclass(frozen=True)
class Frontend:
    """The addresses where HAProxy listens for a service, as parse_listen() returns them, none: the servers' ports; and
    the file of a certificate with its key for clients, None where they speak in the clear."""

    listen: tuple[str, ...] = ()
    certificate: str | None = None


@dataclass(frozen=True)
class Balancer:
    """The text of the configuration, and what to mend on the hosts."""

    text: str
    warnings: tuple[str, ...]


def find_offers(plan: Plan, name: str | None = None) -> tuple[Offer, ...]:
    """Finds what a host has of the inference service of this name, None: of all. Raises ConfigError."""
    services = [each for each in plan.services if each.service.infer() and name in (None, each.service.name)]
    return tuple(_offer(plan.facts.hostname, each) for each in services)


def make_haproxy(offers: Sequence[Offer], frontend: Frontend) -> Balancer:
    """Makes the configuration for all services that hosts offer.

    Raises ConfigError where none is offered, or what the hosts have does not go together.
    """
    found: dict[str, list[Server]] = {}
    warnings = [offer.why for offer in offers if offer.why]
    for offer in offers:
        if offer.server:
            found.setdefault(offer.service, []).append(offer.server)
    if not found:
        raise ConfigError([*warnings, "no host has an inference service that other hosts reach"])
    for name, servers in found.items():
        warnings += _doubts(name, servers)
    texts = [_service(name, servers, frontend) for name, servers in sorted(found.items())]
    binds = [bind for text in texts for bind in re.findall(r"^    bind (\S+)", text, re.MULTILINE)]
    twice = sorted({bind for bind in binds if binds.count(bind) > 1})
    if twice:
        why = "write each service alone, with --service and --listen, as they would share an address"
        raise ConfigError([f"{why}: {', '.join(twice[:5])}"])
    hosts = {server.host for servers in found.values() for server in servers}
    head = f"# Made by torchpar fleet haproxy: {', '.join(sorted(found))}; {len(hosts)} host{'s'[len(hosts) == 1:]}.\n"
    return Balancer("\n".join([head + _GLOBAL, *texts]), tuple(warnings))


def _offer(host: str, service: ServicePlan) -> Offer:
    infer = service.service.infer()
    assert infer
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?", host):
        raise ConfigError([f"'{printable(host, 80)}' is no name by which HAProxy could reach a host"])
    http, grpc = ([each for each in map(_split, some) if not _is_loopback(each[0])] for some in addresses(infer))
    if not http:
        why = (
            f"{host}: {service.service.origin('Listen')}: {service.service.section} is left out: HTTP, by which its "
            "health is checked, answers that host alone; write Listen=*:8000"
        )
        return Offer(service.service.name, None, why)
    own = [(host if address in ("0.0.0.0", "[::]") else address, port) for address, port in (http[0], *grpc[:1])]
    tls = infer.tls_certificate is not None
    server = Server(host, own[0], own[1] if grpc else None, service.cores, tls, infer.drain_delay)
    return Offer(service.service.name, server)


def _doubts(name: str, servers: Sequence[Server]) -> Iterator[str]:
    hasty = [server.host for server in servers if server.drain_delay < SEEN_SECONDS]
    if hasty:
        some = f"{', '.join(hasty[:5])}{f' and {len(hasty) - 5} more' if len(hasty) > 5 else ''}"
        yield (
            f"[Infer {name}] has no DrainDelay= of {SEEN_SECONDS}s or more on {some}: when it is stopped there, "
            "requests still come for a second or two and wait for its next start; write DrainDelay=5s"
        )
    if len(servers) == 1:
        yield f"[Infer {name}] is on {servers[0].host} alone: nobody answers while it is stopped"


def _service(name: str, servers: Sequence[Server], frontend: Frontend) -> str:
    if any(server.tls for server in servers) and frontend.certificate is None:
        what = (
            f"[Infer {name}] is HTTPS (TLSCertificate=), and its clients would speak to HAProxy in the clear: give "
            "--certificate FILE, a certificate with its key that HAProxy is to show them"
        )
        raise ConfigError([what])
    grpc = [server for server in servers if server.grpc]
    parts = [_pair(name, _binds(name, servers, frontend, ""), servers, "http")]
    if grpc:
        parts.append(_pair(name, _binds(name, grpc, frontend, "grpc:"), grpc, "grpc"))
    return "\n".join(parts)


def _pair(name: str, binds: Sequence[str], servers: Sequence[Server], protocol: str) -> str:
    title = f"{name}-{protocol}"
    most = max(server.cores for server in servers)
    lines = [f"frontend {title} from torchpar", *binds, f"    default_backend {title}", ""]
    lines += [f"backend {title} from torchpar", _BACKEND.format(name=name, most=_MOST_CONNECTIONS).rstrip("\n")]
    for server in sorted(servers, key=lambda server: server.host):
        lines.append(f"    server {server.host} {_where(server, protocol)} weight {_weight(server.cores, most)}")
    return "\n".join(lines) + "\n"


def _where(server: Server, protocol: str) -> str:
    """Says where a server is asked, and where its health, which it tells over HTTP."""
    verify = f"ca-file /etc/ssl/certs/ca-certificates.crt verify required verifyhost {server.host}"
    address, port = server.http
    if protocol == "http":
        more = f" ssl {verify} sni str({server.host}) check-sni {server.host}" if server.tls else ""
        return f"{address}:{port}{more}"
    assert server.grpc
    more = f" check-ssl {verify} check-sni {server.host}" if server.tls else ""
    elsewhere = "" if server.grpc[0] == address else f" addr {address.strip('[]')}"
    # HAProxy 2.6 and 3.0 take check-proto from no default-server line, without a word.
    return f"{server.grpc[0]}:{server.grpc[1]} proto h2 check-proto h1{elsewhere} port {port}{more}"


def _weight(cores: int, most: int) -> int:
    """Weighs a host by its cores, at most 256 for HAProxy; one with few of them still gets some."""
    return max(1, round(100 * cores / most))


def _binds(name: str, servers: Sequence[Server], frontend: Frontend, protocol: str) -> list[str]:
    given = [text.removeprefix("grpc:") for text in frontend.listen if text.startswith("grpc:") == bool(protocol)]
    if frontend.listen and not given:
        raise ConfigError([f"[Infer {name}] answers {'gRPC' if protocol else 'HTTP'}, too: give --listen for that"])
    if not given:
        ports = {server.grpc[1] if protocol and server.grpc else server.http[1] for server in servers}
        if len(ports) > 1:
            some = ", ".join(map(str, sorted(ports)))
            raise ConfigError([f"[Infer {name}] has ports {some}: give --listen {protocol}*:PORT for its clients"])
        given = [f"[::]:{port}" for port in ports]
    tls = ""
    if frontend.certificate:
        tls = f" ssl crt {_quote(frontend.certificate)} alpn {'h2' if protocol else 'h2,http/1.1'}"
    return [f"    bind {address}{' v4v6' if address.startswith('[::]') else ''}{tls}" for address in given]


def _quote(word: str) -> str:
    return re.sub(r"([^A-Za-z0-9_./+@:-])", r"\\\1", word)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "[::1]"

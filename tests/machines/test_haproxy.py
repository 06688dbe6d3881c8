"""Two booted hosts that serve one model, and Debian's HAProxy before them: each is restarted, and nobody notices."""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.machines.container import missing_here
from tests.machines.machine import PATIENCE, Machine
from tests.machines.package import build_package
from tests.machines.roots import Suite, installed_root
from tests.machines.test_infer import MODEL

SERVICE = "torchpar-infer@web.service"

NAMES = "gpu1", "gpu2"
# The machines share one network, so each has ports of its own: of HTTP, and one above it of gRPC. So has each HAProxy.
PORTS = 18000, 18010
BALANCERS = 18100, 18110

CONF = """\
[Match]
Host={host}

[Infer web]
Model=/srv/web/model.pt
Listen=*:{port} grpc:*:{grpc}
DrainDelay=5min
DrainTimeout=20s
"""

# Clients of HTTP on the ports of its arguments and of gRPC above them, that ask one question after the other on kept
# connections until stdin ends. Then: how many right answers each had, and all that went wrong.
CLIENTS = """\
import collections, grpc, http.client, json, struct, sys, threading

answers, wrong, end = collections.Counter(), [], threading.Event()
numbers = struct.pack("<3f", 1, 2, 3)

def field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data

tensor = field(1, b"i") + field(2, b"FP32") + field(3, bytes([1, 3]))
message = field(1, b"web") + field(5, tensor) + field(7, numbers)

def ask_http(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    while True:
        connection.request("POST", "/predict", "[1.0, 2.0, 3.0]")
        answer = connection.getresponse()
        text = answer.read()
        right = answer.status == 200 and json.loads(text) == {"outputs": {"o": [1.0, 2.0, 3.0]}}
        yield right or f"{answer.status} {text}"

def ask_grpc(port):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    while True:
        answer = infer(message, timeout=300)
        yield answer.endswith(numbers) or repr(answer)

def run(name, ask, port):
    while not end.is_set():
        try:
            for said in ask(port):
                if said is True:
                    answers[f"{name} {port}"] += 1
                else:
                    wrong.append(f"{name} {port}: {said}")
                if end.wait(0.005):
                    return
        except Exception as error:
            wrong.append(f"{name} {port}: {error!r}")
            end.wait(0.05)

threads = []
for port in map(int, sys.argv[1:]):
    for argument in ("http", ask_http, port), ("http", ask_http, port), ("grpc", ask_grpc, port + 1):
        threads.append(threading.Thread(target=run, args=argument))
for thread in threads:
    thread.start()
sys.stdin.read()
end.set()
for thread in threads:
    thread.join()
print(json.dumps({"answers": answers, "wrong": wrong}))
"""

STATISTICS = """\
import socket
door = socket.socket(socket.AF_UNIX)
door.connect("/run/haproxy/admin.sock")
door.sendall(b"show stat\\n")
print("".join(iter(lambda: door.recv(65536).decode(), "")), end="")
"""


def prepare(machine: Machine, name: str, progress: Callable[[str], None]) -> None:
    """Give the host its name, and install the package, a HAProxy and a model."""
    machine.sh('echo "$1" >/etc/hostname; hostname "$1"', name)
    for host in NAMES:
        machine.sh('echo "127.0.0.1 $1" >>/etc/hosts', host)
    machine.install_deb(build_package(machine.suite, progress))
    machine.install("haproxy", "python3-grpcio", recommends=False)
    machine.write("/srv/web/make_model.py", MODEL)
    machine.run("/usr/bin/python3", "/srv/web/make_model.py")
    machine.run("mv", "/srv/web/times-1.pt", "/srv/web/model.pt")
    machine.write("/srv/clients.py", CLIENTS)
    # All hosts have the same conf, and each takes its part.
    for host, port in zip(NAMES, PORTS, strict=True):
        machine.write(f"/etc/torchpar.conf.d/50-{host}.conf", CONF.format(host=host, port=port, grpc=port + 1))
    machine.run("torchpar", "apply")
    machine.run("systemctl", "start", SERVICE)


@pytest.fixture(scope="module")
def hosts(ports: None, progress: Callable[[str], None]) -> Iterator[tuple[Machine, Machine]]:
    """A host of each release, with one conf, and with a HAProxy of its own that knows both."""
    if missing := missing_here():
        pytest.fail(missing, pytrace=False)
    suites = [Suite(os.environ["SUITE"])] * 2 if os.environ.get("SUITE") else list(Suite)
    with contextlib.ExitStack() as stack:
        booted = [
            stack.enter_context(Machine(suite, f"web{number}", root=installed_root(suite), report=progress))
            for number, suite in enumerate(suites)
        ]
        with concurrent.futures.ThreadPoolExecutor() as both:
            list(both.map(lambda machine, name: prepare(machine, name, progress), booted, NAMES))
        facts = [machine.run("torchpar", "facts").stdout for machine in booted]
        for machine, port in zip(booted, BALANCERS, strict=True):
            for name, text in zip(NAMES, facts, strict=True):
                machine.write(f"/srv/facts/{name}.json", text)
            listen = ("--listen", f"127.0.0.1:{port}", "--listen", f"grpc:127.0.0.1:{port + 1}")
            machine.sh('torchpar fleet haproxy --facts /srv/facts "$@" >/srv/new.cfg', *listen)
        yield booted[0], booted[1]


def servers(machine: Machine) -> list[dict[str, str]]:
    """What HAProxy there counts of each server."""
    table = machine.run("/usr/bin/python3", "-c", STATISTICS).stdout.removeprefix("# ").splitlines()
    return [row for row in csv.DictReader(filter(None, table)) if row["svname"] not in ("FRONTEND", "BACKEND")]


def down(machine: Machine, name: str) -> bool:
    """Whether the HAProxy there takes a host for down, for HTTP and for gRPC."""
    return all(server["status"].startswith("DOWN") for server in servers(machine) if server["svname"] == name)


def all_up(machines: tuple[Machine, Machine]) -> bool:
    return all(server["status"] == "UP" for machine in machines for server in servers(machine))


def test_a_rolling_restart_under_load_loses_nothing(hosts: tuple[Machine, Machine]) -> None:
    """Over HTTP and gRPC, by Debian 12's and 13's HAProxy: no request fails, and none had to be sent again."""
    for machine in hosts:
        checked = machine.run("haproxy", "-c", "-f", "/srv/new.cfg")
        assert checked.stdout + checked.stderr in ("", "Configuration file is valid\n")
        # Slowness is no failure here: a host that is busy with other tests answers within these.
        text, count = re.subn(r"timeout (connect|check) \d+s", r"timeout \1 60s", machine.read("/srv/new.cfg"))
        assert count == 2
        machine.write("/etc/haproxy/haproxy.cfg", text)
        machine.run("systemctl", "restart", "haproxy")
    hosts[0].wait_until(lambda: all_up(hosts), "all servers to be up")
    argv = ("/usr/bin/python3", "/srv/clients.py", *map(str, BALANCERS))
    clients = hosts[0].start(*argv, stdin=subprocess.PIPE)
    try:
        for machine, name in zip(hosts, NAMES, strict=True):
            machine.run("systemctl", "restart", "--no-block", SERVICE)
            machine.wait_until(lambda name=name: all(down(each, name) for each in hosts), "HAProxies to see the stop")
            # A person who sees that asks for no more delay.
            machine.run("systemctl", "kill", "--kill-who=main", "--signal=TERM", SERVICE)
            machine.wait_until(lambda: all_up(hosts), "the restarted server to be up")
    finally:
        output, errors = clients.communicate(timeout=PATIENCE)
    assert clients.returncode == 0, errors
    said = json.loads(output)
    assert said["wrong"] == []
    assert len(said["answers"]) == 4
    for machine in hosts:
        for server in servers(machine):
            assert int(server["chkdown"]) >= 1 and int(server["stot"]) > 0, server
            assert [server[name] for name in ("econ", "eresp", "wretr", "wredis")] == ["0"] * 4, server

"""Inference services on real systemd: ready, restarted, reloaded, stopped and killed, and what is lost by it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.machines.machine import PATIENCE, CommandError, Machine
from tests.machines.test_apply import CONF, apply

# ROUNDS=50 in the environment: as often as it takes to believe it. An even number, as two models take turns.
ROUNDS = int(os.environ.get("ROUNDS", "2"))

SERVICE, SOCKET = "torchpar-infer@web.service", "torchpar-infer@web.socket"

WEB = "[Infer web]\nModel=/srv/web/model.pt\nDrainTimeout=5min\n"

# Three numbers in, k times three numbers out.
MODEL = """\
import json
import torch

class Times(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return self.k * x

face = {name: [{"name": name[0], "datatype": "FP32", "shape": [-1, 3]}] for name in ("inputs", "outputs")}
extra = {"torchpar.json": json.dumps(face)}
for k in (1, 2):
    torch.jit.save(torch.jit.script(Times(float(k))), f"/srv/web/times-{k}.pt", _extra_files=extra)
"""

# $1 clients that ask one question after the other on kept connections, until stdin ends and each has had an answer
# since; a connection that the server closes after an answer is made anew. They say when each has had its first answer;
# at the end how many answers, all that went wrong, and the answers that came.
CLIENTS = """\
import collections, http.client, json, sys, threading, time

answers, wrong, end = collections.Counter(), [], threading.Event()
body = json.dumps([1.0, 2.0, 3.0])
first = threading.Semaphore(0)

def ask():
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=300)
    number = 0
    while True:
        last = end.is_set()
        try:
            connection.request("POST", "/predict", body)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status == 200:
                answers[text] += 1
                number += 1
                if number == 1:
                    first.release()
                if last:
                    return
            else:
                wrong.append(f"{answer.status} {text}")
        except (OSError, http.client.HTTPException) as error:
            wrong.append(repr(error))
            connection.close()
            if isinstance(error, ConnectionRefusedError):
                time.sleep(0.05)
        time.sleep(0.005)

threads = [threading.Thread(target=ask) for _ in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for thread in threads:
    first.acquire()
print("asking", flush=True)
sys.stdin.read()
end.set()
for thread in threads:
    thread.join()
print(json.dumps({"answers": answers, "wrong": wrong}))
"""


@pytest.fixture(scope="module")
def web(machine: Machine, ports: None) -> Iterator[Machine]:
    """The shared machine with a service that serves; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/web/make_model.py", MODEL)
    machine.write("/srv/web/clients.py", CLIENTS)
    machine.run("/usr/bin/python3", "/srv/web/make_model.py")
    put_model(machine, 1)
    apply(machine, WEB)
    # Many rounds are more starts than anybody makes.
    for unit in (SERVICE, SOCKET):
        machine.write(f"/run/systemd/system/{unit}.d/60-rounds.conf", "[Unit]\nStartLimitIntervalSec=0\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", SERVICE)
    yield machine
    machine.sh("systemctl stop 'torchpar-infer@*.socket'; systemctl reset-failed; rm -rf /srv/web")
    machine.sh("rm -r /run/systemd/system/$1.d /run/systemd/system/$2.d; systemctl daemon-reload", SERVICE, SOCKET)
    apply(machine, shipped)


def put_model(machine: Machine, k: int) -> None:
    """Put a model in place with one rename."""
    machine.sh("cp /srv/web/times-$1.pt /srv/web/new.pt; mv /srv/web/new.pt /srv/web/model.pt", str(k))


def ask(machine: Machine) -> str:
    script = (
        "import sys, urllib.request as r;"
        " print(r.urlopen('http://127.0.0.1:8000/predict', b'[1.0, 2.0, 3.0]', 250).read().decode())"
    )
    return machine.run("/usr/bin/python3", "-c", script).stdout.strip()


def answer(k: float) -> str:
    return json.dumps({"outputs": {"o": [1.0 * k, 2.0 * k, 3.0 * k]}})


@contextlib.contextmanager
def load(machine: Machine, clients: int = 4) -> Iterator[dict[str, dict[str, int] | list[str]]]:
    """Clients while the block runs; afterwards what they say is in the dictionary."""
    said: dict[str, dict[str, int] | list[str]] = {}
    process = machine.start("/usr/bin/python3", "/srv/web/clients.py", str(clients), stdin=subprocess.PIPE)
    assert process.stdout
    try:
        assert process.stdout.readline() == "asking\n"
        yield said
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        # What hangs, or asks a service that a failed test has left without an answer.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, errors
    said.update(json.loads(output))


def served_since(machine: Machine) -> str:
    return machine.show(SERVICE, "ActiveEnterTimestampMonotonic")


def test_start_returns_when_the_service_answers(web: Machine) -> None:
    """On loopback alone, in its own place, as planned."""
    assert ask(web) == answer(1)
    assert re.fullmatch(r"serving: (\d) of \1 process(es)? ready", web.show(SERVICE, "StatusText"))
    assert web.show(SOCKET, "Listen") == "127.0.0.1:8000 (Stream)"
    verified = web.run("torchpar", "verify", "infer@web")
    assert f"{SERVICE} (process {web.show(SERVICE, 'MainPID')}): ok" in verified.stdout


def test_status_tells_a_start_and_its_end(web: Machine) -> None:
    """At once, whenever the daemon last looked."""
    hold = "[Service]\nExecStartPre=/bin/sh -c 'until [ -e /run/go ]; do sleep 0.1; done'\n"
    web.write(f"/run/systemd/system/{SERVICE}.d/50-test.conf", hold)
    try:
        web.run("systemctl", "daemon-reload")
        web.run("systemctl", "restart", "--no-block", SERVICE)
        web.wait_until(lambda: state(web) == "activating", "the start")
        web.run("touch", "/run/go")
        web.run("systemctl", "start", SERVICE)
        assert state(web) == "running ok"
    finally:
        web.sh("touch /run/go; rm /run/systemd/system/$1.d/50-test.conf; systemctl daemon-reload", SERVICE)
        web.sh("systemctl start $1; rm /run/go", SERVICE)


def state(machine: Machine) -> str:
    """What `torchpar status` says of the service, and whether it is placed as planned."""
    services = json.loads(machine.run("torchpar", "status", "--json", "web", check=False).stdout)["services"]
    return " ".join(filter(None, (services[0]["state"], services[0]["placed"])))


def test_restart_reload_and_apply_under_load_lose_nothing(web: Machine) -> None:
    """Who is answered is answered, who connects meanwhile waits; after a reload the new model answers."""
    for number in range(ROUNDS):
        k = 2 - number % 2
        since = served_since(web)
        with load(web) as said:
            web.run("systemctl", "restart", SERVICE)
            apply(web, WEB)
            put_model(web, k)
            web.run("systemctl", "reload", SERVICE)
            assert ask(web) == answer(k)
        assert said["wrong"] == [] and set(said["answers"]) == {answer(1), answer(2)}
        assert served_since(web) != since and web.show(SERVICE, "NRestarts") == "0"


def test_a_stop_under_load_answers_what_was_accepted(web: Machine) -> None:
    """The next who connects starts the service again."""
    for _ in range(ROUNDS):
        since = served_since(web)
        with load(web) as said:
            web.run("systemctl", "stop", SERVICE)
            web.wait_until(lambda: web.show(SERVICE, "ActiveState") == "active", "the next connection")
        assert said["wrong"] == [] and set(said["answers"]) == {answer(1)}
        assert served_since(web) != since


def test_a_stop_of_the_socket_is_the_end(web: Machine) -> None:
    """The service goes with it, and nobody is let in."""
    web.run("systemctl", "stop", SOCKET)
    assert web.show(SERVICE, "ActiveState") == web.show(SOCKET, "ActiveState") == "inactive"
    with pytest.raises(CommandError, match="Connection refused"):
        ask(web)
    web.run("systemctl", "start", SERVICE)
    assert ask(web) == answer(1)


def test_a_restart_of_the_socket_under_load_succeeds(web: Machine) -> None:
    """It turns away who comes meanwhile, but has its address again at once: a changed Listen= needs this."""
    for _ in range(ROUNDS):
        with load(web) as said:
            web.run("systemctl", "restart", SOCKET)
            assert ask(web) == answer(1)
        assert set(said["answers"]) == {answer(1)}
        assert all(error.startswith(("ConnectionRefused", "ConnectionReset")) for error in said["wrong"])


def test_a_reload_of_a_broken_model_fails_and_the_old_one_goes_on(web: Machine) -> None:
    """systemctl reload says so by its exit status, the journal why."""
    web.write("/srv/web/model.pt", "no model")
    try:
        done = web.run("systemctl", "reload", SERVICE, check=False)
        assert done.returncode == 1
        web.wait_until(lambda: "torchpar: /srv/web/model.pt" in web.journal(SERVICE), "why")
        assert ask(web) == answer(1) and web.show(SERVICE, "ActiveState") == "active"
    finally:
        put_model(web, 1)


def test_a_killed_process_is_back_without_systemd(web: Machine) -> None:
    """The first process starts it again; who asks meanwhile waits."""
    main = web.show(SERVICE, "MainPID")
    web.sh("kill -KILL $(cat /proc/$1/task/$1/children)", main)
    assert ask(web) == answer(1)
    assert web.show(SERVICE, "MainPID") == main and web.show(SERVICE, "NRestarts") == "0"
    assert "was killed by SIGKILL; another takes its place" in web.journal(SERVICE)


def test_a_killed_service_is_started_again_and_its_socket_waits(web: Machine) -> None:
    """systemd sees the first process go, takes the others with it, and starts it anew."""
    web.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", SERVICE)
    assert ask(web) == answer(1)
    assert web.show(SERVICE, "NRestarts") == "1"


def test_a_process_that_hangs_is_seen_by_the_watchdog(web: Machine) -> None:
    """One that is stopped cannot even be ended by SIGABRT: systemd starts the service again."""
    web.write(f"/run/systemd/system/{SERVICE}.d/50-test.conf", "[Service]\nWatchdogSec=30s\n")
    web.sh("systemctl daemon-reload; systemctl restart $1", SERVICE)
    try:
        before = int(web.show(SERVICE, "NRestarts"))
        main = web.show(SERVICE, "MainPID")
        web.sh('kill -STOP $(cat /proc/$1/task/$1/children)', main)
        web.wait_until(lambda: int(web.show(SERVICE, "NRestarts")) > before, "the watchdog")
        assert ask(web) == answer(1)
        journal = web.journal(SERVICE)
        assert "makes no progress" in journal and "Watchdog timeout" in journal
    finally:
        web.sh(
            "rm /run/systemd/system/$1.d/50-test.conf; systemctl daemon-reload; systemctl restart $1",
            SERVICE,
        )


def test_other_hosts_are_refused_unless_listen_names_the_address(web: Machine) -> None:
    """A drop-in for the socket alone does not open the service."""
    web.write(f"/run/systemd/system/{SOCKET}.d/50-test.conf", "[Socket]\nListenStream=0.0.0.0:8008\n")
    try:
        web.sh("systemctl daemon-reload; systemctl stop $1", SOCKET)
        assert web.run("systemctl", "start", SERVICE, check=False).returncode == 1
        assert "0.0.0.0:8008 can be reached from other hosts, and Listen= in torchpar.conf does not name it" in (
            web.journal(SERVICE)
        )
        assert web.show(SERVICE, "NRestarts") == "0"
    finally:
        web.sh("rm /run/systemd/system/$1.d/50-test.conf; systemctl daemon-reload; systemctl reset-failed", SOCKET)
        web.sh("systemctl stop $1; systemctl start $2", SOCKET, SERVICE)


def test_https_with_credentials_that_only_root_can_read(web: Machine) -> None:
    """Another Listen= needs a restart of the socket, which apply asks for."""
    web.sh(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost"
        " -keyout /srv/web/key.pem -out /srv/web/certificate.pem 2>/dev/null; chmod 600 /srv/web/key.pem"
    )
    try:
        keys = "Listen=localhost:8443\nTLSCertificate=/srv/web/certificate.pem\nTLSKey=/srv/web/key.pem\n"
        web.write(CONF, f"{WEB}{keys}")
        assert f"systemctl restart {SOCKET}" in web.run("torchpar", "apply").stdout
        assert ask(web) == answer(1)  # on the old address, until then
        web.run("systemctl", "restart", SOCKET)
        get = (
            "import ssl, urllib.request as r; c = ssl.create_default_context(cafile='/srv/web/certificate.pem');"
            " c.check_hostname = False;"
            " print(r.urlopen('https://127.0.0.1:8443/v2/health/ready', timeout=250, context=c).status)"
        )
        assert web.run("/usr/bin/python3", "-c", get).stdout == "200\n"
    finally:
        apply(web, WEB)
        web.run("systemctl", "restart", SOCKET)

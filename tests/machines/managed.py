"""Several booted machines that manage each other by Ansible over ssh, as a controller does the hosts of a fleet."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.machines.machine import PATIENCE, Machine
from tests.machines.roots import Report, Suite, managed_root

FOLDER = "/root/fleet"

_SSHD = "ListenAddress {address}:2222\nPermitRootLogin prohibit-password\n"

# A host key is what it is by chance, and a site's strategy is its own; modules are piped, which halves the time.
_ANSIBLE = "[defaults]\nhost_key_checking=False\nstrategy=free\n[ssh_connection]\npipelining=True\n"

_RECAP = re.compile(r"^(\S+) +: (ok=.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """What a playbook has done: its exit status, the counts of each host that it came to, and all that it said."""

    status: int
    hosts: Mapping[str, Mapping[str, int]]
    said: str

    def counts(self, what: str) -> dict[str, int]:
        """One of the counts of each host, as "changed"."""
        return {host: counts[what] for host, counts in self.hosts.items()}


@dataclass(frozen=True)
class Fleet:
    """Booted hosts by their names, each of which can manage all; their addresses in the order of the inventory."""

    hosts: Mapping[str, Machine]
    addresses: tuple[str, ...]

    def ansible(self, controller: str, command: str) -> Played:
        """Run a command of Ansible on a host, in its FOLDER."""
        # A hundred small programs and connections one after the other, each of which a busy host lets wait.
        done = self.hosts[controller].sh(f"cd {FOLDER}; {command}", check=False, timeout=6 * PATIENCE)
        said = done.stdout + done.stderr
        recap = {
            host: {name: int(count) for name, _, count in (pair.partition("=") for pair in counts.split())}
            for host, counts in _RECAP.findall(said)
        }
        return Played(done.returncode, recap, said)

    def write(self, name: str, text: str) -> None:
        """Write a file into the FOLDER of each host."""
        for machine in self.hosts.values():
            machine.write(f"{FOLDER}/{name}", text)


@contextlib.contextmanager
def boot_fleet(suites: Mapping[str, Suite], report: Report) -> Iterator[Fleet]:
    """Boot hosts of these names and releases, with Ansible, and an ssh server that lets root of each in.

    They share this host's network, so each ssh server listens on an address of its own below 127.0.0.0/8.
    """
    network = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(254) + 1}"
    addresses = tuple(f"{network}.{number}" for number, _ in enumerate(suites, 1))
    with contextlib.ExitStack() as stack:
        hosts = {
            name: stack.enter_context(Machine(suite, name, root=managed_root(suite), report=report))
            for name, suite in suites.items()
        }
        first = next(iter(hosts.values()))
        first.sh("mkdir -p -m 700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
        private, public = (first.read(f"/root/.ssh/id_ed25519{ending}") for ending in ("", ".pub"))
        for address, machine in zip(addresses, hosts.values(), strict=True):
            machine.write("/root/.ssh/id_ed25519", private, 0o600)
            machine.write("/root/.ssh/authorized_keys", public, 0o600)
            machine.write("/etc/ssh/sshd_config.d/test.conf", _SSHD.format(address=address))
            machine.run("systemctl", "start", "ssh")
        fleet = Fleet(hosts, addresses)
        fleet.write("ansible.cfg", _ANSIBLE)
        yield fleet

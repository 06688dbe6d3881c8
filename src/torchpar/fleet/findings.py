"""Everything that is to be said of a fleet before anything else: errors, parts that do not fit, warnings; by hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torchpar.conf.match import named_hosts
from torchpar.conf.settings import MatchSettings
from torchpar.contract.errors import ExitStatus, printable
from torchpar.fleet.host import Summary
from torchpar.fleet.jobs import Fit, Member, fit_jobs
from torchpar.fleet.names import say_hosts, sort_versions

_DAY = 86_400
# Facts that are so much older than the newest may be those of a host that is gone.
_OLD_DAYS = 30


@dataclass(frozen=True)
class Finding:
    """One thing, and the hosts that it is true of; `status` is DONE for a warning, else what a command ends with."""

    what: str
    hosts: tuple[str, ...] = ()
    status: ExitStatus = ExitStatus.DONE

    def __str__(self) -> str:
        return f"{say_hosts(self.hosts)}: {self.what}" if self.hosts else self.what


@dataclass(frozen=True)
class Overview:
    """The findings about a fleet, the worst first, and how the jobs of several hosts fit."""

    findings: tuple[Finding, ...]
    fits: tuple[Fit, ...]

    def status(self, *, differs: bool = False, fit: bool = False) -> ExitStatus:
        """Returns the exit status: of the worst finding, with `fit` also of jobs that do not fit; 2 where all is well
        and something `differs`."""
        found = {finding.status for finding in self.findings}
        if fit and any(each.problems for each in self.fits):
            found.add(ExitStatus.FAILED)
        for status in (ExitStatus.CONFIG, ExitStatus.FAILED, ExitStatus.UNKNOWN):
            if status in found:
                return status
        return ExitStatus.DIFFERS if differs else ExitStatus.DONE


def look_at(hosts: Sequence[Summary], files: Sequence[tuple[str, MatchSettings | None]]) -> Overview:
    """Looks at all hosts together; `files` are those of the conf, by name, each with its [Match]."""
    known = [host for host in hosts if host.name]
    findings = [
        *_group(((host.name, error) for host in known for error in host.errors), ExitStatus.CONFIG),
        *(Finding(error, (), host.status) for host in hosts if not host.name for error in host.errors),
        *doubt_facts([(host.name, host.file) for host in known], files),
        *_unmatched(known, files),
        *_old(known),
        *_skew(known),
        *_group(((host.name, warning) for host in known for warning in host.warnings), ExitStatus.DONE),
    ]
    fits = fit_jobs([_member(host) for host in known])
    findings.sort(key=lambda finding: finding.status is ExitStatus.DONE)
    return Overview(tuple(findings), fits)


def _member(host: Summary) -> Member:
    listening = ((text.rpartition(":")[2], service) for service, texts in host.listening.items() for text in texts)
    ports = {int(port): service for port, service in listening if port.isdecimal()}
    addresses = frozenset(address for each in host.addresses.values() for address in each)
    return Member(host.name, addresses, host.parts, ports)


def _group(said: Iterable[tuple[str, str]], status: ExitStatus) -> Iterator[Finding]:
    by_text: dict[str, list[str]] = defaultdict(list)
    for name, text in said:
        by_text[text].append(name)
    for text, names in sorted(by_text.items(), key=lambda item: -len(item[1])):
        yield Finding(text, tuple(names), status)


def doubt_facts(
    hosts: Sequence[tuple[str, str]], files: Sequence[tuple[str, MatchSettings | None]]
) -> Iterator[Finding]:
    """Yields names that several hosts have, and those that a [Match] names in full and of which there are no facts.

    `hosts` are their names, each with the file of its facts; `files` are those of the conf, each with its [Match].
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name, file in hosts:
        found[name].append(file)
    for name, several in found.items():
        if len(several) > 1:
            what = f"{len(several)} files are the facts of a host of this name: {say_hosts(several)}"
            yield Finding(f"{what}; remove those that are not, or give each host a name", (name,), ExitStatus.UNKNOWN)
    there = {each for name in found for each in (name, name.partition(".")[0])}
    for file, match in files:
        absent = [name for name in named_hosts(match) if name not in there] if match else []
        if absent:
            what = f"{printable(file)}: [Match] Host= names it, and there are no facts of it"
            yield Finding(what, tuple(absent), ExitStatus.UNKNOWN)


def _unmatched(hosts: Sequence[Summary], files: Sequence[tuple[str, MatchSettings | None]]) -> Iterator[Finding]:
    """Yields files that match no host, and hosts that no file with a [Match] matches."""
    matching = [number for number, (_, match) in enumerate(files) if match]
    if not matching or not hosts:
        return
    for number in matching:
        if not any(host.matched[number] for host in hosts):
            yield Finding(f"{printable(files[number][0])}: its [Match] fits none of these hosts")
    missed = tuple(host.name for host in hosts if not any(host.matched[number] for number in matching))
    if missed:
        yield Finding("no file with a [Match] is for it", missed)


def _old(hosts: Sequence[Summary]) -> Iterator[Finding]:
    newest = max((host.exported_at for host in hosts), default=0)
    old = tuple(host.name for host in hosts if newest - host.exported_at > _OLD_DAYS * _DAY)
    if old:
        yield Finding(f"the facts are {_OLD_DAYS} days older than the newest, or more; remove those of hosts gone", old)


def _skew(hosts: Sequence[Summary]) -> Iterator[Finding]:
    """Yields the packages of which hosts have several versions, with the hosts of all but the most common one."""
    by_package: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for host in hosts:
        for package, version in host.packages.items():
            by_package[package][version].append(host.name)
    for package, versions in sorted(by_package.items()):
        if len(versions) > 1:
            ordered = sort_versions(versions)
            each = "; ".join(f"{printable(version, 60)} on {say_hosts(versions[version])}" for version in ordered)
            yield Finding(f"{package} has {len(versions)} versions, the oldest first: {each}")

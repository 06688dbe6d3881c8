"""`torchpar fleet haproxy`: the configuration of a load balancer before the hosts that serve a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from torchpar.cli.fleet_hosts import find_facts, name_matches
from torchpar.cli.output import warn
from torchpar.cli.paths import FilePath
from torchpar.conf.values import parse_listen
from torchpar.contract.errors import ConfigError, FactsError, PlacementError, printable
from torchpar.fleet.findings import doubt_facts
from torchpar.fleet.haproxy import Frontend, Offer, find_offers, make_haproxy
from torchpar.host.inputs import inputs_of, load_export, read_conf
from torchpar.plan.plan import make_plan


class ListenAddress(click.ParamType):
    """An address as Listen= takes it."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the address with a number in the place of a name."""
        try:
            return parse_listen(value)
        except ValueError as error:
            self.fail(f"'{printable(value, 80)}' {error}", param, ctx)


@click.command(short_help="Write a load balancer's configuration.")
@click.option("--facts", "folder", type=FilePath(), required=True, help="Read the facts of all hosts in DIR.")
@click.option("--config", "conf", type=FilePath(), help="Read FILE as the only conf, or DIR as /etc.")
@click.option("--service", metavar="NAME", help="Only for [Infer NAME].")
@click.option(
    "--listen", type=ListenAddress(), multiple=True, help="Where HAProxy listens, as Listen= does; the hosts' ports."
)
@click.option("--certificate", type=FilePath(), help="HTTPS, with the certificate and key in FILE.")
def haproxy(
    folder: Path, conf: Path | None, service: str | None, listen: tuple[str, ...], certificate: Path | None
) -> None:
    """Print a HAProxy configuration that divides requests among the hosts that serve a model.

    It asks each host every second whether it is ready, and sends none that a model may have computed to another.
    See torchpar-infer(8).
    """
    offers = list(_offers(folder, conf, service))
    frontend = Frontend(listen, str(certificate.absolute()) if certificate else None)
    made = make_haproxy(offers, frontend)
    warn(made.warnings)
    click.echo(made.text, nl=False)


def _offers(folder: Path, conf: Path | None, service: str | None) -> Iterator[Offer]:
    files = read_conf(conf)
    hosts = []
    for name in find_facts(folder):
        export = load_export(folder / name)
        hosts.append((export.facts.hostname, printable(name, 200)))
        try:
            plan = make_plan(inputs_of(export, files).config, export.facts)
        except (ConfigError, PlacementError) as error:
            host = printable(export.facts.hostname, 80)
            raise ConfigError([f"{host}: {line}" for line in str(error).splitlines()]) from None
        yield from find_offers(plan, service)
    doubts = list(doubt_facts(hosts, name_matches(files)))
    if doubts:
        raise FactsError("\n".join(map(str, doubts)))

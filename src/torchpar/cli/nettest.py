"""`torchpar nettest`: how fast a job's hosts are together, through the environment that the job itself will have."""

from __future__ import annotations

import dataclasses
import os

import click

from torchpar.adhoc.start import as_unit, make_startable, start
from torchpar.cli.names import ServiceName
from torchpar.cli.output import warn
from torchpar.conf.services import OWN_USER, Service
from torchpar.conf.settings import TrainSettings
from torchpar.contract.errors import ConfigError, TorchparError
from torchpar.generations.enforce import read_active
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.inputs import load
from torchpar.plan.opened import find_refused
from torchpar.plan.plan import make_plan

MODULE = "torchpar.runtime.nettest"


@click.command(short_help="Measure the network between the hosts of a job.")
@click.argument("name", type=ServiceName())
def nettest(name: str) -> int:
    """Reduce tensors over all hosts of [Train NAME], and print latency, bandwidth and the addresses in use.

    Run it on every host of the job, in any order; each waits for the others. The job itself must not run.
    """
    active = read_active(Store())
    inputs = load(files=active[1].conf if active else None)
    service, train = _find(inputs.config.find(name))
    if systemd.is_running() and service.unit in systemd.running_services():
        raise TorchparError(f"the job itself runs, on the same port; stop it first: systemctl stop {service.unit}")
    if problems := find_refused(inputs.config).get(service.unit):
        raise ConfigError(problems)
    plan = make_plan(inputs.config, inputs.facts).find(service.unit)
    if as_unit():
        service = make_startable(service, inputs.facts.systemd_version, warn)
    settings = dataclasses.replace(train, script=None, module=MODULE, arguments=(), working_directory="/")
    plan = dataclasses.replace(plan, service=dataclasses.replace(service, settings=settings))
    user = service.settings.user or OWN_USER
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    return start(plan, unit=f"torchpar-nettest-{service.name}.service", user=user, environment=environment, warn=warn)


def _find(found: tuple[Service, ...]) -> tuple[Service, TrainSettings]:
    """Finds the training service of several hosts among those of a name. Raises ConfigError."""
    for service in found:
        train = service.train()
        if train and train.nodes[1] == 1:
            raise ConfigError([f"{service.origin('Nodes')}: {service.section} runs on one host; Nodes= is how many"])
        if train:
            return service, train
    raise ConfigError([f"{found[0].section} is no training service; there is no network between hosts to test"])

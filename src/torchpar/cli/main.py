"""The `torchpar` command: names the commands' modules, and turns a typed error into its lines and exit status."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import click

from torchpar.cli.group import Commands
from torchpar.cli.output import warn_of
from torchpar.cli.streams import OutputError, close_streams, open_streams
from torchpar.contract.errors import ExitStatus, TorchparError, printable
from torchpar.contract.version import version

# Command → the module that holds it.
COMMANDS = {
    "validate": "torchpar.cli.validate",
    "topology": "torchpar.cli.topology",
    "facts": "torchpar.cli.facts",
    "plan": "torchpar.cli.plan",
    "explain": "torchpar.cli.explain",
    "render": "torchpar.cli.render",
    "diff": "torchpar.cli.diff",
    "check": "torchpar.cli.check",
    "apply": "torchpar.cli.apply",
    "confirm": "torchpar.cli.confirm",
    "rollback": "torchpar.cli.rollback",
    "history": "torchpar.cli.history",
    "verify": "torchpar.cli.verify",
    "status": "torchpar.cli.status",
    "top": "torchpar.cli.top",
    "logs": "torchpar.cli.logs",
    "doctor": "torchpar.cli.doctor",
    "metrics": "torchpar.cli.metrics",
    "report": "torchpar.cli.report",
    "run": "torchpar.cli.run",
    "nettest": "torchpar.cli.nettest",
    "fleet": "torchpar.cli.fleet",
}


@click.command(cls=Commands, modules=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="torchpar")
def torchpar() -> None:
    """PyTorch jobs placed right on this host.

    Edit /etc/torchpar.conf, look at it with `torchpar plan`, put it in force with `torchpar apply`, and start a
    service:

        systemctl start torchpar-train@NAME

    See torchpar(8) and torchpar.conf(5).
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits with its status."""
    try:
        open_streams()
        status = run(arguments)
    except OutputError as error:
        status = ExitStatus.FAILED
        with contextlib.suppress(OutputError):
            warn_of(error)
    if not close_streams():
        status = status or ExitStatus.FAILED
    sys.exit(status)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 64 for a usage error, that of the error for a TorchparError.

    Raises OutputError when what it has to say cannot be written.
    """
    try:
        result = torchpar.main(arguments, prog_name="torchpar", standalone_mode=False)
        sys.stdout.flush()
    except OutputError:
        raise
    except TorchparError as error:
        warn_of(error)
        return error.exit_status
    except click.exceptions.Abort:
        click.echo("torchpar: interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.message = printable(error.message)
        error.show()
        return ExitStatus.USAGE
    return result if isinstance(result, int) else ExitStatus.DONE

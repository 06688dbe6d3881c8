"""`torchpar metrics`: what Prometheus reads of this host, as text, in a file for node_exporter, or over HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from pathlib import Path

import click

from torchpar.cli.paths import FilePath
from torchpar.cli.textfile import configured_metrics, write_textfile
from torchpar.contract.errors import ConfigError, ExitStatus, StoreError, TorchparError
from torchpar.contract.version import version
from torchpar.daemon.client import ask_daemon
from torchpar.daemon.metrics import Sample, render_metrics
from torchpar.daemon.metrics_server import MetricsServer
from torchpar.generations.last_apply import read_last_apply
from torchpar.generations.store import Store
from torchpar.host.clocks import read_time_of_day
from torchpar.host.inputs import LIVE
from torchpar.host.sysfs import Tree
from torchpar.host.unit_counters import read_counters

FILE = "torchpar.prom"
# However many ask, the host is looked at no more often.
_FRESH_SECONDS = 2.0


@click.command(short_help="Print metrics for Prometheus.")
@click.option("--textfile", type=FilePath(), metavar="DIR", help=f"Write {FILE} there, for node_exporter.")
@click.option("--listen", is_flag=True, help="Serve them over HTTP at the address of Metrics= in the conf.")
def metrics(textfile: Path | None, listen: bool) -> int:
    """Print metrics of this host and its services in Prometheus' format.

    torchpar-metrics.timer writes them each minute for node_exporter's textfile collector where Metrics=textfile, and
    torchpar-metrics-http.service serves them where Metrics=ADDRESS:PORT. See torchpar-metrics(7).
    """
    if textfile and listen:
        raise click.UsageError("--textfile and --listen are two ways; take one")
    if listen:
        _serve(configured_metrics())
    elif textfile:
        write_textfile(textfile / FILE, _text)
    else:
        click.echo(_text(), nl=False)
    return ExitStatus.DONE


def _serve(metrics: str) -> None:
    """Serves the metrics until it is stopped. Raises ConfigError where the conf has no address for them."""
    address, _, port = metrics.rpartition(":")
    if not address:
        raise ConfigError(
            [f"Metrics={metrics} in [Host] has no address to serve them at; write Metrics=127.0.0.1:9435"]
        )
    host = {"*": "::", "localhost": "127.0.0.1"}.get(address, address.strip("[]"))
    try:
        server = MetricsServer((host, int(port)), _Fresh().text)
    except OSError as error:
        raise TorchparError(f"Metrics={metrics}: {error.strerror}") from None
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


class _Fresh:
    """The last text, made anew when it is older than a moment and somebody asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text, self._until = "", 0.0

    def text(self) -> str:
        with self._lock:
            if time.monotonic() > self._until:
                self._text, self._until = _text(), time.monotonic() + _FRESH_SECONDS
            return self._text


def _text() -> str:
    answer = ask_daemon()
    last_apply = read_last_apply()
    units = [str(service["unit"]) for service in answer["services"]] if answer else []
    applied, digest = _in_force()
    return render_metrics(
        Sample(
            version=version(),
            now=time.time(),
            answer=answer,
            counters=read_counters(units, Tree(LIVE)),
            applied=applied,
            sha256=digest,
            reboot_required=os.path.exists("/run/reboot-required"),
            clock=read_time_of_day(),
            last_apply=(last_apply.success, last_apply.timestamp_seconds) if last_apply else None,
        )
    )


def _in_force() -> tuple[float | None, str]:
    """Reads when what is in force was put in force, and the beginning of the checksum of its conf."""
    store = Store()
    try:
        active = store.active()
        if active is None:
            return None, ""
        files = "".join(f"{file.path}\0{file.text}\0" for file in active.read().conf)
        digest = hashlib.sha256(files.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        return os.lstat(store.link).st_mtime, digest
    except (StoreError, OSError):
        return None, ""

"""`torchpar top`: the services as they run, again and again on the whole terminal.

Its screen is lines of text, made from the same values as `torchpar status`, so it needs no library for terminals.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

import click

from torchpar.cli.output import brief, echo_json, shorten, terminal_width, wrap
from torchpar.cli.service_lines import is_wrong, state_text
from torchpar.cli.status import read_answer
from torchpar.contract.errors import printable
from torchpar.contract.span import span
from torchpar.daemon.state import ServiceState, State, parse_state
from torchpar.doctor.words import rate, size
from torchpar.host import systemd

# The alternate screen, without a cursor, and back (xterm's control sequences, which tmux has too); the beginning of the
# screen; what is left of a line, and of the screen.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"

_HEADER = ("SERVICE", "STATE", "SPEED", "WAIT", "CPU", "CPUS", "MEMORY")
# The least that a service's name gets, and the most; the most of a list of CPUs, which is long on large hosts.
_LEAST_NAME, _MOST_NAME, _MOST_CPUS = 12, 40, 12


@click.command(short_help="Show the services live.")
@click.option("--once", is_flag=True, help="Print it once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print what torchpard knows as JSON, once.")
@click.option("--interval", "-d", type=click.FloatRange(0.5, 3600), default=2.0, help="Seconds between; default: 2.")
def top(once: bool, as_json: bool, interval: float) -> None:
    """Show the services live: state, speed, waiting, CPUs, memory, and what is wrong. Ctrl-C ends it."""
    systemd.require_systemd()
    if as_json:
        echo_json(read_answer()[0])
    elif once or not sys.stdout.isatty():
        for line in make_screen(*_look(), terminal_width() or 10**6):
            click.echo(line)
    else:
        with contextlib.suppress(KeyboardInterrupt), _screen():
            while True:
                seen = _look()
                columns, rows = shutil.get_terminal_size()
                lines = make_screen(*seen, columns)
                if len(lines) > rows:
                    lines = [*lines[: rows - 1], f"  {len(lines) - rows + 1} more lines; see: torchpar status"]
                text = "\r\n".join(f"{line}{_CLEAR_LINE}" for line in lines)
                click.echo(f"{_HOME}{text}{_CLEAR_REST}", nl=False, color=True)
                time.sleep(interval)


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    click.echo(_ENTER, nl=False, color=True)
    try:
        yield
    finally:
        click.echo(_LEAVE, nl=False, color=True)


def _look() -> tuple[State, str, str]:
    answer, note = read_answer()
    return parse_state(answer), note, time.strftime("%H:%M:%S")


def make_screen(state: State, note: str, clock: str, width: int) -> list[str]:
    """Makes the lines of the screen, none wider than so many letters."""
    services = sorted(state.services, key=lambda service: (not is_wrong(service), not service.main_pid, service.title))
    running = sum(service.state == "running" for service in services)
    wrong = sum(map(is_wrong, services)) + len(state.wrong)
    told = f"{wrong} wrong" if wrong else "not all can be seen" if note else "all is well"
    lines = [
        f"{clock}  generation {state.generation or 'none'}, conf {state.conf}; {running} of {len(services)} running;"
        f" {told}"[:width],
        "",
    ]
    rows = [_row(service) for service in services]
    lines += _table(rows, [is_wrong(service) for service in services], width)
    notes = [f"{service.title} {told.text}" for service in services for told in service.wrong]
    notes += [told.text for told in state.wrong]
    if notes or note:
        lines.append("")
    for line in notes:
        for number, text in enumerate(wrap(brief(line), width - 2)):
            lines.append(f"{' ' if number else '!'} {text}")
    lines += wrap(note, width)
    return lines


def _row(service: ServiceState) -> tuple[str, ...]:
    throughput, serving = service.throughput, service.serving
    speed = wait = ""
    if serving:
        speed = f"{rate(serving.requests_per_second)} requests/s"
        wait = f"p99 {span(serving.p99_seconds)}" if serving.p99_seconds is not None else ""
    elif throughput and service.hang:
        speed = f"none for {span(throughput.silent_seconds)}"
    elif throughput:
        samples, steps = throughput.samples_per_second, throughput.steps_per_second
        speed = f"{rate(samples)} samples/s" if samples else f"{rate(steps)} steps/s"
        wait = f"{100 * throughput.loader_wait_share:.0f} %"
    used = "" if service.cpus_used is None else f"{service.cpus_used:.1f}"
    return (
        service.title,
        state_text(service),
        speed,
        wait,
        f"{used}/{service.given_cpus}" if used and service.given_cpus else used,
        shorten(service.cpus, _MOST_CPUS) if service.main_pid else "",
        "" if service.memory_bytes is None else size(service.memory_bytes),
    )


def _table(rows: Sequence[Sequence[str]], marks: Sequence[bool], width: int) -> Iterator[str]:
    """Makes the table; of names that leave no room for the rest the middle is left out, then the last columns go."""
    table = [[printable(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(_HEADER, *table, strict=True)]
    rest = sum(widths[1:]) + 2 * len(widths)
    widths[0] = min(widths[0], max(_LEAST_NAME, width - rest), _MOST_NAME)
    for number, cells in enumerate([list(_HEADER), *table]):
        cells[0] = _cut(cells[0], widths[0])
        line = "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True)).rstrip()
        mark = "!" if number and marks[number - 1] else " "
        yield f"{mark} {line}"[:width]


def _cut(text: str, most: int) -> str:
    """Leaves out the middle of a text that is too long: the ends of names tell them apart."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}~{text[most // 2 - most :]}"

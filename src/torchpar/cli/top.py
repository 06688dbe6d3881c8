"""`torchpar top`: the services as they run, and the ranks of each, again and again on the whole terminal.

Its screen is lines of text, made from the same values as `torchpar status`, so it needs no library for terminals.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import click

from torchpar.cli.output import brief, echo_json, shorten, terminal_width, wrap
from torchpar.cli.service_lines import is_wrong, state_text
from torchpar.cli.status import read_answer
from torchpar.contract.errors import printable
from torchpar.contract.span import span
from torchpar.daemon.state import RankSpeed, ServiceState, State, parse_state
from torchpar.doctor.words import rate, size
from torchpar.host import systemd
from torchpar.host.rank_use import RankUse, read_rank_use

# The alternate screen, without a cursor, and back (xterm's control sequences, which tmux has too); the beginning of the
# screen; what is left of a line, and of the screen.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"

_HEADER = ("SERVICE", "STATE", "SPEED", "WAIT", "CPU", "CPUS", "MEMORY")
# The least that a service's name gets, and the most; the most of a list of CPUs, which is long on large hosts.
_LEAST_NAME, _MOST_NAME, _MOST_CPUS = 12, 40, 12
# Of a rank that reports every two seconds.
_SILENT_SECONDS = 60.0

Key = Callable[[ServiceState], object]

# By what the services are sorted; the first is what it begins with.
ORDERS: Mapping[str, Key] = {
    "trouble": lambda service: (not is_wrong(service), not service.main_pid),
    "name": lambda service: 0,
    "CPU": lambda service: -(service.cpus_used or 0.0),
    "memory": lambda service: -(service.memory_bytes or 0),
    "waiting": lambda service: -(service.throughput.loader_wait_share if service.throughput else 0.0),
}


@dataclass(frozen=True)
class View:
    """The choice of who looks: the order of the services, and whether their ranks are shown."""

    order: str = next(iter(ORDERS))
    ranks: bool = False

    def press(self, key: str) -> View:
        """Returns what is shown after a key."""
        names = list(ORDERS)
        if key == "s":
            return View(names[(names.index(self.order) + 1) % len(names)], self.ranks)
        return View(self.order, not self.ranks) if key == "r" else self


_FIRST_VIEW = View()


@dataclass
class Uses:
    """The use of each process of a rank, and its CPUs over the time since the last look."""

    read: Callable[[int, str], RankUse | None] = read_rank_use
    _before: dict[int, tuple[float, float]] = field(default_factory=dict)

    def look(self, state: State, now: float) -> dict[int, tuple[RankUse, float | None]]:
        """Reads all ranks of the services: what each uses, and its CPUs; None at its first look."""
        found: dict[int, tuple[RankUse, float | None]] = {}
        for service in state.services:
            for rank in service.throughput.by_rank if service.throughput else ():
                if use := self.read(rank.pid, service.unit):
                    then, used = self._before.get(rank.pid, (now, 0.0))
                    cpus = max(0.0, use.cpu_seconds - used) / (now - then) if now > then else None
                    found[rank.pid] = use, cpus
        self._before = {pid: (now, use.cpu_seconds) for pid, (use, _) in found.items()}
        return found


@click.command(short_help="Show the services live.")
@click.option("--once", is_flag=True, help="Print it once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print what torchpard knows as JSON, once.")
@click.option("--ranks", is_flag=True, help="Show the ranks of each job, too.")
@click.option("--sort", type=click.Choice(list(ORDERS), case_sensitive=False), default="trouble", help="The order.")
@click.option("--interval", "-d", type=click.FloatRange(0.5, 3600), default=2.0, help="Seconds between; default: 2.")
def top(once: bool, as_json: bool, ranks: bool, sort: str, interval: float) -> None:
    """Show the services live: state, speed, waiting, CPUs, memory, and what is wrong.

    Keys: q ends it, s sorts by something else, r shows the ranks of each job.
    """
    systemd.require_systemd()
    view = View(sort, ranks)
    if as_json:
        echo_json(read_answer()[0])
    elif once or not sys.stdout.isatty():
        state, note, clock = _look()
        uses = Uses().look(state, time.monotonic()) if ranks else {}
        for line in make_screen(state, note, clock, terminal_width() or 10**6, view=view, uses=uses):
            click.echo(line)
    else:
        with contextlib.suppress(KeyboardInterrupt), _screen(), _keys() as press:
            _show(view, interval, press)


def _show(view: View, interval: float, press: Callable[[float], str]) -> None:
    """Shows the services until q is pressed; `press` waits so many seconds for a key, "" where none comes."""
    uses = Uses()
    while True:
        state, note, clock = _look()
        used = uses.look(state, time.monotonic())
        until = time.monotonic() + interval
        while True:
            columns, rows = shutil.get_terminal_size()
            lines = make_screen(state, note, clock, columns, view=view, uses=used)
            if len(lines) > rows - 2:
                lines = [*lines[: rows - 3], f"  {len(lines) - rows + 3} more lines; see: torchpar status"]
            keys = f"  q quit   s sort: {view.order}   r {'without ranks' if view.ranks else 'ranks'}"[:columns]
            lines += ["", click.style(keys, dim=True)]
            text = "\r\n".join(f"{line}{_CLEAR_LINE}" for line in lines)
            click.echo(f"{_HOME}{text}{_CLEAR_REST}", nl=False, color=True)
            key = press(until - time.monotonic())
            if key == "q":
                return
            if not key:
                break
            view = view.press(key)


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    click.echo(_ENTER, nl=False, color=True)
    try:
        yield
    finally:
        click.echo(_LEAVE, nl=False, color=True)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Has each key come at once, where stdin is a terminal; nothing comes from anything else."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def press(seconds: float) -> str:
        if not select.select([terminal], [], [], max(0.0, seconds))[0]:
            return ""
        # At its end (a terminal that is gone) it ends, too.
        return os.read(terminal, 1).decode("ascii", "replace") or "q"

    tty.setcbreak(terminal)
    try:
        yield press
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(max(0.0, seconds))
    return ""


def _look() -> tuple[State, str, str]:
    answer, note = read_answer()
    return parse_state(answer), note, time.strftime("%H:%M:%S")


def make_screen(
    state: State,
    note: str,
    clock: str,
    width: int,
    *,
    view: View = _FIRST_VIEW,
    uses: Mapping[int, tuple[RankUse, float | None]] | None = None,
) -> list[str]:
    """Makes the lines of the screen, none wider than so many letters. `uses` are those of Uses.look()."""
    order = ORDERS[view.order]
    services = sorted(sorted(state.services, key=lambda service: service.title), key=order)  # type: ignore[arg-type]
    running = sum(service.state == "running" for service in services)
    wrong = sum(map(is_wrong, services)) + len(state.wrong)
    told = f"{wrong} wrong" if wrong else "not all can be seen" if note else "all is well"
    head = (
        f"{clock}  generation {state.generation or 'none'}, conf {state.conf}; {running} of {len(services)} running;"
        f" {told}"
    )
    lines = [*wrap(head, width), ""]
    rows: list[tuple[str, ...]] = []
    marks = []
    for service in services:
        rows.append(_row(service))
        marks.append(is_wrong(service))
        ranks = service.throughput.by_rank if view.ranks and service.throughput else ()
        rows += (_rank_row(rank, (uses or {}).get(rank.pid)) for rank in ranks)
        marks += [False] * len(ranks)
    lines += _table(rows, marks, width)
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
        state_text(service).removesuffix(" ago"),
        speed,
        wait,
        f"{used}/{service.given_cpus_now}" if used and service.given_cpus_now else used,
        shorten(service.cpus_now, _MOST_CPUS) if service.main_pid else "",
        "" if service.memory_bytes is None else size(service.memory_bytes),
    )


def _rank_row(rank: RankSpeed, used: tuple[RankUse, float | None] | None) -> tuple[str, ...]:
    use, cpus = used or (None, None)
    silent = rank.silent_seconds >= _SILENT_SECONDS
    return (
        f"  rank {rank.local_rank}",
        f"pid {rank.pid}" if use else "",
        f"none for {span(rank.silent_seconds)}" if silent else f"{rate(rank.steps_per_second)} steps/s",
        f"{100 * rank.loader_wait_share:.0f} %",
        "" if cpus is None else f"{cpus:.1f}",
        shorten(printable(use.cpus), _MOST_CPUS) if use else "",
        size(use.memory_bytes) if use else "",
    )


def _table(rows: Sequence[Sequence[str]], marks: Sequence[bool], width: int) -> Iterator[str]:
    """Makes the table; of names that leave no room for the rest the middle is left out, then the last columns go.

    A column goes as a whole: "3.8/1" would be read as a number, and "3.8/16" be meant.
    """
    table = [[printable(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(_HEADER, *table, strict=True)]
    rest = sum(widths[1:]) + 2 * len(widths)
    widths[0] = min(widths[0], max(_LEAST_NAME, width - rest), _MOST_NAME)
    while len(widths) > 1 and sum(widths) + 2 * len(widths) > width:
        del widths[-1]
    for number, row in enumerate([list(_HEADER), *table]):
        cells = [_cut(row[0], widths[0]), *row[1 : len(widths)]]
        line = "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True)).rstrip()
        mark = "!" if number and marks[number - 1] else " "
        yield f"{mark} {line}"[:width]


def _cut(text: str, most: int) -> str:
    """Leaves out the middle of a text that is too long: the ends of names tell them apart."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}~{text[most // 2 - most :]}"

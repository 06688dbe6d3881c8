"""The directions of imports: what is computed knows nothing of the machine, what runs in a job nothing of the rest."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "torchpar"

# What each room may import, beside its own modules; "" is torchpar/__init__.py. README has the same order as one line.
ROOMS = {
    "": "",
    "contract": "",
    "facts": "contract",
    "conf": "contract facts",
    "placement": "contract facts conf",
    "plan": "contract facts conf placement",
    "units": "contract facts conf placement plan",
    "arbitration": "contract facts conf placement plan",
    "host": "contract facts conf placement plan",
    "generations": "contract facts conf placement plan units host",
    "adhoc": "contract facts conf placement plan units host",
    "fleet": "contract facts conf placement plan units",
    "verify": "contract facts conf placement plan units host generations",
    "doctor": "contract facts conf placement plan units host generations verify",
    "daemon": "contract facts conf placement plan units arbitration host generations adhoc doctor verify",
    "cli": "contract facts conf placement plan units host generations adhoc doctor verify daemon fleet",
    "runtime": "contract",
    "serve": "contract runtime",
}
INSIDE_A_JOB = ("runtime", "serve")
PURE = ("facts", "conf", "placement", "plan", "units", "arbitration", "fleet")
# In rooms that are not, these are.
ALSO_PURE = """
    contract.advice contract.cpulist contract.errors contract.paths contract.preload contract.reports
    contract.typed_json contract.unit_names verify.compare generations.readback generations.restart adhoc.plan
    adhoc.systemd_run adhoc.allocation
""".split()

# The standard library's doors to the machine.
DOORS = {"os", "subprocess", "socket", "shutil", "tempfile", "multiprocessing", "fcntl", "pathlib", "glob"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """torchpar.cli.main for src/torchpar/cli/main.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room of a module: "cli" for torchpar.cli.main, "" for torchpar itself."""
    return module.partition(".")[2].partition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, for type checkers alone too."""
    known = {name_of(other) for other in modules()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name of the module"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)


def own_imports(path: Path) -> set[str]:
    return {module for module in imports(path) if module.split(".")[0] == "torchpar"}


def each(*rooms: str, but: Iterable[str] = ()) -> pytest.MarkDecorator:
    """Run a test for every module of the rooms (of all, if none is named) that is not in `but`."""
    paths = [p for p in modules() if (not rooms or room_of(name_of(p)) in rooms) and room_of(name_of(p)) not in but]
    return pytest.mark.parametrize("path", paths, ids=[name_of(path) for path in paths])


@each()
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    """contract ← facts ← conf ← placement ← plan ← units, host ← generations, adhoc ← verify ← daemon ← cli."""
    room = room_of(name_of(path))
    used = {room_of(module) for module in own_imports(path)} - {room, ""}
    assert used <= set(ROOMS[room].split()), f"{room} may not import these"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """A cycle is a wrong module."""
    graph = {name_of(path): own_imports(path) - {name_of(path)} for path in modules()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


PURE_MODULES = [p for p in modules() if room_of(name_of(p)) in PURE or name_of(p).partition(".")[2] in ALSO_PURE]


@pytest.mark.parametrize("path", PURE_MODULES, ids=[name_of(path) for path in PURE_MODULES])
def test_what_computes_has_no_door_to_the_machine(path: Path) -> None:
    """The same conf and the same facts give the same bytes anywhere: only host/ touches files and processes."""
    tops = {module.split(".")[0] for module in imports(path)}
    # units names the directory of the template files, which are part of the program.
    assert tops & DOORS <= ({"pathlib"} if name_of(path) == "torchpar.units.drop_ins" else set())


@each(*INSIDE_A_JOB)
def test_what_runs_in_a_job_needs_no_package_but_the_jobs_torch(path: Path) -> None:
    """A job's interpreter has the standard library and its own torch, and Debian's packages perhaps not.

    orjson is used where it is installed, and tests/serve/test_requests.py goes without it.
    """
    tops = {module.split(".")[0] for module in imports(path)}
    assert tops <= set(sys.stdlib_module_names) | {"torchpar", "torch", "orjson"}


@each(but=INSIDE_A_JOB)
def test_the_product_uses_no_package_but_its_dependencies(path: Path) -> None:
    """Standard library, click, jinja2 and python-debian; never torch."""
    tops = {module.split(".")[0] for module in imports(path)}
    assert tops <= set(sys.stdlib_module_names) | {"torchpar", "click", "jinja2", "debian"}


@each("contract", "runtime", "serve", "daemon")
def test_what_is_said_goes_to_the_journal_and_to_no_logger(path: Path) -> None:
    """A logger that nobody has set up in some process says nothing; torch.export's alone is listened to."""
    assert "logging" not in set(imports(path)) or name_of(path) == "torchpar.serve.models.exported"


@each("daemon")
def test_the_daemon_stays_small(path: Path) -> None:
    """torchpard runs all the time: neither torch nor jinja2 in it."""
    seen: set[str] = set()
    todo = [path]
    while todo:
        for module in imports(todo.pop()):
            if module not in seen:
                seen.add(module)
                todo += [other for other in modules() if name_of(other) == module]
    assert not {module.split(".")[0] for module in seen} & {"torch", "jinja2"}

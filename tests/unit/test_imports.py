"""The directions of imports: what is computed knows nothing of the machine, what runs in a job nothing of the rest."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "torchpar"

# Each layer may import those above it and, within it, its own; runtime and serve stand apart.
LAYERS = (
    ("errors", "advice", "cpuset", "shape", "version", "notify", "mempolicy", "owners"),
    (
        "characters",
        "words",
        "values",
        "syntax",
        "directives",
        "passed",
        "exec_limits",
        "topology",
        "settings",
        "endpoint",
        "config",
        "environment",
        "preload",
    ),
    (
        "cores",
        "claims",
        "explicit",
        "gpus",
        "layout",
        "listening",
        "loaders",
        "placement",
        "places",
        "ranks",
        "sandbox",
        "opened",
        "memory_policy",
        "allocator",
        "variables",
        "plan",
    ),
    (
        "quoting",
        "units",
        "access",
        "ownership",
        "record",
        "unconfirmed",
        "changes",
        "readback",
        "verify",
        "picture",
        "adhoc",
        "transient",
    ),
    ("host", "generations", "store", "drift", "transition", "enforce", "observe", "retry", "guard", "unit_check"),
    ("daemon", "cli", "doctor", "fleet", "tune"),
)
INSIDE_A_JOB = ("runtime", "serve")
ALLOWED_INSIDE_A_JOB = {
    "advice", "environment", "errors", "mempolicy", "notify", "owners", "preload", "runtime", "serve", "version",
}  # fmt: skip
PURE = {name for layer in LAYERS[:4] for name in layer} - {"version", "notify", "mempolicy", "owners"}

# The standard library's doors to the machine.
DOORS = {"os", "subprocess", "socket", "shutil", "tempfile", "multiprocessing", "fcntl", "pathlib", "glob"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """torchpar.cli.main for src/torchpar/cli/main.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: "cli" for torchpar.cli.main, "" for torchpar itself."""
    return (module.split(".") + [""])[1]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, save for what only type checkers read."""
    known = {name_of(other) for other in modules()}
    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name of the module"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from walk(child)


def own_imports(path: Path) -> set[str]:
    return {module for module in imports(path) if module == "torchpar" or module.startswith("torchpar.")}


def each(*parts: str, but: Iterable[str] = ()) -> pytest.MarkDecorator:
    """Run a test for every module of the parts (of all, if none is named) that is not in `but`."""
    paths = [p for p in modules() if (not parts or part_of(name_of(p)) in parts) and part_of(name_of(p)) not in but]
    return pytest.mark.parametrize("path", paths, ids=[name_of(path) for path in paths])


@each()
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    """errors, cpuset ← settings, config, topology ← placement, plan ← units ← host ← daemon, cli, doctor."""
    part = part_of(name_of(path))
    used = {part_of(module) for module in own_imports(path)} - {""}
    if part in INSIDE_A_JOB:
        assert used <= ALLOWED_INSIDE_A_JOB
        return
    assert part == "" or any(part in layer for layer in LAYERS), f"{part} has no place in LAYERS"
    reached: set[str] = set()
    for layer in LAYERS:
        reached.update(layer)
        if part in layer or part == "":
            break
    assert used <= (reached if part else {"version"})


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


@each(*PURE)
def test_what_computes_has_no_door_to_the_machine(path: Path) -> None:
    """The same conf and the same facts give the same bytes anywhere: only host/ touches files and processes."""
    tops = {module.split(".")[0] for module in imports(path)}
    # units names the directory of the template files, which are part of the program.
    assert tops & DOORS <= ({"pathlib"} if name_of(path) == "torchpar.units" else set())


@each(*INSIDE_A_JOB)
def test_what_runs_in_a_job_needs_no_package_but_the_jobs_torch(path: Path) -> None:
    """A job's interpreter has the standard library and its own torch, and Debian's packages perhaps not."""
    tops = {module.split(".")[0] for module in imports(path)}
    assert tops <= set(sys.stdlib_module_names) | {"torchpar", "torch"}


@each(but=INSIDE_A_JOB)
def test_the_product_uses_no_package_but_its_dependencies(path: Path) -> None:
    """Standard library, click, jinja2 and python-debian; never torch."""
    tops = {module.split(".")[0] for module in imports(path)}
    assert tops <= set(sys.stdlib_module_names) | {"torchpar", "click", "jinja2", "debian"}


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

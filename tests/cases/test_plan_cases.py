"""Confs × machines: the whole plan and every unit, or the whole message, for each conf on each captured machine.

A case is a folder with `etc/` (and `usr/`), and in `expected/MACHINE/` what `torchpar plan` prints and what
`torchpar render` writes there. One new machine is one new folder in each. `pytest tests/cases --update-expected`
writes what comes out now; look at the difference before committing it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torchpar.cli.main import run

HERE = Path(__file__).parent
TREE = HERE.parents[1]
CASES = sorted(path for path in (HERE / "plan").iterdir() if path.is_dir())
PAIRS = [(case, machine) for case in CASES for machine in sorted((case / "expected").glob("*"))]


def read_tree(directory: Path) -> Iterator[tuple[str, str]]:
    """Every file (its text) and link (its target) below a directory."""
    for folder, folders, names in os.walk(directory):
        for name in sorted([*names, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]):
            path = Path(folder, name)
            text = f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text(encoding="utf-8")
            yield str(path.relative_to(directory)), text


@pytest.mark.parametrize(("case", "machine"), PAIRS, ids=[f"{case.name}-{machine.name}" for case, machine in PAIRS])
def test_the_conf_gives_exactly_this_on_this_machine(
    case: Path,
    machine: Path,
    unpack: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    update_expected: bool,
) -> None:
    """The plan, the units, the warnings and the exit status, and nothing besides."""
    root = tmp_path / "root"
    root.mkdir()
    for part in unpack(machine.name).iterdir():
        (root / part.name).symlink_to(part)
    for layer in ("etc", "usr"):
        if (case / layer).is_dir():
            shutil.copytree(case / layer, root / layer)
    if case.name == "shipped":
        (root / "etc").mkdir(exist_ok=True)
        shutil.copy(TREE / "etc/torchpar.conf", root / "etc/torchpar.conf")
        (root / "usr/lib/torchpar.conf.d").mkdir(parents=True)
        shutil.copy(TREE / "etc/00-vendor.conf", root / "usr/lib/torchpar.conf.d/00-vendor.conf")
    output = tmp_path / "output"
    output.mkdir()
    status = run(["plan", "--root", str(root)])
    printed = capsys.readouterr()
    if status == 0:
        assert run(["render", "--root", str(root), "--output", str(output / "units")]) == 0
    else:
        (output / "status").write_text(f"{int(status)}\n", encoding="utf-8")
    (output / "plan.txt").write_text(printed.out + printed.err, encoding="utf-8")
    found = {name: text.replace(str(root), "") for name, text in read_tree(output)}
    if update_expected:
        shutil.rmtree(machine)
        for name, text in found.items():
            (machine / name).parent.mkdir(parents=True, exist_ok=True)
            (machine / name).write_text(text, encoding="utf-8")
    assert found == dict(read_tree(machine))

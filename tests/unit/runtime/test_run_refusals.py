"""run.py where there is nothing to run: one line that says why and which key of the conf decides it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest

from tests.unit.runtime.jobs import Outcome, Place

pytestmark = pytest.mark.subprocess

JOB = {
    "TORCHPAR_JOB": json.dumps(
        {"service": "torchpar-train@demo.service", "interop_threads": 1, "cudnn_benchmark": None, "ranks": []}
    )
}


def test_a_script_that_is_not_there_is_one_line(place: Place) -> None:
    """What is missing, which key of which section names it, and what to do; the status is that of a bad conf."""
    outcome = place.launched("/srv/no/x.py", **JOB)
    assert outcome == Outcome(
        78,
        "",
        "torchpar: /srv/no/x.py: no such file; set Script= in [Train demo] of torchpar.conf, then: torchpar apply\n",
    )


def test_an_interpreter_without_torch_is_named(place: Place) -> None:
    """Before the traceback, once; a script that can do without torch goes on."""
    without = "import os, sys\nsys.path[:] = [path for path in sys.path if not os.path.isdir(path + '/torch')]\n"
    tries = "for _ in range(2):\n    try: import torch\n    except ImportError: print('no')\nimport torch\n"
    place.write("x.py", without + tries)
    outcome = place.launched("x.py", **JOB)
    line, _, rest = outcome.err.partition("\n")
    assert line.endswith(
        "this Python has no torch; set Python= in [Train demo] of torchpar.conf, then: torchpar apply"
    ) and line.startswith("torchpar: /")
    assert (outcome.status, outcome.out) == (1, "no\nno\n")
    assert rest.startswith("Traceback") and rest.endswith("ModuleNotFoundError: No module named 'torch'\n")


def test_without_a_plan_the_line_names_no_section(place: Place) -> None:
    """Started by hand, or with a damaged variable, there is no service to name."""
    for environ in ({}, {"TORCHPAR_JOB": "{"}):
        outcome = place.launched("x.py", **environ)
        assert outcome.status == 78
        assert outcome.err == (
            f"torchpar: {place.path}/x.py: no such file;"
            " set Script= in the service's section of torchpar.conf, then: torchpar apply\n"
        )


def test_a_script_that_others_can_change_is_one_line(place: Place) -> None:
    """A service runs only what is its user's or root's, with everything on the way; so does a rank, and a module.

    What a person has started by hand is that person's own affair.
    """
    place.write("open/x.py", "print('ran')")
    (place.path / "open").chmod(0o777)
    place.write("y.py", "print('ran')")
    (place.path / "open/link").symlink_to("../y.py")
    for script in ("open/x.py", "open/link"):
        outcome = place.launched(place.path / script, **JOB)
        assert outcome.status == 78 and outcome.out == ""
        assert f"torchpar: {place.path}/{script}: everybody may write to {place.path}/open (mode" in outcome.err
        assert "chmod o-w" in outcome.err and "set Script= or User= in [Train demo]" in outcome.err
    (place.path / "open").chmod(0o1777)
    (place.path / "inward").symlink_to("open/x.py")
    # Nobody can replace it there; but anybody can put a torch.py beside it, and beside a link to it that is loaded.
    for script in ("open/x.py", "open/link", "inward"):
        assert place.launched(place.path / script, **JOB).status == 78
    assert place.launched(place.path / "open/x.py").out == "ran\n"
    by_hand = {"TORCHPAR_JOB": JOB["TORCHPAR_JOB"].replace("torchpar-train@demo", "torchpar-run-demo-1")}
    assert place.launched(place.path / "open/x.py", **by_hand).out == "ran\n"
    place.path.chmod(0o777)
    module = place.python(place.launcher, "-m", "y", **JOB)
    assert module.status == 78 and "set WorkingDirectory= or User= in [Train demo]" in module.err
    assert "No module named y" in place.python(place.launcher, "-m", "y", flags=("-I",), **JOB).err
    place.path.chmod(0o755)
    if os.geteuid() == 0:
        os.lchown(place.path / "open/link", 4242, 4242)
        assert f"{place.path}/open/link belongs to user 4242, who could run" in place.launched(
            place.path / "open/link", **JOB
        ).err


def test_the_interpreter_is_not_asked_about_itself(place: Place) -> None:
    """As torchpar.conf(5) says: whoever put another in its place would not ask."""
    place.write("x.py", "print('ran')")
    (place.path / "open").mkdir()
    (place.path / "open").chmod(0o777)
    (place.path / "open/python3").symlink_to(sys.executable)
    environment = {**os.environ, **JOB}
    command = [place.path / "open/python3", "-B", place.launcher, "--", place.path / "x.py"]
    done = subprocess.run(command, env=environment, cwd=place.path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_a_script_that_cannot_be_read_is_one_line(place: Place) -> None:
    """The reason is the kernel's; as it often is a matter of permissions, User= is named as well."""
    (place.path / "x.py").symlink_to("x.py")  # a reason that holds for root too
    outcome = place.launched("x.py", **JOB)
    assert outcome == Outcome(
        78,
        "",
        f"torchpar: {place.path}/x.py: cannot be read: Too many levels of symbolic links;"
        " set Script= or User= in [Train demo] of torchpar.conf, then: torchpar apply\n",
    )


@pytest.mark.parametrize("form", ["folder", "archive.zip"])
def test_a_folder_without_a_main_is_one_line(place: Place, form: str) -> None:
    """There is nothing in it that can run."""
    if form == "folder":
        (place.path / form).mkdir()
    else:
        with zipfile.ZipFile(place.path / form, "w") as archive:
            archive.writestr("other.py", "")
    outcome = place.launched(form, **JOB)
    assert outcome == Outcome(
        78,
        "",
        f"torchpar: {place.path}/{form}: a directory or zip file without __main__.py;"
        " set Script= in [Train demo] of torchpar.conf, then: torchpar apply\n",
    )


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("nosuch", "No module named nosuch"),
        ("nosuch.inner", "Error while finding module specification for 'nosuch.inner'"),
        ("empty", "No module named empty.__main__; 'empty' is a package and cannot be directly executed"),
    ],
)
def test_a_module_that_is_not_there_is_one_line(place: Place, module: str, why: str) -> None:
    """The reason is the interpreter's own, the status that of a bad conf."""
    (place.path / "empty").mkdir()
    place.write("empty/__init__.py", "")
    outcome = place.python(place.launcher, "-m", module, **JOB)
    assert outcome.status == 78
    assert outcome.err.startswith(f"torchpar: {module}: {why}")
    assert outcome.err.endswith("; set Module= in [Train demo] of torchpar.conf, then: torchpar apply\n")
    assert outcome.err.count("\n") == 1


def test_a_module_that_fails_in_its_own_import_keeps_its_traceback(place: Place) -> None:
    """Only what is not there is a matter of the conf."""
    place.write("package/__init__.py", "import nosuch_dependency\n")
    place.write("package/__main__.py", "")
    place.write("leaving.py", "import sys; sys.exit('by itself')\n")
    assert "nosuch_dependency" in place.same("package", module=True).err
    assert place.same("leaving", module=True) == Outcome(1, "", "by itself\n")


@pytest.mark.parametrize("arguments", [(), ("--",), ("-m",), ("x.py",), ("-c", "pass")], ids=" ".join)
def test_anything_else_is_told_the_usage(place: Place, arguments: tuple[str, ...]) -> None:
    """run.py is started by a unit; by hand it says how."""
    outcome = place.python(place.launcher, *arguments)
    assert outcome.status == 64
    assert outcome.err.startswith("usage: run.py -- SCRIPT")

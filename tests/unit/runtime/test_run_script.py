"""run.py against the interpreter itself: whatever a script does, it does the same under both."""

from __future__ import annotations

import json
import re
import zipfile

import pytest

from tests.unit.runtime.jobs import Outcome, Place
from tests.unit.runtime.scripts import METHODS, POOLS, SCRIPTS

pytestmark = pytest.mark.subprocess


@pytest.mark.parametrize("what", SCRIPTS)
def test_a_script_does_what_it_does_without_the_launcher(place: Place, what: str) -> None:
    """Output, error output with its tracebacks, and exit status are those of `python x.py`."""
    place.write("x.py", SCRIPTS[what])
    place.same("x.py", "--epochs", "90", "--", "-m", stdin="abc\n")


@pytest.mark.parametrize(
    "content",
    [b"# coding: latin-1\nprint(ascii('\xff'))\n", b"x = 1\r\nprint(x)\r\n", b"x = 1\rprint(x)\r", b"print(1)"],
    ids=["Latin-1", "lines of DOS", "lines of old Macs", "no last line end"],
)
def test_any_bytes_are_read_as_the_interpreter_reads_them(place: Place, content: bytes) -> None:
    """The coding is found as PEP 263 says, and lines end as they always did."""
    (place.path / "x.py").write_bytes(content)
    place.same("x.py")


@pytest.mark.parametrize(
    "content",
    [b"print('\xff')\n", b"# coding: nonsense\nprint(1)\n", b"print(1)\0\nprint(2)\n"],
    ids=["not UTF-8", "a coding that is none", "a null byte"],
)
def test_bytes_that_are_no_source_end_both_alike(place: Place, content: bytes) -> None:
    """The parser's words depend on whether it is handed a file or its bytes, the status and our silence do not."""
    (place.path / "x.py").write_bytes(content)
    bare, launched = place.python("x.py"), place.launched("x.py")
    assert (launched.status, launched.out) == (bare.status, bare.out) == (1, "")
    assert "Error: " in launched.err
    assert "torchpar" not in launched.err


@pytest.mark.parametrize(
    "flags",
    [("-O",), ("-OO",), ("-X", "dev"), ("-W", "error"), ("-u",), ("-I",), ("-E",), ("-s",), ("-b",)],
    ids="".join,
)
def test_the_interpreters_options_stay_in_force(place: Place, flags: tuple[str, ...]) -> None:
    """ExecStart= may hold options before run.py; the script sees them as if it had been started itself."""
    place.write(
        "x.py",
        """
        import sys, warnings
        print(sys.flags, sys._xoptions, sys.warnoptions, __debug__, sys.argv)
        print([folder for folder in sys.path if "launcher" not in folder])
        assert sys.argv, "asserted"
        warnings.warn("careful")
        """,
    )
    place.same("x.py", flags=flags)


def test_a_safe_path_has_no_folder_in_front(place: Place) -> None:
    """With PYTHONSAFEPATH neither the script's folder nor the launcher's is searched first."""
    place.write("x.py", "import sys; print(sys.path[0], sys.flags)\n")
    outcome = place.same("x.py", PYTHONSAFEPATH="1")
    assert str(place.launcher.parent) not in outcome.out


@pytest.mark.parametrize(
    "name", ["./x.py", "../srv/x.py", "with space.py", "größe.py", "-x.py", "noextension", "link.py"]
)
def test_a_script_is_found_by_any_name(place: Place, name: str) -> None:
    """A relative path, a link, a name with spaces: __file__, sys.argv and sys.path[0] are the interpreter's."""
    text = "import sys, neighbour\nprint(__file__, sys.argv, sys.path[0], neighbour.NAME)\n"
    if name == "link.py":
        place.write("real/x.py", text)
        place.write("real/neighbour.py", "NAME = 'real'\n")
        (place.path / name).symlink_to("real/x.py")
    else:
        place.write(name, text)
        place.write("neighbour.py", "NAME = 'beside'\n")
    if name.startswith("-"):
        # The interpreter itself has no way to be given such a name; the launcher's "--" is one.
        assert place.launched(name).out.endswith("beside\n")
    else:
        place.same(name)
        place.same(str(place.path / name))


def test_a_compiled_script_runs(place: Place) -> None:
    """A .pyc file is a script too."""
    place.write("x.py", "import sys\nprint(__file__, type(__loader__), sys.argv)\n1 / 0\n")
    compile_it = "import py_compile; py_compile.compile('x.py', 'x.pyc')"
    assert place.python("-c", compile_it).status == 0
    place.same("x.pyc", "a")


@pytest.mark.parametrize("form", ["folder", "archive.zip", "archive"])
def test_a_folder_or_an_archive_with_a_main_runs(place: Place, form: str) -> None:
    """As `python FOLDER` and `python ARCHIVE.zip` run their __main__.py, tracebacks included."""
    files = {
        "__main__.py": "import sys, part\nprint(__file__, __spec__.name, sys.argv, sys.path[0])\npart.work()\n",
        "part.py": "def work():\n    raise ValueError(__name__)\n",
    }
    if form == "folder":
        for name, text in files.items():
            place.write(f"{form}/{name}", text)
    else:
        with zipfile.ZipFile(place.path / form, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    assert "ValueError: part" in place.same(form, "a").err
    place.same(str(place.path / form), "a")


@pytest.mark.parametrize("module", ["single", "package", "package.inner", "json.tool"])
def test_a_module_runs_as_by_m(place: Place, module: str) -> None:
    """`-m` finds modules and packages from the working directory, with __spec__ and relative imports."""
    text = """
        import sys
        if __package__:
            from . import part
        print(__name__, __package__, __spec__, __file__, sys.argv, sys.path[0])
        def fail(): raise ValueError(__name__)
        fail()
    """
    place.write("single.py", text)
    place.write("package/__init__.py", "print('init of', __name__)\n")
    place.write("package/__main__.py", text)
    place.write("package/inner.py", text)
    place.write("package/part.py", "")
    place.same(module, "--help", module=True)


@pytest.mark.parametrize("method", METHODS)
def test_the_processes_of_a_module_find_it_again(place: Place, method: str) -> None:
    """A class of a module that runs by -m is found by its name in a child, however that is started."""
    place.write("package/__init__.py", "")
    place.write("package/job.py", POOLS[method])
    place.same("package.job", module=True)


def test_the_launchers_folder_is_the_last_to_be_searched(place: Place) -> None:
    """`import torchpar.runtime` works in the script and in what it spawns, and hides no module of the user's."""
    place.write("run.py", "WHOSE = 'the user'\n")
    place.write(
        "x.py",
        """
        import multiprocessing, os, sys
        def seen():
            import run, torchpar.runtime
            return run.WHOSE, torchpar.runtime.plan(), os.path.basename(os.path.dirname(sys.path[-1] + "/"))
        if __name__ == "__main__":
            print(seen())
            print(multiprocessing.get_context("spawn").Pool(1).apply(seen))
        """,
    )
    outcome = place.launched("x.py")
    assert outcome == Outcome(0, 2 * "('the user', None, 'python')\n", "")


def test_the_script_has_no_name_of_the_launcher(place: Place) -> None:
    """Neither in __main__ nor in front of sys.path; only modules that are called torchpar are there besides."""
    place.write("x.py", "import sys\nprint(sorted(sys.modules), sys.path, sys.meta_path)\n")
    bare, launched = (place.python(*command, "x.py").out for command in ((), (place.launcher, "--")))
    extra = set(re.findall(r"'([^']+)'", launched)) - set(re.findall(r"'([^']+)'", bare))
    modules = {"torchpar", "torchpar.runtime", "torchpar.runtime.start", "torchpar.runtime.start.script"}
    assert extra == modules | {str(place.launcher.parent / "python")}


@pytest.mark.parametrize(("paths", "first"), [(None, []), ("", []), ("/srv/own:/srv/more", ["/srv/own", "/srv/more"])])
def test_pythons_that_the_script_starts_have_the_module_too(
    place: Place, paths: str | None, first: list[str]
) -> None:
    """After what the service's own PYTHONPATH says, and nothing but the package: no module of theirs is hidden."""
    place.write(
        "x.py",
        """
        import os, subprocess, sys
        print(os.listdir(os.environ["PYTHONPATH"].split(":")[-1]), flush=True)
        code = "import sys, torchpar.runtime; print(torchpar.runtime.plan(), sys.path[1:-1])"
        print(subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True), flush=True)
        subprocess.run([sys.executable, sys.argv[1], "--", "y.py"])
        """,
    )
    place.write("y.py", "import os; print(os.environ['PYTHONPATH'])")
    folder = place.launcher.parent / "python"
    outcome = place.launched("x.py", str(place.launcher), **({} if paths is None else {"PYTHONPATH": paths}))
    assert outcome.out.splitlines()[0] == "['torchpar']"
    assert f"None {[*first, str(folder)]}"[:-1] in outcome.out and "returncode=0" in outcome.out
    assert outcome.out.splitlines()[-1] == ":".join([*first, str(folder)])


@pytest.mark.parametrize(
    ("environ", "caches"),
    [
        ({"HOME": "/nonexistent"}, ["{0}", "{0}/triton"]),
        ({"HOME": "/nonexistent", "XDG_CACHE_HOME": "/x"}, ["/x", "{0}/triton"]),
        ({"HOME": "/nonexistent", "CACHE_DIRECTORY": ""}, [None, None]),
        ({"HOME": "{0}"}, [None, None]),
    ],
    ids=["no home", "the conf's own", "no unit", "a home"],
)
def test_caches_are_in_the_home_or_where_there_is_none_in_the_services_folder(
    place: Place, environ: dict[str, str], caches: list[str | None]
) -> None:
    """As at a login, unless that could not write them."""
    place.write("x.py", "import os; print([os.environ.get(name) for name in ('XDG_CACHE_HOME', 'TRITON_CACHE_DIR')])")
    folder = str(place.path)
    given = {name: value.format(folder) for name, value in {"CACHE_DIRECTORY": folder, **environ}.items()}
    assert place.launched("x.py", **given).out == f"{[text and text.format(folder) for text in caches]}\n"


@pytest.mark.parametrize("service", ["torchpar-train@demo.service", "torchpar-run-x-1.service", None])
def test_a_script_that_meets_the_sandbox_is_told_which_keys_open_it(place: Place, service: str | None) -> None:
    """Above its own traceback. A job that no section declares has no sandbox."""
    place.write("x.py", "raise OSError(30, 'Read-only file system', '/data/ü')\n")
    settings = {"service": service, "interop_threads": 1, "cudnn_benchmark": None, "ranks": []}
    told = place.launched("x.py", **({"TORCHPAR_JOB": json.dumps(settings)} if service else {})).err
    line = "torchpar: '/data/ü' cannot be written by this service; ReadWritePaths= or User= in [Train demo] of"
    assert told.startswith(f"{line} torchpar.conf opens it\nTraceback") is (service == "torchpar-train@demo.service")
    assert told.endswith("OSError: [Errno 30] Read-only file system: '/data/ü'\n")

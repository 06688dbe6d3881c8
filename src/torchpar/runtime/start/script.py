"""Runs a script or a module as __main__, as the interpreter itself would, from a run.py that has been started as such.

Everything here comes before the script's first line, so it imports only what an interpreter has loaded by then. Of the
plan it knows no more than whether there is one; what concerns torch is left to torch_import.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

EXIT_USAGE = 64  # sysexits.h
EXIT_CONFIG = 78
EROFS = 30  # errno(3)
LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")
USAGE = "usage: run.py -- SCRIPT [ARGUMENT...]\n       run.py -m MODULE [ARGUMENT...]\n"


def main() -> None:
    """Runs what sys.argv names. Returns when the script comes to its end and raises what the script raises."""
    if len(sys.argv) < 3 or sys.argv[1] not in ("--", "-m"):
        sys.stderr.write(USAGE)
        sys.exit(EXIT_USAGE)
    launcher, option, what = sys.argv[:3]
    # The name of a note in fallback.py, which is not imported for nothing.
    cache = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if cache and os.path.exists(cache + "/torchpar-preload"):
        from torchpar.runtime.start.fallback import start_without

        start_without()
    if cache and not os.access(os.path.expanduser("~"), os.W_OK):
        # A daemon's account may have no home, and a home on the network may be for reading only.
        os.environ.setdefault("XDG_CACHE_HOME", cache)
        os.environ.setdefault("TRITON_CACHE_DIR", cache + "/triton")
    try:
        run, parameters = prepare(option, what, sys.argv[3:])
        run(*parameters)
    except SystemExit as error:
        # One frame down it is runpy itself that exits, having found nothing to run; what it runs is further down.
        trace = error.__traceback__ and error.__traceback__.tb_next
        if trace and not trace.tb_next and trace.tb_frame.f_code.co_name == "_run_module_as_main":
            if option == "-m":
                refuse(what, str(error.code)[len(f"{sys.executable}: ") :], "Module=")
            refuse(os.path.abspath(what), "a directory or zip file without __main__.py", "Script=")
        raise
    except BaseException as error:
        keep_cause(error)
        say_read_only(error)
        sys.excepthook = without_frames_of((launcher, __file__), sys.excepthook)
        raise


def prepare(option: str, what: str, arguments: "list[str]") -> "tuple[Callable[..., object], tuple[Any, ...]]":  # noqa: C901 - the order in which the interpreter itself starts
    """Makes the interpreter's state that of a start without a launcher; returns what to call, and with what."""
    # With PYTHONSAFEPATH, -P or -I the interpreter puts no folder in front, neither the launcher's nor the script's.
    safe_path = getattr(sys.flags, "safe_path", sys.flags.isolated)
    if not safe_path:
        del sys.path[0]
    job = os.environ.get("TORCHPAR_JOB")
    if job is not None:
        from torchpar.runtime.start.torch_import import TorchImport

        # Whoever is the only process on all of the service's CPUs has been bound by systemd. To read the plan takes
        # longer than all else here, which that one is spared until it imports torch.
        several = "LOCAL_RANK" in os.environ or job.count('"loader_cpus":"') > job.count('"loader_cpus":""')
        if several or may_be_moved(job):
            from torchpar.runtime.ranks import rank

            rank.prepare()
        sys.meta_path.insert(0, TorchImport())
    # A job that a person has started by hand runs what that person says.
    declared = job is not None and '"torchpar-train@' in job
    if option == "-m":
        if declared and not safe_path:
            refuse_foreign("WorkingDirectory=", os.getcwd(), code=False)
        sys.argv = ["-m", *arguments]
        if not safe_path:
            sys.path.insert(0, os.getcwd())
        module = by_runpy(what, True)
        return (run_launcher, module) if job is not None and what in LAUNCHERS else module

    sys.argv = [what, *arguments]
    path = what if os.path.isabs(what) else os.path.join(os.getcwd(), what)
    if declared:
        refuse_foreign("Script=", path, code=True)
    for hook in sys.path_hooks:  # this is how the interpreter finds out whether it is a directory or a zip file
        try:
            hook(path)
        except ImportError:
            continue
        sys.path.insert(0, path)
        return by_runpy("__main__", False)

    try:
        with open(path, "rb") as file:
            source = file.read()
    except (FileNotFoundError, NotADirectoryError):
        refuse(path, "no such file", "Script=")
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror}", "Script= or User=")
    if not safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    if path.endswith(".pyc"):
        from importlib.machinery import SourcelessFileLoader

        compiled = SourcelessFileLoader("__main__", path)
        return exec, (compiled.get_code("__main__"), new_main(__loader__=compiled, __file__=path, __cached__=None))
    code = compile(source, path, "exec", dont_inherit=True)
    loader = type(sys.modules["__main__"].__loader__)("__main__", path)  # type: ignore[call-arg, misc]
    return exec, (code, new_main(__loader__=loader, __file__=path, __cached__=None))


def may_be_moved(job: str) -> bool:
    """Says whether torchpard may give the service other CPUs than planned: then it has left a file for it, by its unit.

    Its path is GIVEN in paths.py, which is not imported for nothing.
    """
    unit = job.partition('"service":"')[2].partition('"')[0].replace("\\\\", "\\")
    return "INVOCATION_ID" in os.environ and os.path.exists("/run/torchpar/given/" + unit)


def run_launcher(run: "Callable[..., object]", parameters: "tuple[Any, ...]") -> None:
    """Runs PyTorch's own launcher of ranks, which then ends them as launch.py does when the service is stopped."""
    from torchpar.runtime.ranks.calm import run_calmly

    run_calmly(run, parameters)


def by_runpy(name: str, search: bool) -> "tuple[Callable[..., object], tuple[Any, ...]]":
    """Returns the function by which the interpreter itself runs modules, directories and zip files."""
    import runpy

    new_main()
    return runpy._run_module_as_main, (name, search)  # type: ignore[attr-defined]


def new_main(**names: object) -> "dict[str, Any]":
    """Puts a __main__ in the place of the launcher's, with the names that this interpreter gives each, and no other."""
    main = type(sys)("__main__")
    for name, value in vars(sys.modules["__main__"]).items():
        if name.startswith("__") and name not in ("__doc__", "__file__", "__cached__"):
            main.__dict__[name] = value
    main.__dict__.update(names)
    sys.modules["__main__"] = main
    return main.__dict__


def refuse(what: str, why: str, keys: str) -> "NoReturn":
    """Says what cannot be run and which keys of the conf decide it, and exits."""
    from torchpar.runtime.start.refusal import refusal

    sys.stderr.write(f"torchpar: {refusal(what, why, keys)}\n")
    sys.exit(EXIT_CONFIG)


def refuse_foreign(key: str, path: str, *, code: bool) -> None:
    """Refuses a file of code, or a folder of modules, that somebody else than the service's user and root can change.

    It was so when the conf was put in force, but root may have given away what was root's.
    """
    from torchpar.contract.owners import code_places, find_strangers

    user = os.geteuid()
    for place in code_places(path) if code else [path]:
        try:
            found = next(find_strangers(place, (0, user), shared=user != 0), None)
        except OSError:
            continue  # whoever opens it is told
        if found:
            from torchpar.runtime.start.refusal import word_stranger

            refuse(path, word_stranger(found, user), key + " or User=")


def keep_cause(error: BaseException) -> None:
    """Lets it be known where the malloc that torchpar preloads may have ended the script."""
    if "TORCHPAR_PRELOAD" not in os.environ:
        return
    try:
        from torchpar.runtime.start import fallback

        fallback.keep_cause(error)
    except Exception as failure:  # whatever it is, the script's own error is what counts
        os.write(2, f"torchpar: why the script ended is not kept: {failure!r}\n".encode(errors="backslashreplace"))


def say_read_only(error: BaseException) -> None:
    """Says which keys open a folder that the sandbox of the service keeps read-only (EROFS)."""
    if not isinstance(error, OSError) or error.errno != EROFS or "TORCHPAR_JOB" not in os.environ:
        return
    from torchpar.runtime.start.refusal import section

    if where := section():
        what = f"{error.filename!r:.300} cannot be written by this service"
        text = f"torchpar: {what}; ReadWritePaths= or User= in {where} of torchpar.conf opens it\n"
        os.write(2, text.encode(errors="backslashreplace"))


def without_frames_of(
    files: "tuple[str, ...]", hook: "Callable[[Any, Any, Any], object]"
) -> "Callable[[Any, Any, Any], object]":
    """Returns the script's own sys.excepthook, or the interpreter's, with a traceback that begins with the script."""

    def excepthook(kind: "Any", error: "Any", trace: "Any") -> None:
        while trace and trace.tb_frame.f_code.co_filename in files:
            trace = trace.tb_next
        sys.last_traceback = error.__traceback__ = trace
        hook(kind, error, trace)

    return excepthook

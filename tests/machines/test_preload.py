"""A preloaded malloc never kills a job on a booted Debian: found before the start, or left out after a failed one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.machines.container import Container
from tests.machines.machine import Machine
from tests.machines.package import build_root
from tests.machines.roots import Suite, make_root
from tests.machines.test_apply import TRAIN, apply
from tests.machines.test_ranks import host, lines
from tests.machines.test_runtime import service, verified

__all__ = ["host"]  # the fixture


# As an environment of conda: a libstdc++ that is newer than Debian's, and a library beside it that needs that one.
STAND_IN = r"""
cd /build
printf 'GLIBCXX_3.4.99 { global: newer_than_debian; local: *; };\n' >version.map
printf 'int newer_than_debian(void) { return 42; }\n' >own.c
printf 'int newer_than_debian(void);\nint answer(void) { return newer_than_debian(); }\n' >needs.c
gcc -shared -fPIC -Wl,-soname,libstdc++.so.6 -Wl,--version-script=version.map -o libstdc++.so.6 own.c
gcc -shared -fPIC -Wl,-rpath,'$ORIGIN' -o libneeds.so needs.c libstdc++.so.6
"""

LOADS = "import ctypes\nprint('answer', ctypes.CDLL('/opt/own/lib/libneeds.so').answer(), flush=True)\n"

# What it allocates by libc's strdup, which calls the preloaded malloc, it frees by libc's own free.
FREES = """\
import ctypes, os, sys, time
libc = ctypes.CDLL("libc.so.6")
libc.strdup.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
for size in range(100):
    libc.free(libc.strdup(b"x" * size))
print("done", *sys.argv[1:], os.environ.get("RANK"), flush=True)
time.sleep(float(sys.argv[1]))
"""

ABORTS = "import os\nprint('preload', os.environ.get('LD_PRELOAD'), flush=True)\nos.abort()\n"

WITHOUT = "the next start is without it"
# glibc's free aborts at a pointer that is not its own, or follows it to nowhere: what lies before it decides.
KILLED = r"\((SIGABRT|SIGSEGV) after "
NOW = "so it runs with glibc's malloc now; Allocator=glibc in [Train {}] of torchpar.conf leaves it out for good"


@pytest.fixture(scope="module")
def stand_in(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the two libraries, compiled on the release."""
    folder = tmp_path_factory.mktemp(suite.value)
    with Container(make_root(build_root(suite)), f"{suite.value}-stand-in") as container:
        (container.layer / "build").mkdir(exist_ok=True)
        log = folder / "log"
        process = container.start(
            "--as-pid2", "--private-network", console=log, command=["sh", "-euc", STAND_IN]
        )
        assert process.wait(timeout=3600) == 0, log.read_text()
        for name in ("libstdc++.so.6", "libneeds.so"):
            shutil.copy(container.layer / "build" / name, folder)
    return folder


def succeeded(machine: Machine, name: str) -> bool:
    """Whether the job has come to its end, in whichever start."""
    unit = TRAIN.format(name)
    return (machine.show(unit, "ActiveState"), machine.show(unit, "Result")) == ("inactive", "success")


def test_a_libstdcxx_of_its_own_is_found_before_the_start_or_after_an_import(host: Machine, stand_in: Path) -> None:
    """An interpreter that brings one is given no preload. A package that does runs from the second start on."""
    for name in ("libstdc++.so.6", "libneeds.so"):
        host.push(stand_in / name, f"/opt/own/lib/{name}")
    host.sh(
        "mkdir -p /opt/own/bin; cp -L /usr/bin/python3 /opt/own/bin/python; echo 'home = /usr/bin' >/opt/own/pyvenv.cfg"
    )
    host.write("/srv/loads.py", LOADS)
    apply(
        host,
        "[Train test-own]\nScript=/srv/loads.py\nPython=/opt/own/bin/python\nRestart=no\n"
        "[Train test-package]\nScript=/srv/loads.py\nService.RestartSec=100ms\n",
    )
    why = host.run("torchpar", "explain", "test-own").stdout
    assert "/opt/own/bin/python has a libstdc++ of its own, /opt/own/lib/libstdc++.so.6" in why
    host.run("systemctl", "start", *map(TRAIN.format, ("test-own", "test-package")))
    for name in ("test-own", "test-package"):
        host.wait_until(lambda name=name: lines(host, name, "answer 42"), f"{name} loads its library")
        host.wait_until(lambda name=name: succeeded(host, name), f"the end of {name}")
    assert "preload" not in host.journal(TRAIN.format("test-own"))
    journal = host.journal(TRAIN.format("test-package"))
    assert "version `GLIBCXX_3.4.99' not found" in journal
    assert journal.count(WITHOUT) == journal.count(NOW.format("test-package")) == 1
    assert journal.index(WITHOUT) < journal.index(NOW.format("test-package")) < journal.index("answer 42")


def test_a_job_that_the_preload_kills_runs_without_it_and_shows_that(host: Machine) -> None:
    """One process and two ranks; the status says why. A stop, and a start by hand, and it runs without it at once."""
    host.write("/srv/frees.py", FREES)
    apply(
        host,
        "[Train test-frees]\nScript=/srv/frees.py\nArguments=3600\nService.RestartSec=100ms\n"
        "[Train test-frees-ranks]\nScript=/srv/frees.py\nArguments=0\nRanks=2\n",
    )
    unit, ranks = TRAIN.format("test-frees"), TRAIN.format("test-frees-ranks")
    host.run("systemctl", "start", unit, ranks)
    host.wait_until(lambda: lines(host, "test-frees", "done 3600"), "the second start")
    assert host.show(unit, "NRestarts") == "1"
    journal = host.journal(unit)
    assert re.search(KILLED, journal)
    assert journal.count(WITHOUT) == journal.count(NOW.format("test-frees")) == 1
    found = verified(host, "test-frees")
    assert (found["allocator"], found["environment"][0]) == (("drift", "glibc"), "ok")
    said = f"train@test-frees .*runs with glibc's malloc, since its last start with tcmalloc preloaded failed {KILLED}"
    host.wait_until(lambda: re.search(said, host.run("torchpar", "status", check=False).stdout), "the notice")
    shown = host.run("torchpar", "status", check=False).stdout.splitlines()
    row = next(line for line in shown if line.startswith("! train@test-frees "))
    assert service(host, "test-frees")["allocator"] == "tcmalloc" and "glibc" in row
    assert "to place it as planned" not in host.run("torchpar", "verify", "test-frees", check=False).stdout

    host.run("systemctl", "restart", unit)
    host.wait_until(lambda: len(lines(host, "test-frees", "done 3600")) == 2, "it runs again")
    assert host.journal(unit).count(WITHOUT) == 1
    host.run("systemctl", "stop", unit)

    host.wait_until(lambda: succeeded(host, "test-frees-ranks"), "the end of both ranks")
    assert re.search(r"\(status (134|139) after ", host.journal(ranks))
    assert sorted(lines(host, "test-frees-ranks", r"done 0 (\d)")) == ["0", "1"]
    assert host.journal(ranks).count(WITHOUT) == host.journal(ranks).count(NOW.format("test-frees-ranks")) == 1


def test_a_job_that_dies_by_itself_keeps_its_preload(host: Machine) -> None:
    """Once without it shows that; Restart=no is heeded, so each start is a person's."""
    host.write("/srv/aborts.py", ABORTS)
    apply(host, "[Train test-aborts]\nScript=/srv/aborts.py\nRestart=no\n")
    unit = TRAIN.format("test-aborts")
    for start in range(1, 4):
        host.run("systemctl", "start", unit, check=False)
        host.wait_until(
            lambda start=start: len(lines(host, "test-aborts", "preload ")) == start
            and host.show(unit, "ActiveState") == "failed",
            "its end",
        )
    with_it = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
    assert lines(host, "test-aborts", "preload (/.*|None)") == [with_it, "None", with_it]
    journal = host.journal(unit)
    assert journal.count(WITHOUT) == journal.count("that was not why, and it is preloaded again") == 1

    # A job without a conf is told at its end.
    done = host.run("torchpar", "run", "/srv/aborts.py", check=False)
    assert done.returncode == 134 and f"{with_it} was preloaded, which may be why" in done.stderr
    done = host.run("torchpar", "run", "--set", "Allocator=glibc", "/srv/aborts.py", check=False)
    assert done.returncode == 134 and "preloaded" not in done.stderr

"""A job that died by the preloaded malloc is started once more without it: the note, who reads it and who writes it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.runtime.jobs import Outcome, Place
from torchpar.contract.preload import GLIBC_THRESHOLDS
from torchpar.runtime.start import fallback

STOPPED = Path(__file__).resolve().parents[3] / "systemd" / "torchpar-stopped"

# A library that every interpreter can have preloaded.
PRELOAD = "libm.so.6"

JOB = json.dumps(
    {"service": "torchpar-train@demo.service", "interop_threads": 1, "cudnn_benchmark": None, "ranks": []}
)

CURE = "Allocator=glibc in [Train demo] of torchpar.conf leaves it out for good"

SAYS = """
import os, sys
names = ("LD_PRELOAD", "TORCHPAR_WITHOUT_PRELOAD", "MALLOC_TOP_PAD_", "OWN")
print(sys.argv, sys.flags.optimize, sys.flags.dev_mode, [os.environ.get(name) for name in names])
"""


def start(place: Place, note: str | None, *, flags: tuple[str, ...] = (), **environ: str) -> Outcome:
    """Run the script with a preload and a note in its cache directory."""
    place.write("x.py", SAYS)
    if note is not None:
        (place.path / fallback.NOTE).write_text(note)
    known = {"LD_PRELOAD": PRELOAD, "TORCHPAR_PRELOAD": PRELOAD, "CACHE_DIRECTORY": f"{place.path}:/x", "OWN": "ü\n="}
    return place.launched("x.py", "", "a b", "ü", flags=flags, TORCHPAR_JOB=JOB, **{**known, **environ})


@pytest.mark.subprocess
def test_a_job_that_died_by_the_preload_runs_without_it_and_says_so(place: Place) -> None:
    """The same process becomes the same interpreter with the same flags and arguments, and glibc's thresholds."""
    outcome = start(place, f"without\n{PRELOAD}\nSIGABRT after 2 s\n", flags=("-O", "-X", "dev"))
    kept = [None, "SIGABRT after 2 s", GLIBC_THRESHOLDS["MALLOC_TOP_PAD_"], "ü\n="]
    assert outcome == Outcome(
        0,
        f"['x.py', '', 'a b', 'ü'] 1 True {kept}\n",
        f"torchpar: its last start with {PRELOAD} preloaded failed (SIGABRT after 2 s), so it runs with glibc's malloc"
        f" now; {CURE}\n",
    )
    # What the service's own environment says of glibc's malloc, stays.
    assert "'7'" in start(place, None, MALLOC_TOP_PAD_="7").out


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("note", "environ"),
    [
        (None, {}),
        ("", {}),
        (f"with\n{PRELOAD}\nSIGABRT after 2 s\n", {}),
        ("without\n/usr/lib/another.so\nSIGABRT after 2 s\n", {}),
        ("without\n\n\n", {"LD_PRELOAD": "", "TORCHPAR_PRELOAD": ""}),
        (f"without\n{PRELOAD}\nSIGABRT\n", {"TORCHPAR_PRELOAD": "/usr/lib/another.so"}),
        ("\0\udcff" * 9999, {}),
    ],
    ids=["none", "empty", "not the preload", "of another preload", "no preload", "the admin's preload", "no note"],
)
def test_any_other_note_changes_nothing(place: Place, note: str | None, environ: dict[str, str]) -> None:
    """What Environment= preloads is the admin's."""
    if note and "\udcff" in note:
        (place.path / fallback.NOTE).write_bytes(note.encode(errors="surrogateescape"))
        note = None
    outcome = start(place, note, **environ)
    assert outcome.err == "" and f"[{environ.get('LD_PRELOAD', PRELOAD)!r}, None, None, " in outcome.out


def test_a_link_a_pipe_and_a_folder_are_no_notes(tmp_path: Path) -> None:
    """The folder is the job's own: nothing in it holds anybody up or leads elsewhere."""
    good = tmp_path / "good"
    good.write_text("without\n/x.so\n\x1b[31mSIGABRT\n")
    (tmp_path / "link").symlink_to(good)
    os.mkfifo(tmp_path / "pipe")
    assert fallback.read_note(str(good)) == ("without", "/x.so", "[31mSIGABRT")
    for name in ("link", "pipe", ".", "nothing"):
        assert fallback.read_note(str(tmp_path / name)) == ("", "", "")


GLIBCXX = "/usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by /opt/x.so)"
CAUSE = "version `GLIBCXX_3.4.32' not found"


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("raises", "cause"),
    [
        (f"raise ImportError({GLIBCXX!r})", CAUSE),
        (f"raise OSError({GLIBCXX!r})", CAUSE),
        (f"try: raise ImportError({GLIBCXX!r})\nexcept ImportError as e: raise RuntimeError('no numpy') from e", CAUSE),
        ("import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import os; os.abort()'], check=True)",
         "died with <Signals.SIGABRT"),
        ("raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Segmentation fault. ')",
         "signal: Segmentation fault"),
        ("raise Exception('process 1 terminated with signal SIGBUS')", "terminated with signal SIGBUS"),
        ("raise ImportError('no module named numpy')", None),
        ("raise Exception('process 1 terminated with signal SIGKILL')", None),
    ],
)  # fmt: skip
def test_a_last_traceback_that_may_be_of_the_preload_is_kept(place: Place, raises: str, cause: str | None) -> None:
    """The script's own traceback and status stay; a line before it names the preload and what leaves it out."""
    place.write("x.py", raises)
    known = {"RUNTIME_DIRECTORY": str(place.path), "TORCHPAR_JOB": JOB, "TORCHPAR_PRELOAD": PRELOAD}
    bare = place.python("x.py")
    with_preload = place.launched("x.py", LD_PRELOAD=PRELOAD, **known)
    line = f"torchpar: {cause}: {PRELOAD} is preloaded and may be why; {CURE}\n" if cause else ""
    assert (with_preload.status, with_preload.err) == (1, line + bare.err)
    kept = place.path / fallback.CAUSE
    assert (kept.read_text() if kept.exists() else None) == (f"{cause}\n" if cause else None)
    # So is that of the start without, for the verdict; there is nothing to say of a preload then.
    kept.unlink(missing_ok=True)
    assert place.launched("x.py", **known) == bare and kept.exists() == bool(cause)
    # Nothing of it where torchpar preloads nothing.
    kept.unlink(missing_ok=True)
    assert place.launched("x.py", RUNTIME_DIRECTORY=str(place.path)) == bare and not kept.exists()


@pytest.mark.subprocess
def test_an_error_that_cannot_say_what_it_is_stays_the_scripts(place: Place) -> None:
    """Nothing of ours may become the job's failure."""
    place.write(
        "x.py", "class Odd(Exception):\n    def __str__(self): raise ValueError('odd')\nraise Odd\n"
    )
    bare, launched = place.python("x.py"), place.launched("x.py", TORCHPAR_PRELOAD=PRELOAD)
    said, _, rest = launched.err.partition("\n")
    assert "why the script ended is not kept" in said and (rest, launched.status) == (bare.err, 1)


def ended(place: Place, seconds: float = 2, result: str = "core-dump", **environ: str) -> str:
    """Run ExecStopPost= of a job that lived so long, as systemd does; what it said."""
    systemctl = place.write(
        "bin/systemctl",
        f"#!/bin/sh\necho ExecMainStartTimestampMonotonic=5000000\n"
        f"echo ExecMainExitTimestampMonotonic={5000000 + int(seconds * 1e6)}\n",
    )
    systemctl.chmod(0o755)
    path = "PATH=/usr/bin:/bin\n"
    text = STOPPED.read_text(encoding="utf-8")
    assert path in text
    stopped = place.write("stopped", "")
    stopped.write_text(text.replace(path, f"PATH={place.path}/bin:{os.defpath}\n"), encoding="utf-8")
    known = {
        "PATH": "/nonexistent",
        "SERVICE_RESULT": result,
        "EXIT_CODE": "dumped",
        "EXIT_STATUS": "ABRT",
        "LD_PRELOAD": PRELOAD,
        "TORCHPAR_PRELOAD": PRELOAD,
        "CACHE_DIRECTORY": str(place.path),
        "RUNTIME_DIRECTORY": str(place.path),
    }
    done = subprocess.run(
        ["/bin/sh", str(stopped), "torchpar-train@demo.service"],
        env={**known, **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


@pytest.mark.subprocess
def test_the_next_start_is_without_and_the_one_after_that_shows_whether_it_was_that(place: Place) -> None:
    """Two deaths are the job's own; a third changes nothing. Another preload begins anew."""
    note = place.path / fallback.NOTE
    note.symlink_to("/etc/hostname")
    assert ended(place) == (
        f"it ended with {PRELOAD} preloaded (SIGABRT after 2 s), which may be why: the next start is without it\n"
    )
    assert fallback.read_note(str(note)) == ("without", PRELOAD, "SIGABRT after 2 s")
    assert ended(place, EXIT_STATUS="SEGV") == (
        f"it ended without {PRELOAD} too (SIGSEGV after 2 s): that was not why, and it is preloaded again\n"
    )
    assert fallback.read_note(str(note)) == ("with", PRELOAD, "SIGSEGV after 2 s")
    assert ended(place) == ""
    other = "libdl.so.2"
    assert "the next start is without it" in ended(place, LD_PRELOAD=other, TORCHPAR_PRELOAD=other)
    assert fallback.read_note(str(note))[:2] == ("without", other)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "end",
    [
        {"result": "success"},
        {"EXIT_STATUS": "KILL"},
        {"EXIT_STATUS": "TERM", "EXIT_CODE": "killed"},
        {"EXIT_CODE": "exited", "EXIT_STATUS": "1"},
        {"EXIT_CODE": "exited", "EXIT_STATUS": "137"},
        {"seconds": 31},
        {"TORCHPAR_PRELOAD": ""},
        {"CACHE_DIRECTORY": ""},
        {"EXIT_CODE": "", "EXIT_STATUS": ""},
    ],
)
def test_any_other_end_leaves_no_note(place: Place, end: dict[str, str]) -> None:
    """A kill, an error, a crash after a while, a preload of the admin's."""
    assert ended(place, **end) == ""  # type: ignore[arg-type]
    assert not (place.path / fallback.NOTE).exists()


@pytest.mark.subprocess
def test_a_rank_that_was_killed_and_a_kept_cause_count_as_well(place: Place) -> None:
    """launch.py exits with 128 and the signal. A library that is not found is certain, also later."""
    note = str(place.path / fallback.NOTE)
    assert "(status 139 after 2 s)" in ended(place, EXIT_CODE="exited", EXIT_STATUS="139")
    os.unlink(note)
    kept = place.path / fallback.CAUSE
    kept.write_text("terminated with signal SIGBUS\n")
    assert ended(place, seconds=100, EXIT_CODE="exited", EXIT_STATUS="1") == ""
    assert "(terminated with signal SIGBUS after 2 s)" in ended(place, EXIT_CODE="exited", EXIT_STATUS="1")
    os.unlink(note)
    kept.write_text(f"{CAUSE}\n")
    assert f"({CAUSE})" in ended(place, seconds=100, EXIT_CODE="exited", EXIT_STATUS="1")
    assert fallback.read_note(note) == ("without", PRELOAD, CAUSE)

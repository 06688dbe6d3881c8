"""launch.py with a torch that has nothing but torchrun's parser and agent: how ranks start, end, and are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.runtime.jobs import PYTHON, Outcome, Place
from torchpar.contract.job import JobSettings, RankSettings, job_environment

pytestmark = pytest.mark.subprocess

FAKE_TORCH = Path(__file__).parent / "fake_torch"
CPUS = sorted(os.sched_getaffinity(0))
RANKS = tuple(
    RankSettings(
        local_rank=rank, cpus=str(CPUS[rank % len(CPUS)]), numa_nodes="0", threads=threads, loader_workers=0, gpus=()
    )
    for rank, threads in enumerate((3, 2))
)


def environment(place: Place, **fields: object) -> dict[str, str]:
    """What the unit of a service with two ranks sets."""
    settings = JobSettings(
        service="torchpar-train@demo.service", interop_threads=1, cudnn_benchmark=None, ranks=RANKS, **fields
    )  # type: ignore[arg-type]
    return {
        "PYTHONPATH": str(FAKE_TORCH),
        "RUNTIME_DIRECTORY": str(place.path),
        "OMP_NUM_THREADS": "3",
        **job_environment(settings),
    }


def launched(
    place: Place, *command: str, flags: tuple[str, ...] = (), max_restarts: int = 0, **environ: str
) -> Outcome:
    """What launch.py does, from its start to its end."""
    launch = place.launcher.with_name("launch.py")
    return place.python(
        launch, *command, flags=flags, **{**environment(place, max_restarts=max_restarts), **environ}
    )


@contextmanager
def running(place: Place, text: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Two ranks that have each written the file ready-RANK, and nothing of them at the end."""
    place.write("x.py", text)
    process = subprocess.Popen(
        [PYTHON, str(place.launcher.with_name("launch.py")), "--", "x.py"],
        cwd=place.path,
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", **environment(place), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        for file in place.path.glob("ready-*"):
            try:
                os.kill(int(file.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass


def await_file(place: Place, *names: str) -> None:
    """Wait until ranks have come that far."""
    deadline = time.monotonic() + 300
    while not all((place.path / name).exists() for name in names):
        assert time.monotonic() < deadline, f"{names} are not all there"
        time.sleep(0.02)


READY = """
import os, signal, sys, time
rank = os.environ["LOCAL_RANK"]
def put(name):
    with open(name + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".new", name)
"""


def test_each_rank_has_its_cpus_its_threads_and_an_address_that_leads_here(place: Place) -> None:
    """The unit says one number of threads, torchrun the host's own name."""
    place.write(
        "x.py",
        """
        import os, signal, sys
        names = "RANK", "OMP_NUM_THREADS", "MASTER_ADDR", "GLOO_SOCKET_IFNAME"
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        print([os.environ[name] for name in names], os.sched_getaffinity(0), sys.argv, blocked)
        """,
    )
    outcome = launched(place, "--", "x.py", "--rank", "a")
    assert (outcome.status, outcome.err) == (0, "")
    assert sorted(outcome.out.splitlines()) == [
        f"['{rank}', '{threads}', '127.0.0.1', 'lo'] {{{CPUS[rank % len(CPUS)]}}} ['x.py', '--rank', 'a'] set()"
        for rank, threads in enumerate((3, 2))
    ]


def test_what_the_services_environment_says_of_threads_stays(place: Place) -> None:
    """Environment= wins, for every rank."""
    place.write("x.py", "import os; print(os.environ['OMP_NUM_THREADS'])\n")
    assert launched(place, "--", "x.py", OMP_NUM_THREADS="7").out == "7\n7\n"


def test_a_module_and_the_interpreters_flags_reach_the_ranks(place: Place) -> None:
    """As with one process, `-m` and -O, -X and -W do what they say."""
    place.write("package/__init__.py", "")
    place.write(
        "package/job.py", "import sys\nprint(__name__, __package__, __debug__, sys._xoptions, sys.warnoptions)\n"
    )
    outcome = launched(place, "-m", "package.job", flags=("-O", "-X", "dev", "-W", "ignore"))
    assert outcome.out == 2 * "__main__ package False {'dev': True} ['default', 'ignore']\n"


NAMES = "('USE_LIBUV', 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE')"


def test_a_torch_without_libuv_is_not_asked_for_it(place: Place) -> None:
    """Debian 13's wants it by default, in the agent and in the ranks."""
    place.write("x.py", "import os; print([os.environ.get(name) for name in NAMES])\n".replace("NAMES", NAMES))
    assert launched(place, "--", "x.py", FAKE_TORCH="2.6") == Outcome(0, 2 * "['0', '1']\n", "")
    assert launched(place, "--", "x.py") == Outcome(0, 2 * "[None, None]\n", "")


@pytest.mark.parametrize("torch", ["1.13", "2.13"])
def test_flags_are_spelled_as_this_torchrun_knows_them(place: Place, torch: str) -> None:
    """torch 1.13 knows --nproc_per_node only; the answer is the same."""
    place.write("x.py", "")
    outcome = launched(place, "--", "x.py", max_restarts=3, FAKE_TORCH=torch, SHOW_FLAGS="yes")
    assert (outcome.status, outcome.err) == (0, "")
    assert "'max_restarts': '3'" in outcome.out and "'nproc_per_node': '2'" in outcome.out
    assert "'rdzv_endpoint': 'localhost:0'" in outcome.out


def test_a_flag_that_this_torchrun_lacks_is_told_apart(place: Place) -> None:
    """torch 1.13 has no --local-addr: it is left out and named, and no other flag is taken for it."""
    place.write(
        "ask.py",
        """
        import sys
        from torch.distributed.run import get_args_parser
        from torchpar.runtime.ranks.torchrun import spelled
        print(spelled(get_args_parser(), ["--local-addr=192.0.2.1", "--rdzv-id=a=b", "--no-python", "--rdzv"]))
        """,
    )
    asked = {
        torch: place.launched("ask.py", PYTHONPATH=str(FAKE_TORCH), FAKE_TORCH=torch).out for torch in ("1.13", "2.13")
    }
    assert asked == {
        "1.13": "(['--rdzv_id=a=b', '--no_python'], ['--local-addr=192.0.2.1', '--rdzv'])\n",
        "2.13": "(['--local-addr=192.0.2.1', '--rdzv-id=a=b', '--no-python'], ['--rdzv'])\n",
    }


def test_the_status_is_that_of_the_rank_that_failed(place: Place) -> None:
    """So that 78 still means: trying again heals nothing. One line says which rank it was."""
    place.write("x.py", "import os, sys, time\nsys.exit(78) if os.environ['RANK'] == '1' else time.sleep(600)\n")
    outcome = launched(place, "--", "x.py")
    assert outcome.status == 78
    assert "torchpar: rank 1 (process " in outcome.err and ") ended with status 78\n" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_rank_that_is_killed_brings_all_back(place: Place) -> None:
    """MaxRestarts= of torchrun."""
    place.write(
        "x.py",
        """
        import os, signal, time
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":
            print("back")
        elif os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            time.sleep(600)
        """,
    )
    assert launched(place, "--", "x.py", max_restarts=1).out == "back\nback\n"
    outcome = launched(place, "--", "x.py")
    assert outcome.status == 128 + signal.SIGKILL
    assert "was ended by SIGKILL" in outcome.err


def test_a_rank_that_sigterm_ends_without_a_stop_is_a_failure(place: Place) -> None:
    """earlyoom sends it, say: 143 would be success for the unit, and nothing would be tried again."""
    place.write("x.py", "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(600)\n")
    outcome = launched(place, "--", "x.py")
    assert outcome.status == 1
    assert "was ended by SIGTERM" in outcome.err


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"PYTHONPATH": ""}, "this Python cannot import torch: No module named 'torch'; set Python= in [Train demo]"),
        ({"FAKE_TORCH": "without distributed"}, "is built without torch.distributed; set Python= in [Train demo]"),
        ({"TORCHPAR_JOB": "{"}, "torchpar: TORCHPAR_JOB: not JSON"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_not_tried_again(place: Place, environ: dict[str, str], said: str) -> None:
    """Status 78, for which the unit is not restarted."""
    place.write("x.py", "")
    outcome = launched(place, "--", "x.py", **environ)
    assert outcome.status == 78
    assert said in outcome.err and outcome.err.count("\n") == 1


def test_a_script_that_is_not_there_is_said_once(place: Place) -> None:
    """Not by every rank, and before torch is imported."""
    outcome = launched(place, "--", "no/x.py", PYTHONPATH="")
    assert outcome.status == 78
    assert outcome.err == (
        f"torchpar: {place.path}/no/x.py: no such file; set Script= in [Train demo] of torchpar.conf,"
        " then: torchpar apply\n"
    )


def request_stop(place: Place, process: subprocess.Popen[str]) -> None:
    """What ExecStop= does: the request, then SIGTERM to the ranks and to their launcher."""
    place.write("stop", "")
    for number in [process.pid, *(int(file.read_text()) for file in place.path.glob("ready-*"))]:
        os.kill(number, signal.SIGTERM)


def test_ranks_that_know_nothing_of_it_are_ended_by_a_stop(place: Place) -> None:
    """The end is what systemd takes for clean."""
    with running(place, READY + "put('ready-' + rank); time.sleep(600)\n") as process:
        await_file(place, "ready-0", "ready-1")
        request_stop(place, process)
        assert process.wait(300) == 128 + signal.SIGTERM
    # The other hosts of an elastic job go on.
    assert not (place.path / "rendezvous-closed").exists()


def test_sigterm_from_elsewhere_ends_the_ranks_and_is_a_failure(place: Place) -> None:
    """As with one rank: nobody has asked for a stop, so the unit is to start again."""
    with running(place, READY + "put('ready-' + rank); time.sleep(600)\n") as process:
        await_file(place, "ready-0", "ready-1")
        process.terminate()
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "torchpar: SIGTERM has ended the ranks, and nobody had asked for a stop\n" in errors


def test_every_rank_finishes_its_own_work_when_the_service_is_stopped(place: Place) -> None:
    """torchrun would end rank 1 as soon as rank 0 has ended with a status, and start both again."""
    text = READY + """
def save(number, frame):
    put("saving-" + rank)
    while rank == "1" and not os.path.exists("go-on"):
        time.sleep(0.02)
    put("saved-" + rank)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
put("ready-" + rank)
time.sleep(600)
"""
    with running(place, text) as process:
        await_file(place, "ready-0", "ready-1")
        request_stop(place, process)
        await_file(place, "saved-0", "saving-1")
        time.sleep(1)  # Long enough for an agent that looks fifty times a second to have seen the end of rank 0.
        place.write("go-on", "")
        assert process.wait(300) == 143
        await_file(place, "saved-1")


def test_a_rank_that_fails_to_save_makes_the_stop_fail(place: Place) -> None:
    """The unit is then failed, not inactive: what was to be saved is not. Others have ended before it, and well."""
    text = READY + """
def save(number, frame):
    while rank == "1" and not os.path.exists("go-on"):
        time.sleep(0.02)
    put("saved-" + rank)
    sys.exit(5 if rank == "1" else 143)
signal.signal(signal.SIGTERM, save)
put("ready-" + rank)
time.sleep(600)
"""
    with running(place, text) as process:
        await_file(place, "ready-0", "ready-1")
        request_stop(place, process)
        await_file(place, "saved-0")
        place.write("go-on", "")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 5
        assert "torchpar: local rank 1 ended with status 5 when it was stopped\n" in errors


def test_ranks_keep_their_own_signals(place: Place) -> None:
    """None is blocked or handled: what a script does with SIGUSR1 is its own."""
    place.write(
        "x.py",
        """
        import signal
        import torchpar.runtime
        torchpar.runtime.stop_requested()
        numbers = [number for number in signal.valid_signals() if callable(signal.getsignal(number))]
        print(numbers == [signal.SIGINT], signal.pthread_sigmask(signal.SIG_BLOCK, []))
        """,
    )
    assert launched(place, "--", "x.py").out == 2 * "True set()\n"


def test_no_rank_is_started_once_a_stop_is_requested(place: Place) -> None:
    """Neither at first nor again."""
    place.write("stop", "")
    place.write("x.py", "print('here')\n")
    assert launched(place, "--", "x.py") == Outcome(143, "", "")

    (place.path / "stop").unlink()
    place.write("x.py", "print('here', flush=True)\nopen('stop', 'w').close()\nraise SystemExit(3)\n")
    outcome = launched(place, "--", "x.py", max_restarts=3)
    assert outcome.status == 3 and outcome.out == 2 * "here\n"


def test_a_stop_before_there_are_ranks_ends_the_launcher(place: Place) -> None:
    """While it waits for the other hosts there is nothing to be saved."""
    with running(place, "", RENDEZVOUS="yes") as process:
        await_file(place, "waiting")
        request_stop(place, process)
        assert process.wait(300) == 143

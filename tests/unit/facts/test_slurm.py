"""SLURM_* as slurmstepd writes them, and as nobody should: bounded, named, never believed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchpar.contract.errors import SchedulerError
from torchpar.facts.slurm import MAX_HOSTS, SlurmTask, expand_hosts, parse_task, visible_tokens

# Slurm 24.11: srun -N2 -n3, on the second host.
STEP = {
    "SLURM_JOB_ID": "4",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[09-10]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_JOB_NODELIST": "n[08-10]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_CPUS_ON_NODE": "8",
    "SLURM_NTASKS": "3",
    "SLURM_NNODES": "3",
}
BATCH = {name: value for name, value in STEP.items() if "STEP" not in name} | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}


def test_a_task_of_a_step_knows_its_place() -> None:
    """The step's hosts and not the job's."""
    task = parse_task(STEP)
    assert task == SlurmTask(4, "0", ("n09", "n10"), (2, 1), 1, 2, 0, 8)
    assert (task.name, task.world_size, task.local_world_size) == ("4.0", 3, 1)
    assert parse_task({}) is None


def test_a_batch_script_is_one_process_whatever_the_job_asks_for() -> None:
    """Slurm runs it once, on the first host."""
    task = parse_task(BATCH)
    assert task == SlurmTask(4, "batch", ("n08",), (1,), 0, 0, 0, 8, job_tasks=3)
    assert task.world_size == 1


def test_the_gpus_are_those_of_the_step() -> None:
    """Numbers of the host, where Slurm manages them at all."""
    gpus = {"SLURM_JOB_GPUS": "0,1,2,3", "SLURM_STEP_GPUS": "2-3"}
    task, of_job = parse_task({**STEP, **gpus}), parse_task({**STEP, "SLURM_JOB_GPUS": "1", "SLURM_STEP_GPUS": ""})
    assert task and of_job and (task.gpus, of_job.gpus) == ((2, 3), (1,))


def test_a_shell_with_a_job_that_is_no_task_of_it_is_refused() -> None:
    """salloc gives one on the login host: there nothing is allocated."""
    with pytest.raises(SchedulerError, match=r"SLURM_JOB_ID=4 is set, but this is no task .* start it by srun"):
        parse_task({"SLURM_JOB_ID": "4", "SLURM_JOB_NODELIST": "n1"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not a number from 1 to"),
        ({"SLURM_JOB_ID": "-1"}, "SLURM_JOB_ID='-1' is not a number"),
        ({"SLURM_JOB_ID": "1" * 5000}, "SLURM_JOB_ID='1111"),
        ({"SLURM_JOB_ID": "٣"}, "SLURM_JOB_ID='٣' is not a number"),
        ({"SLURM_JOB_ID": "\x1b[31m"}, "SLURM_JOB_ID='\\\\x1b[31m' is not a number"),
        ({"SLURM_STEP_ID": "x"}, "SLURM_STEP_ID='x' is not a number"),
        ({"SLURM_PROCID": "3"}, "SLURM_PROCID='3' is not a number from 0 to 2;"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID='2' is not a number from 0 to 1;"),
        ({"SLURM_LOCALID": "1"}, "SLURM_LOCALID='1' is not a number from 0 to 0;"),
        ({"SLURM_CPUS_ON_NODE": "0"}, "SLURM_CPUS_ON_NODE='0' is not a number"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, "SLURM_STEP_TASKS_PER_NODE='1(x3)' does not say how many tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x999999999)"}, "does not say how many tasks run on each of 2 hosts"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, "SLURM_STEP_TASKS_PER_NODE='3' is for 1 hosts, and the step has 2"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,0"}, "does not say how many tasks"),
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not what Slurm writes"),
        ({"SLURM_STEP_NODELIST": "n[1"}, "is no list of hosts such as"),
        ({"SLURM_STEP_NODELIST": "n[1-9],,m"}, "is no list of hosts such as"),
        ({"SLURM_STEP_NODELIST": "n[2-1]"}, "has [2-1], which are no numbers of hosts"),
        ({"SLURM_STEP_NODELIST": "n[]"}, "has [], which are no numbers of hosts"),
        ({"SLURM_STEP_NODELIST": "n[0-999999999]"}, "which are no numbers of hosts"),
        ({"SLURM_STEP_NODELIST": "n[0-65535][0-65535]"}, "has more than 65536 hosts"),
        ({"SLURM_STEP_NODELIST": ",".join(["n[0-65535]"] * 2)}, "has more than 65536 hosts"),
        ({"SLURM_STEP_NODELIST": "-x,y"}, "has '-x', which is no host's name"),
        ({"SLURM_STEP_NODELIST": "a b,y"}, "has 'a b', which is no host's name"),
        ({"SLURM_STEP_NODELIST": "n" * 300}, "which is no host's name"),
        ({"SLURM_STEP_NODELIST": "n" * 2**21}, "SLURM_STEP_NODELIST='nnn"),
        ({"SLURM_STEP_GPUS": "a"}, "SLURM_STEP_GPUS='a' is no list of numbers of GPUs"),
        ({"SLURM_STEP_GPUS": "0-99999"}, "is no list of numbers of GPUs"),
    ],
)
def test_what_slurm_does_not_write_is_named(changes: dict[str, str], message: str) -> None:
    """One line, bounded and fit for a terminal; nothing is planned for another host than the allocation."""
    with pytest.raises(SchedulerError, match=re.escape(message)) as raised:
        parse_task({**STEP, **changes})
    assert len(str(raised.value)) < 300 and str(raised.value).isprintable()


@pytest.mark.parametrize("missing", [name for name in STEP if name not in ("SLURM_JOB_ID", "SLURM_CPUS_ON_NODE")])
def test_without_one_of_its_variables_a_step_is_not_guessed(missing: str) -> None:
    """But for those that only the batch script is asked for."""
    environ = {name: value for name, value in STEP.items() if name != missing}
    if missing in ("SLURM_JOB_NODELIST", "SLURM_NTASKS", "SLURM_NNODES"):
        assert parse_task(environ) == parse_task(STEP)
    elif missing == "SLURM_STEP_ID":
        assert parse_task(environ) == parse_task(BATCH)
    else:
        with pytest.raises(SchedulerError, match=missing if missing != "SLURM_PROCID" else "no task of that job"):
            parse_task(environ)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", "a"),
        ("b,a", "b a"),
        ("n[1-3,7],gpu", "n1 n2 n3 n7 gpu"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[098-101]-ib.x", "n098-ib.x n099-ib.x n100-ib.x n101-ib.x"),
        ("r[1-2]n[3-4]", "r1n3 r1n4 r2n3 r2n4"),
        ("n[1,1]", "n1 n1"),
    ],
)
def test_lists_of_hosts_are_expanded_as_scontrol_does(text: str, hosts: str) -> None:
    """Compared with `scontrol show hostnames` of Slurm 24.11."""
    assert " ".join(expand_hosts({"X": text}, "X")) == hosts


@given(st.text(alphabet="n0123456789[]-,.() x", max_size=60))
def test_any_text_is_a_bounded_list_of_hosts_or_an_error(text: str) -> None:
    """Never another exception."""
    try:
        hosts = expand_hosts({"X": text}, "X")
    except SchedulerError:
        return
    assert 0 < len(hosts) <= MAX_HOSTS and all(re.fullmatch(r"[A-Za-z0-9._-]+", host) for host in hosts)


def test_devices_are_named_in_a_bounded_list() -> None:
    """NoDevFiles is Slurm's word for none."""
    assert visible_tokens({"V": "0,GPU-12-ab,MIG-GPU-1/7/0"}, "V") == ("0", "GPU-12-ab", "MIG-GPU-1/7/0")
    assert visible_tokens({"V": "NoDevFiles"}, "V") == visible_tokens({"V": ""}, "V") == visible_tokens({}, "V") == ()
    for text in ("0,", "0 1", "\x1b", "0" * 2**21):
        with pytest.raises(SchedulerError, match="V='?.* is no list of devices"):
            visible_tokens({"V": text}, "V")

"""Training scripts under run.py, with a plan in their environment, and the torch of TEST_PYTHON or a fake one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tests.unit.runtime.jobs import PYTHON, Outcome, Place
from torchpar.contract.job import JobSettings, RankSettings, job_environment

FAKE_TORCH = Path(__file__).parent / "fake_torch"

RANK = RankSettings(
    local_rank=0, cpus="0-3", numa_nodes="0", threads=2, loader_workers=0, gpus=(), loader_cpus="", budget=4
)
JOB = JobSettings(service="torchpar-train@demo.service", interop_threads=1, cudnn_benchmark=None, ranks=(RANK,))


@cache
def has_torch() -> bool:
    """Whether the interpreter of the tests has a torch of its own."""
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([PYTHON, "-c", find]).returncode == 0


def train(place: Place, script: str, *, settings: JobSettings = JOB, fake: str = "2.13", **rank: Any) -> Outcome:
    """Run the script by run.py; keywords are fields of its one rank that are not those of RANK.

    `fake` is the version of the fake torch, where it is that which is used.
    """
    place.write("x.py", script)
    settings = replace(settings, ranks=(replace(RANK, **rank),))
    environment = {"OMP_NUM_THREADS": "2", **job_environment(settings)}
    if not has_torch():
        environment.update(PYTHONPATH=str(FAKE_TORCH), FAKE_TORCH=fake)
    outcome = place.launched("x.py", **environment)
    assert outcome.status == 0, outcome.err
    return outcome


def told(outcome: Outcome) -> list[str]:
    """What the runtime said, files without their folders; not the line on what holds in the process."""
    lines = re.findall(r"^torchpar: (.*)$", outcome.err, re.MULTILINE)
    return [re.sub(r"^/\S*/", "", line) for line in lines if not line.startswith("torch ")]


def printed(outcome: Outcome) -> Any:
    """The JSON that a script prints."""
    return json.loads(outcome.out)


def all_cpus() -> str:
    """The CPUs of this process, as a list in the kernel's syntax."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))

"""The demo on a booted Debian: placed as planned from the first instruction, trained to the end, and served."""

from __future__ import annotations

import json
import re

import pytest

from tests.machines.machine import Machine

UNIT = "torchpar-train@demo.service"
STATE = "/var/lib/torchpar/train/demo"

pytestmark = pytest.mark.usefixtures("ports")


def test_the_demo_is_placed_as_planned_and_trains_to_the_end(machine: Machine) -> None:
    """CPUs, memory policy, allocator, environment and threads are those of the plan; verify says so, and says drift
    after taskset; the loss falls well below the unigram entropy; a TorchScript model is left, and is served."""
    machine.sh('rm -rf "$1"', STATE)
    plan = json.loads(machine.run("torchpar", "plan", "--json").stdout)
    demo = next(service for service in plan["services"] if service["unit"] == UNIT)
    machine.run("systemctl", "start", UNIT)
    pid = machine.show(UNIT, "MainPID")
    machine.wait_until(
        lambda: re.search(r"step \d+/\d+  loss [\d.]+  \d+ tokens/s", machine.journal(UNIT)), "a loss"
    )
    # The journal may have a loss of an earlier start.
    rank = "/run/torchpar-jobs/torchpar-train@demo/rank-0.json"
    machine.wait_until(lambda: machine.sh('test -s "$1"', rank, check=False).returncode == 0, "the rank")

    status = machine.read(f"/proc/{pid}/status")
    assert f"Cpus_allowed_list:\t{demo['cpus']}\n" in status
    policy = demo["memory_policy"]
    word = {"preferred": "prefer", "local": "local", "default": "default"}[policy["policy"]]
    wanted = f"{word}:{policy['nodes']}" if policy["nodes"] else word
    lines = machine.read(f"/proc/{pid}/numa_maps").splitlines()
    assert sum(line.split()[1] == wanted for line in lines) > 0.9 * len(lines)
    assert f"lib{demo['allocator']}" in machine.read(f"/proc/{pid}/maps")
    environment = dict(v.partition("=")[::2] for v in machine.read(f"/proc/{pid}/environ").split("\0"))
    assert {name: environment.get(name) for name in demo["environment"]} == demo["environment"]
    told = json.loads(machine.read(rank))
    assert (told["pid"], told["threads"]) == (int(pid), demo["ranks"][0]["threads"])
    # Nothing of ours stays above the script.
    assert machine.sh('cut -d" " -f4 /proc/$1/stat', pid).stdout.strip() == "1"

    verified = machine.run("torchpar", "verify", "train@demo")
    assert f"{UNIT} (process {pid}): ok" in verified.stdout
    # With its speed, which torchpard reads now and then.
    well = re.compile(r"^  train@demo +running \d+ \w+; as planned; CPUs 0-1; .*step \d+", re.MULTILINE)
    machine.wait_until(lambda: well.search(machine.run("torchpar", "status").stdout), "the speed")
    machine.run("taskset", "-apc", "0", pid)
    drifted = machine.run("torchpar", "verify", "train@demo", check=False)
    assert drifted.returncode == 1
    assert re.search(rf"drift +CPUs +planned 0-1; found: .* of process {pid} on 0", drifted.stdout)
    machine.run("taskset", "-apc", demo["cpus"], pid)

    machine.wait_until(lambda: machine.show(UNIT, "ActiveState") != "active", "the end of the training", 1200)
    assert machine.show(UNIT, "Result") == "success"
    journal = machine.journal(UNIT)
    entropy = float(re.search(r"unigram entropy ([\d.]+)", journal)[1])  # type: ignore[index]
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)  ", journal)]
    held_out = float(re.search(r"held-out loss ([\d.]+)", journal)[1])  # type: ignore[index]
    assert losses[-1] < losses[0] and held_out < 0.65 * entropy

    load = "import torch, sys; m = torch.jit.load(sys.argv[1]); x = torch.zeros(1, 5).long()"
    load += "; print(len(m.vocabulary), m(x).shape[2])"
    sizes = machine.run("python3", "-c", load, f"{STATE}/model.pt").stdout.split()
    assert sizes[0] == sizes[1] and int(sizes[0]) > 60

    machine.run("systemctl", "start", "torchpar-infer@demo.service")
    ask = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], sys.argv[2].encode(), 60).read().decode())"
    question = ["http://127.0.0.1:8000/predict", json.dumps({"text": "the GNU General"})]
    outputs = json.loads(machine.run("python3", "-c", ask, *question).stdout)["outputs"]
    assert outputs["text"].startswith("the GNU General ") and len(outputs["text"]) > 100
    assert outputs["next"][0] == " " and outputs["probability"][0] > 0.5
    machine.run("systemctl", "stop", "torchpar-infer@demo.socket")


def test_a_finished_demo_says_so_and_a_stopped_one_goes_on(machine: Machine) -> None:
    """A checkpoint is worth a restart."""
    machine.run("systemctl", "start", "--wait", UNIT, timeout=1200)
    machine.run("systemctl", "start", "--wait", UNIT)
    assert "already trained to the end" in machine.journal(UNIT)
    machine.sh('rm -rf "$1"', STATE)
    machine.run("systemctl", "start", UNIT)
    machine.wait_until(lambda: machine.exists(f"{STATE}/checkpoint.pt"), "the first checkpoint")
    machine.run("systemctl", "stop", UNIT)
    assert machine.show(UNIT, "ActiveState") == "inactive"
    machine.run("systemctl", "start", UNIT)
    machine.wait_until(lambda: re.search(r"resumed at step [1-9]", machine.journal(UNIT)), "the job goes on")
    machine.run("systemctl", "stop", UNIT)


def test_the_fast_blas_is_in_force_and_doctor_says_so(machine: Machine) -> None:
    """The reference BLAS would be 14 to 50 times slower; doctor fails where it is chosen."""
    link = "libblas.so.3-x86_64-linux-gnu"
    well = json.loads(machine.run("torchpar", "doctor", "--only", "blas", "--json").stdout)
    assert well["status"] == "ok" and "openblas-openmp is in force" in well["checks"][0]["findings"][0]["found"]
    machine.sh("apt-get install --yes --no-install-recommends libblas3", timeout=300)
    machine.run("update-alternatives", "--set", link, "/usr/lib/x86_64-linux-gnu/blas/libblas.so.3")
    try:
        done = machine.run("torchpar", "doctor", "--only", "blas", check=False)
        assert done.returncode == 1 and "FAIL     blas.alternative: the reference BLAS is in force" in done.stdout
        # It is installed and only not chosen: no package would help, but update-alternatives.
        machine.run("torchpar", "doctor", "--only", "blas", "--fix", "--yes")
    finally:
        machine.run("update-alternatives", "--auto", link)

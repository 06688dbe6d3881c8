"""Inference servers side by side: requests per second, latency, and CPU time for each request.

    python3 -m tests.benchmarks.bench_serve [--models mlp encoder] [--peers torchpar mlserver ...] [--seconds N]
        [--connections 1 8 32 128] [--rows 1 8] [--rounds N] [--soak MINUTES] [--fairness] [--profile]

In each round every server is started, asked and stopped before the next, so that all meet the same host; the table has
the medians. What counts are ratios within one run: a shared machine is faster or slower from day to day. `--soak` asks
torchpar alone, at 80 % of what it can do, and prints errors and memory every minute; `--fairness` how long requests for
the MLP take in a service that has the encoder too, which takes 50 times as long, alone and beside clients of that one;
`--profile` where the CPU time of one request to torchpar goes.

"least" is a server that computes nothing, and a row "bound" follows each of its own: what can be reached at that load
by its cost, the client's, and the model's in batches that so many connections allow. `late` is the client's: of an open
loop's requests 99 % were sent within so many milliseconds from when they were due.

The rows whose names end with -grpc are asked over gRPC (serve_grpc.py). Triton is measured with one instance of the
model and with one for each CPU, and the better of both, load by load, is what to compare with.

Run it with the interpreter that has torch: `make bench-serve`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks import serve_grpc, serve_profile
from tests.benchmarks.serve_bound import bound
from tests.benchmarks.serve_load import Measured, client_capacity, closed_loop, open_loop, proportional_mib, tree
from tests.benchmarks.serve_peers import PEERS, Peer, Question, ask_binary

TREE = Path(__file__).parents[2]
PORT = 18000
# Of the service that has a fast and a heavy one.
MODELS = ("mlp", "encoder")
# The shares of what the open loop's client gets at most from a server, at which it then asks.
SHARES = (0.5, 0.8)
OPEN_CONNECTIONS = 32  # with so many, one request each at all times, the open loop's client finds the capacity


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench_serve", description="inference servers side by side")
    parser.add_argument("--models", nargs="+", default=["mlp", "encoder", "cnn"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8], help="of a request; the open loop sends one")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--fairness", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as directory:
        folder = Path(directory)
        script = TREE / "tests/benchmarks/serve_models.py"
        subprocess.run([sys.executable, "-W", "ignore", script, "make", folder], check=True)
        if arguments.fairness:
            compare_fairness(folder, workers, arguments.rounds, arguments.seconds)
            return
        for name in arguments.models:
            model = folder / f"{name}.pt"
            if arguments.soak:
                soak(model, workers, arguments.soak)
            elif arguments.profile:
                profile(model, workers, arguments)
            else:
                compare(name, model, workers, arguments)


def compare(name: str, model: Path, workers: int, arguments: argparse.Namespace) -> None:
    """All servers with one model, in turns; prints the table."""
    pythons = {}
    for peer in arguments.peers:
        try:
            pythons[peer] = install(PEERS[peer].packages)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{peer}: not installed, so left out: {error}", file=sys.stderr)
    limits: list[dict[int, float]] = []
    singles: list[float] = []
    found: dict[tuple[str, str], list[Measured]] = {}
    memory: dict[str, float] = {}
    for number in range(arguments.rounds):
        limit, single = in_process(model, workers, arguments.seconds / 2)
        limits.append(limit)
        singles.append(single)
        for peer, python in pythons.items():
            print(f"{name}, round {number + 1} of {arguments.rounds}: {peer}", file=sys.stderr, flush=True)
            try:
                measure(PEERS[peer], python, model, workers, arguments, found, memory)
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{peer}: left out of this round: {error}", file=sys.stderr)
    print_table(name, limits, singles, found, memory)


def measure(
    peer: Peer,
    python: str,
    model: Path,
    workers: int,
    arguments: argparse.Namespace,
    found: dict[tuple[str, str], list[Measured]],
    memory: dict[str, float],
) -> None:
    """One server: closed loops, then open ones at a part of what it could do."""
    if peer.ask is None:
        measure_grpc(peer, python, model, workers, arguments, found, memory)
        return
    question = peer.ask(read_about(model, 1))
    with running(peer, python, model, workers) as pid:
        for rows in arguments.rows if peer.several_rows else [1]:
            about = read_about(model, rows)
            check(asked := peer.ask(about), about)
            closed_loop(PORT, asked, 8, min(3.0, arguments.seconds), pid)  # warm, and batches learned
            for connections in arguments.connections:
                done = closed_loop(PORT, asked, connections, arguments.seconds, pid)
                load = f"c={connections}" + (f", {rows} rows" if rows > 1 else "")
                found.setdefault((peer.name, load), []).append(done)
        memory[peer.name] = proportional_mib(pid)
        if peer.name == "least":
            return  # its client would be what is measured
        capacity = client_capacity(PORT, question, OPEN_CONNECTIONS, min(4.0, arguments.seconds))
        for share in SHARES:
            done = open_loop(PORT, question, share * capacity, arguments.seconds, pid)
            found.setdefault((peer.name, f"open {share:.0%}"), []).append(done)
        memory[peer.name] = proportional_mib(pid)


def read_about(model: Path, rows: int) -> dict[str, Any]:
    """What a request for so many rows has, and its answer."""
    about: dict[str, Any] = json.loads(model.with_suffix(".json.row").read_text())
    return {**about, "rows": rows, "row": about["row"] * rows, "answer": about["answer"] * rows}


def measure_grpc(
    peer: Peer,
    python: str,
    model: Path,
    workers: int,
    arguments: argparse.Namespace,
    found: dict[tuple[str, str], list[Measured]],
    memory: dict[str, float],
) -> None:
    """One server over gRPC: closed loops, and one call at a time by tritonclient."""
    about = json.loads(model.with_suffix(".json.row").read_text())
    question = serve_grpc.ask(about)
    port, seconds = PORT + 1, arguments.seconds
    with running(peer, python, model, workers) as pid:
        size = serve_grpc.check(port, question, about)
        serve_grpc.closed_loop(port, question, 8, min(3.0, seconds), pid=pid, size=size)  # warm, and batches learned
        for calls in arguments.connections:
            done = serve_grpc.closed_loop(port, question, calls, seconds, pid=pid, size=size)
            found.setdefault((peer.name, f"c={calls}"), []).append(done)
        done = serve_grpc.client_loop(port, about, seconds, pid)
        found.setdefault((peer.name, "c=1 tritonclient"), []).append(done)
        memory[peer.name] = proportional_mib(pid)


def in_process(model: Path, processes: int, seconds: float) -> tuple[dict[int, float], float]:
    """The limit: the model without a server. Rows in a second by the rows of a batch; milliseconds of a single row."""
    script = TREE / "tests/benchmarks/serve_models.py"
    argv = [sys.executable, "-W", "ignore", script, "limit", model, str(processes), str(seconds)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=_environment())
    found = json.loads(done.stdout)
    return {int(size): rate for size, rate in found["rows_per_second"].items()}, found["single_ms"]


@contextmanager
def running(peer: Peer, python: str, model: Path, workers: int) -> Iterator[int]:
    """A server that is ready; yields its process. Raises OSError where its port is taken, RuntimeError if it fails."""
    # One that an interrupted run left behind would be measured in its place.
    socket.create_server(("127.0.0.1", PORT)).close()
    with tempfile.TemporaryDirectory(prefix=f"bench-{peer.name}-") as directory:
        folder = Path(directory)
        argv = peer.start(folder, python, model, PORT, workers)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                argv, cwd=folder, stdout=log, stderr=log, env=_environment(), start_new_session=True
            )
        try:
            end = time.monotonic() + 120
            while not _ready(f"http://127.0.0.1:{PORT}{peer.ready}"):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"it does not start:\n{(folder / 'log').read_text(errors='replace')[-2000:]}")
                time.sleep(0.2)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


def check(question: Question, about: dict[str, Any]) -> None:
    """The answer must be the model's, or what follows measures something else. Raises RuntimeError."""
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{question.path}", question.body, question.headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
            length = answer.headers.get("Inference-Header-Content-Length")
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{error.code}: {error.read()[:500]!r}") from None
    wanted = about["answer"]
    if length:
        values = list(memoryview(body[int(length) :]).cast("f"))
    else:
        values = _numbers(json.loads(body))
    close = len(values) == len(wanted) and all(
        abs(value - want) < 1e-3 + 1e-3 * abs(want) for value, want in zip(values, wanted, strict=True)
    )
    if not close:
        raise RuntimeError(f"a wrong answer: {values[:3]} instead of {wanted[:3]}")


def install(packages: Sequence[str]) -> str:
    """An interpreter that has some packages: in an environment of their own in the cache, above this one's torch."""
    if not packages:
        return sys.executable
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchpar"
    folder = cache / f"bench-{'-'.join(packages).replace('==', '-').replace('<', '-below-')}"
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        print(f"installing {' '.join(packages)} into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        site = next((folder / "lib").glob("python3*/site-packages"))
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "torch.pth").write_text(f"{ours}\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        (folder / "complete").touch()
    return str(python)


def profile(model: Path, workers: int, arguments: argparse.Namespace) -> None:
    """Where the CPU time of a request goes in torchpar, step by step, under each load."""
    sampler = Path(install(("py-spy==0.4.1",))).with_name("py-spy")
    found: dict[int, dict[str, float]] = {}
    peer = PEERS["torchpar"]
    assert peer.ask is not None
    question = peer.ask(read_about(model, 1))
    with running(peer, sys.executable, model, workers) as pid:
        closed_loop(PORT, question, 8, min(3.0, arguments.seconds), pid)  # warm, and batches learned
        for connections in arguments.connections:
            with ThreadPoolExecutor(1) as pool:
                load = pool.submit(closed_loop, PORT, question, connections, arguments.seconds, pid)
                stacks = serve_profile.sample(sampler, serve_profile.busiest(tree(pid)), 0.8 * arguments.seconds)
                done = load.result()
            found[connections] = serve_profile.steps(stacks, done.cpu_us)
            print(f"{connections} connections: {done.per_second:.0f}/s under py-spy", file=sys.stderr, flush=True)
    print(f"\n{model.stem}: CPU us of a request, by step\n")
    print(f"| step | {' | '.join(f'c={connections}' for connections in found)} |")
    print(f"|---|{'---|' * len(found)}")
    for step in (*serve_profile.STEPS, "all"):
        print(f"| {step} | {' | '.join(f'{times.get(step, 0.0):.1f}' for times in found.values())} |")
    sys.stdout.flush()


def soak(model: Path, workers: int, minutes: float) -> None:
    """torchpar at 80 % of its capacity for long."""
    peer = PEERS["torchpar"]
    assert peer.ask is not None
    question = peer.ask(read_about(model, 1))
    with running(peer, sys.executable, model, workers) as pid:
        client_capacity(PORT, question, OPEN_CONNECTIONS, 3.0)  # warm
        capacity = client_capacity(PORT, question, OPEN_CONNECTIONS, 5.0)
        print(f"{model.stem}: {0.8 * capacity:.0f} requests in a second, 80 % of {capacity:.0f}")
        end = time.monotonic() + 60 * minutes
        while (left := end - time.monotonic()) > 0:
            done = open_loop(PORT, question, 0.8 * capacity, min(60.0, left), pid)
            print(
                f"{done.per_second:8.0f}/s  p50 {done.p50:.2f} ms  p99 {done.p99:.2f} ms  {done.errors} errors"
                f"  {done.cpu_us:.0f} us CPU  {proportional_mib(pid):.1f} MiB",
                flush=True,
            )


def compare_fairness(folder: Path, workers: int, rounds: int, seconds: float) -> None:
    """A fast model at a fifth of what its client can get, alone and beside eight clients of a heavy one."""
    for name in MODELS:
        (folder / f"models/{name}/1").mkdir(parents=True)
        shutil.copy(folder / f"{name}.pt", folder / f"models/{name}/1/model.pt")
    ask = {name: ask_binary(f"/v2/models/{name}/infer")(read_about(folder / f"{name}.pt", 1)) for name in MODELS}
    found: dict[tuple[str, str], list[Measured]] = {}
    for _ in range(rounds):
        for peer in ("torchpar", "torchpar-1"):
            with running(PEERS[peer], sys.executable, folder / "models", workers) as pid:
                closed_loop(PORT, ask["encoder"], 8, min(3.0, seconds), pid)
                rate = 0.2 * client_capacity(PORT, ask["mlp"], OPEN_CONNECTIONS, min(4.0, seconds))
                alone = open_loop(PORT, ask["mlp"], rate, seconds, pid)
                with ThreadPoolExecutor(1) as pool:
                    heavy = pool.submit(closed_loop, PORT, ask["encoder"], 8, seconds + 2, pid)
                    time.sleep(1.0)
                    beside = open_loop(PORT, ask["mlp"], rate, seconds, pid)
                    heavy.result()
            found.setdefault((peer, "alone"), []).append(alone)
            found.setdefault((peer, "beside the encoder"), []).append(beside)
    print("| server | MLP, open 20% | p50 ms | p99 ms | errors |")
    print("|---|---|---|---|---|")
    for (peer, how), runs in found.items():
        middle = [statistics.median(getattr(run, field) for run in runs) for field in ("p50", "p99")]
        print(f"| {peer} | {how} | {middle[0]:.2f} | {middle[1]:.2f} | {sum(run.errors for run in runs)} |")
    sys.stdout.flush()


def print_table(
    name: str,
    limits: list[dict[int, float]],
    singles: list[float],
    found: dict[tuple[str, str], list[Measured]],
    memory: dict[str, float],
) -> None:
    """Medians of requests in a second, and how far they are apart; `of limit` is the share of rows in process."""
    rates = {size: statistics.median(each[size] for each in limits) for size in limits[0]}
    limit, workers = rates[32], len(os.sched_getaffinity(0))
    print(f"\n{name}: in process {limit:.0f} rows in a second in batches of 32", end="")
    print(f" ({', '.join(f'{rate:.0f} of {size}' for size, rate in rates.items())})", end="")
    print(f"; one row takes {statistics.median(singles):.2f} ms\n")
    print("| server | load | req/s | from … to | of limit | p50 ms | p99 ms | late", end="")
    print(" | CPU us/req | client us | errors | MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for (peer, load), runs in found.items():
        done = [run.per_second for run in runs]
        rate, rows = statistics.median(done), rows_of(load)
        p50, p99, late, cpu, client = (
            statistics.median(getattr(run, field) for run in runs)
            for field in ("p50", "p99", "late", "cpu_us", "client_us")
        )
        errors = sum(run.errors for run in runs)
        print(
            f"| {peer} | {load} | {rate:.0f} | {min(done):.0f} … {max(done):.0f} | {rate * rows / limit:.0%}"
            f" | {p50:.2f} | {p99:.2f} | {late:.2f} | {cpu:.0f} | {client:.0f} | {errors} | {memory.get(peer, 0):.0f} |"
        )
        if peer == "least" and load.startswith("c="):
            connections = int(load.split(",")[0][2:])
            least = runs[done.index(statistics.median_low(done))]
            rate, cpu = bound(rates, least, connections, rows=rows, processes=workers)
            print(f"| bound | {load} | {rate:.0f} | | {rate * rows / limit:.0%} | | | | {cpu:.0f} | | | |")
    sys.stdout.flush()


def rows_of(load: str) -> int:
    """The rows of one request, of which the name of a load tells."""
    return int(load.split(", ")[1].split()[0]) if ", " in load else 1


def _numbers(value: Any) -> list[float]:
    """The numbers of an answer in JSON: of its first output, or of "y"."""
    if isinstance(value, dict) and "outputs" in value:
        return list(value["outputs"][0]["data"])
    return list(value["y"])


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _environment() -> dict[str, str]:
    """One compute thread each, for all alike, and this tree's server."""
    left_out = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TREE / "src"), "PYTHONWARNINGS": "ignore"}


if __name__ == "__main__":
    main()

"""Loads a model from its file, tries it and measures it, on another thread than the event loop's."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.curve import Curve, measure
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.probe import Probe, compare_many, find_state, try_model
from torchpar.serve.engine.samples import batch_of
from torchpar.serve.engine.served import Served
from torchpar.serve.engine.statistics import Statistics
from torchpar.serve.errors import CannotAnswer, ModelError, ServeError
from torchpar.serve.models.files import ModelFile
from torchpar.serve.models.identity import changed, look_at, own_files
from torchpar.serve.models.inductor import Inductor
from torchpar.serve.models.kinds import load_program, runs_in_threads
from torchpar.serve.runners.processes import ProcessRunner
from torchpar.serve.runners.runner import Runner, ThreadRunner

# A team of threads is for requests that take this long on one thread, in seconds, if it takes this part of the time.
TEAM_SECONDS, TEAM_GAIN = 0.002, 0.75

# What a batch takes when nothing could be measured; every batch corrects it.
UNKNOWN = {1: 0.01}


def load_served(file: ModelFile, options: EngineOptions, statistics: Statistics) -> Served:
    """Loads a version, warms it up and measures it. Raises ModelError."""
    began = time.monotonic()
    files = own_files(file.path)
    runner = make_runner(file, options)
    files = {**runner.files, **files}
    try:
        probe = try_model(runner)
        curve = _curve(file, runner, probe, options)
        compared = 1
        if not probe.reason and probe.sample:
            # Every size that was measured, by this start or an earlier one, may be a batch's from the first request on.
            sizes = {rows for rows in (*curve.points(), curve.cap) if 1 < rows <= (_most(runner, options) or rows)}
            reason, compared = compare_many(runner, probe.sample, sorted(sizes))
            probe = replace(probe, reason=reason)
        team_from = _team_from(runner, probe, curve, options)
        # Compiled code tells most of what it writes to, and nothing of it on accelerators.
        writes = runner.writes() or (find_state(runner) if runner.platform == Inductor.platform else "")
        single = bool(writes) and options.backend == "auto"
        if single:
            runner.keep_one()
        runner.renew()
        other = changed(files)
        if other:
            raise ModelError(f"{file.path}: {other} has changed while it was loaded: load it again")
        runner.in_service = True
    except CannotAnswer as error:
        runner.close()
        raise ModelError(f"{file.path}: no request would be answered: {error}") from None
    except BaseException:
        runner.close()
        raise
    reason = f"it writes to itself when it runs ({writes})" if writes else probe.reason
    if single:
        reason += ", and by one worker alone, which Backend= overrules"
    batched = not reason and (options.max_batch is None or options.max_batch > 1)
    how = f"batches of up to {curve.cap} rows" if batched else f"unbatched: {reason or 'MaxBatch=1'}"
    say(
        f"model {file.name} version {file.version}: {file.path}, loaded in {time.monotonic() - began:.1f} s, {how}",
        Priority.WARNING if writes else Priority.INFO,
    )
    served = Served(
        file.name,
        file.version,
        runner,
        outputs=probe.outputs,
        batched=batched,
        writes=bool(writes),
        single=single,
        loose=runner.guessed,
        curve=curve,
        team_from=team_from,
        most=_most(runner, options),
        statistics=statistics,
        path=file.path,
        files=files,
        untried="" if probe.tried else probe.reason,
    )
    served.watch.note_compared([tensor.shape[1:] for tensor in probe.sample or ()], compared)
    return served


def make_runner(file: ModelFile, options: EngineOptions) -> Runner:
    """Makes threads for models that compute without Python's lock, processes for the rest and for accelerators."""
    devices = [f"cuda:{i}" for i in range(options.gpus)]
    threads = {"auto": runs_in_threads(file.path), "thread": True, "process": False}[options.backend]
    if devices or not threads:
        return ProcessRunner(file, options.slots(), devices)
    runner = ThreadRunner(lambda: load_program(file))
    if not runner.seeds or options.backend != "auto":
        return runner
    # Every thread, and every other model, draws from the same.
    seeds = runner.seeds
    runner.close()
    del runner
    say(f"{file.path}: processes compute it, for it seeds torch's random numbers when it runs ({seeds})")
    return ProcessRunner(file, options.slots())


def save_curve(served: Served, file: ModelFile, options: EngineOptions) -> None:
    """Keeps what was learned for the next start."""
    if options.state is None:
        return
    path = _state_path(file, options.state)
    try:
        new = f"{path}.{os.getpid()}.new"  # every process of a service writes one
        with open(new, "w", encoding="utf-8") as out:
            json.dump({"of": _fingerprint(file, options), "points": list(served.curve.points().items())}, out)
        os.replace(new, path)
    except OSError as error:
        say(f"{path}: not written: {error.strerror}", Priority.WARNING)


def _most(runner: Runner, options: EngineOptions) -> int | None:
    """Returns the most rows that one batch may have."""
    limits = [limit for limit in (options.max_batch, runner.max_batch) if limit]
    return min(limits) if limits else None


def _curve(file: ModelFile, runner: Runner, probe: Probe, options: EngineOptions) -> Curve:
    most = _most(runner, options)
    known = _saved_points(file, options)
    if known:
        return Curve(known, most)
    if probe.sample is None:
        return Curve(UNKNOWN, most)
    sample = probe.sample

    def run(rows: int) -> float:
        columns = batch_of(sample, rows)
        began = time.monotonic()
        runner.compute(0, columns)
        return time.monotonic() - began

    try:
        # TorchScript optimises in the second and third call.
        run(1), run(1)
        return Curve(measure(run, 1 if probe.reason else most), most)
    except ServeError as error:
        say(f"model {file.name} version {file.version}: not measured: {error.message}", Priority.WARNING)
        return Curve(UNKNOWN, most)


def _team_from(runner: Runner, probe: Probe, curve: Curve, options: EngineOptions) -> int | None:
    """Returns from how many rows on all threads compute a single request together; None where that is no gain.

    A team waits for its last thread: on CPUs that others use too, one that is held up holds up all. Then never.
    """
    if not options.own or options.slots() < 2 or not isinstance(runner, ThreadRunner) or probe.sample is None:
        return None
    rows = next((rows for rows, seconds in sorted(curve.points().items()) if seconds >= TEAM_SECONDS), None)
    if rows is None:
        return None
    columns, slots = batch_of(probe.sample, rows), options.slots()
    times: dict[int, float] = {}

    def measure_both() -> None:
        torch.set_num_threads(1)
        for team in (1, slots) * 4:
            began = time.monotonic()
            runner.compute(0, columns, team)
            times[team] = min(times.get(team, float("inf")), time.monotonic() - began)

    try:
        # Each thread that has had a team keeps it, as all workers will have: with more threads than CPUs GNU OpenMP
        # spins no more, and a team sleeps at each of its barriers. So it is measured beside another one.
        runner.compute(0, columns, slots)
        with ThreadPoolExecutor(1, "measure") as beside:
            beside.submit(measure_both).result()
    except ServeError:
        return None
    return rows if times[slots] < TEAM_GAIN * times[1] else None


def _saved_points(file: ModelFile, options: EngineOptions) -> dict[int, float] | None:
    if options.state is None:
        return None
    try:
        with open(_state_path(file, options.state), encoding="utf-8") as text:
            data = json.load(text)
        if data["of"] != _fingerprint(file, options):
            return None
        points = {int(rows): float(seconds) for rows, seconds in data["points"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return points if points.get(1, 0) > 0 and min(points.values()) > 0 else None


def _state_path(file: ModelFile, state: str) -> str:
    return os.path.join(state, f"curve-{file.name.replace('/', '_')}-{file.version}.json")


def _fingerprint(file: ModelFile, options: EngineOptions) -> Sequence[object]:
    try:
        about = os.stat(file.path)
    except OSError as error:
        raise ModelError(f"{file.path}: {error.strerror}") from None
    # What stands in it, as "optimize", changes the times too.
    description = list((file.description and look_at(file.description)) or ())
    return [about.st_size, int(about.st_mtime), description, torch.__version__, options.backend, bool(options.gpus)]

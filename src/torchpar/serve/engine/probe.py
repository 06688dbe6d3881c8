"""Trying a model before it serves: does it run, may its rows be put together, and how long does a batch take.

A model may be batched if the answer to a row does not depend on the rows beside it, and every output has a row for
every row of the input. Both are tried, with rows that differ, also in scale: a decision for a whole batch, as by its
largest number, is not seen where all rows decide alike. What fails is served one request at a time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchpar.serve.engine.answering import ENDED, difference_to_declared, is_open, refuse, refuse_nothing
from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.engine.rows import Part, cut, difference, odd_rows, only, repeat
from torchpar.serve.engine.samples import SIZES_TO_TRY, is_special, joined, made_up, multiplied, specs_of
from torchpar.serve.errors import CannotAnswer, ServeError
from torchpar.serve.runners.runner import Runner
from torchpar.serve.tensors import Tensor, TensorSpec

# How batches of these rows must agree with the same rows asked for one by one, or in these groups.
GROUPS = ((1, 1), (2, 3), (1, 4, 2))
# Rows of other scales: at the most so many, and as many as can be asked alone, and beside others, in so many seconds.
MOST_ODD_ROWS, ODD_SECONDS = 60, 5.0
# Batches as large as they will be have so many rows that differ: a number that no size of a batch is a multiple of.
DIFFERENT_ROWS = 7


@dataclass(frozen=True)
class Probe:
    """The result of the trial.

    reason says why the model is served unbatched, "" if it may be batched. sample is one row of each input, to make
    batches of; None if the model did not run. outputs are as declared, else as seen. tried says whether it has answered
    once.
    """

    reason: str
    sample: tuple[Tensor, ...] | None
    outputs: tuple[TensorSpec, ...]
    tried: bool = True


def try_model(runner: Runner, slot: int = 0) -> Probe:
    """Runs it on made-up rows, or on its own example. Raises CannotAnswer where no request would be answered."""
    try:
        sample, size = _find_sample(runner, slot)
    except ServeError as error:
        refuse(runner, error, lambda: _others(runner, slot))
        reason = f"not tried, as it fails on made-up inputs: describe an example: {error.message}"
        return Probe(reason, None, runner.outputs, tried=False)
    outputs = runner.outputs
    if not _has_rows(runner):
        return Probe("its inputs have no open first dimension, which would be the rows", None, outputs)
    if runner.max_batch is not None and runner.max_batch <= 1:
        return Probe("its description says so (max_batch)", sample, outputs)
    if runner.counts:
        return Probe(f"it computes with the number of its rows ({runner.counts})", sample, outputs)
    if any(spec.limits and spec.limits[0][0] > 1 for spec in runner.inputs):
        return Probe("it was made for several rows at once, and not for one", None, outputs)
    if sample is None:
        return Probe("it fails on a single row of its example", None, outputs)
    try:
        seen: dict[int, list[Tensor]] = {}
        reason = _changes(runner, slot, sample)
        for groups in GROUPS:
            if runner.max_batch is not None and sum(groups) > runner.max_batch:
                continue
            reason = reason or _compare(runner, slot, sample, size, groups, seen)
        reason = reason or _compare_odd_rows(runner, slot, sample)
        if reason:
            return Probe(reason, sample, outputs)
    except ServeError as error:
        if error.status == 503:
            raise CannotAnswer(ENDED) from None
        return Probe(f"it failed on several rows: {error.message}", sample, outputs)
    return Probe("", sample, outputs or specs_of(seen))


def find_state(runner: Runner, slot: int = 0) -> str:
    """Says in words that answers to the same question differ, as of a program with a state; "" if they do not."""
    try:
        sample, _ = _find_sample(runner, slot)
        return _changes(runner, slot, sample) if sample is not None else ""
    except ServeError:
        return ""


def _find_sample(runner: Runner, slot: int) -> tuple[tuple[Tensor, ...] | None, int]:
    """Returns one row that the model answers, and the number put for its open sizes, 0 where it has an example.

    The row is None where the model answers only all rows of its example.
    """
    if runner.example is not None:
        _check_outputs(runner, slot, runner.example)
        if not _has_rows(runner):
            return tuple(runner.example), 0
        first = tuple(cut(tensor, 0, 1) for tensor in runner.example)
        try:
            _run(runner, slot, first, quiet=True)
        except ServeError:
            return None, 0
        return first, 0
    refused: ServeError | None = None
    for size in SIZES_TO_TRY:
        sample = tuple(made_up(spec, 1, size, seed=0) for spec in runner.inputs)
        try:
            _check_outputs(runner, slot, sample)
            return sample, size
        except ServeError as error:
            refused = refused or error
            if error.status != 500 or not is_open(runner.inputs):
                break
    assert refused
    raise refused


def _has_rows(runner: Runner) -> bool:
    return bool(runner.inputs) and all(spec.shape and spec.shape[0] == -1 for spec in runner.inputs)


def _check_outputs(runner: Runner, slot: int, inputs: Sequence[Tensor]) -> None:
    """Asks for these, and for a row more where the outputs are not as declared: those of a single row may be squeezed.

    Raises CannotAnswer where neither are.
    """
    outputs = _run(runner, slot, inputs).outputs
    if not outputs:
        refuse_nothing(runner, lambda: _others(runner, slot))
    found = difference_to_declared(runner, outputs)
    if found and _has_rows(runner) and runner.max_batch != 1:
        more = [repeat(tensor, tensor.shape[0] + 1) for tensor in inputs]
        try:
            several = _run(runner, slot, more, quiet=True).outputs
        except ServeError:
            return
        found = found if difference_to_declared(runner, several) else ""
    if found:
        raise CannotAnswer(found)


def _others(runner: Runner, slot: int) -> Iterator[ServeError | Sequence[Tensor]]:
    """Yields the outputs or the error for other rows and other values: zeros, small, large and negative ones."""
    rows = (1, 2, 3, 5) if _has_rows(runner) and runner.max_batch != 1 else (1,) * 4
    size = SIZES_TO_TRY[0]
    for seed, count in enumerate(rows):
        made = [made_up(spec, count, size, seed) for spec in runner.inputs]
        try:
            yield _run(runner, slot, [multiplied(tensor, (0, 1, 100, -1)[seed]) for tensor in made], quiet=True).outputs
        except ServeError as error:
            yield error


def _changes(runner: Runner, slot: int, sample: Sequence[Tensor]) -> str:
    """Says in words that the same row has another answer each time; "" if it has not.

    The reason is random numbers, or a state that the program keeps.
    """
    first, second, third = (_run(runner, slot, sample).outputs for _ in range(3))
    found = difference([Part(first, second, lambda _: third)])
    return found and "the answer to the same row is another each time"


def _compare_odd_rows(runner: Runner, slot: int, sample: tuple[Tensor, ...]) -> str:
    """Asks for rows of other scales alone, and then beside the sample and beside each other; "" if that is the same."""
    until = time.monotonic() + ODD_SECONDS
    rows = [sample]
    answers = [_run(runner, slot, sample).outputs]
    for row in itertools.islice(odd_rows(sample, indices=runner.kind == "KIND_CPU"), MOST_ODD_ROWS):
        if time.monotonic() > until:
            break
        try:
            answer = _run(runner, slot, row, quiet=True).outputs
        except ServeError as error:
            # A row that the model cannot stand, which costs only its own request.
            if error.status == 503:
                runner.mend(slot)
            continue
        for tensor in answer:
            if tensor.shape[:1] != (1,):
                return f"output '{tensor.name}' has shape {list(tensor.shape)} for a row of input"
        rows.append(row)
        answers.append(answer)
    most = runner.max_batch or len(rows)
    everything = list(range(len(rows)))
    finite = [i for i in everything if not any(is_special(tensor) for tensor in rows[i])]
    places = [[0, i, 0][:most] for i in everything[1:]]
    for whole in (finite, everything):
        places[:0] = [whole[start : start + most] for start in range(0, len(whole), most)]
    for batch in places:
        if time.monotonic() > until + ODD_SECONDS:
            break
        reason = _agrees(runner, slot, [rows[i] for i in batch], [answers[i] for i in batch])
        if reason:
            return reason
    return ""


def compare_many(
    runner: Runner, sample: tuple[Tensor, ...], sizes: Sequence[int], slot: int = 0
) -> tuple[str, int]:
    """Asks for batches of so many rows, a few that differ again and again; "" if each row has its answer alone.

    Beside that the largest size that there was time for.
    """
    compared = 1
    until = time.monotonic() + ODD_SECONDS
    rows, answers = [sample], [_run(runner, slot, sample).outputs]
    for row in itertools.islice(odd_rows(sample, indices=runner.kind == "KIND_CPU"), MOST_ODD_ROWS):
        if len(rows) == DIFFERENT_ROWS or time.monotonic() > until:
            break
        if any(is_special(tensor) for tensor in row):
            continue
        try:
            answers.append(_run(runner, slot, row, quiet=True).outputs)
            rows.append(row)
        except ServeError as error:
            if error.status == 503:
                runner.mend(slot)
    for size in sorted(sizes):
        if time.monotonic() > until + ODD_SECONDS:
            break
        order = [i % len(rows) for i in range(size)]
        try:
            reason = _agrees(runner, slot, [rows[i] for i in order], [answers[i] for i in order])
        except ServeError as error:
            reason = error.message
            if error.status == 503:
                runner.mend(slot)
        if reason:
            return f"in a batch of {size} rows {reason}", compared
        compared = size
    return "", compared


def _agrees(
    runner: Runner, slot: int, rows: Sequence[tuple[Tensor, ...]], answers: Sequence[Sequence[Tensor]]
) -> str:
    """Computes rows at once; "" if each has the answer that it has alone."""
    whole = _run(runner, slot, joined(rows), quiet=True).outputs
    for tensor in whole:
        if tensor.shape[:1] != (len(rows),):
            return f"output '{tensor.name}' has shape {list(tensor.shape)} for {len(rows)} rows of input"
    parts = []
    for i, (row, answer) in enumerate(zip(rows, answers)):

        def again(more: int, row: tuple[Tensor, ...] = row, i: int = i) -> list[Tensor]:
            inputs, start_row = only(row, i, len(rows), more, runner.max_batch)
            return [cut(tensor, start_row, start_row + 1) for tensor in _run(runner, slot, inputs).outputs]

        parts.append(Part(answer, [cut(tensor, i, i + 1) for tensor in whole], again))
    return difference(parts, whole, runner.kind)


def _compare(
    runner: Runner,
    slot: int,
    sample: Sequence[Tensor],
    size: int,
    groups: tuple[int, ...],
    seen: dict[int, list[Tensor]],
) -> str:
    """Computes the groups one by one and all at once; "" if that is the same."""
    rows = sum(groups)
    if runner.example is not None:
        inputs = [repeat(tensor, rows) for tensor in runner.example]
    else:
        inputs = [made_up(spec, rows, size, seed=rows) for spec in runner.inputs]
    whole = _run(runner, slot, inputs).outputs
    seen[rows] = whole
    for tensor in whole:
        if not tensor.shape or tensor.shape[0] != rows:
            return f"output '{tensor.name}' has shape {list(tensor.shape)} for {rows} rows of input"
    start, parts = 0, []
    for count in groups:
        end = start + count
        asked = [cut(tensor, start, end) for tensor in inputs]
        alone = _run(runner, slot, asked).outputs
        seen[count] = alone

        def again(more: int, asked: list[Tensor] = asked, start: int = start, count: int = count) -> list[Tensor]:
            # At the same place: the rows before it are its own too, and it begins anew there.
            inputs, start_row = only(asked, start, rows, more, runner.max_batch)
            return [cut(tensor, start_row, start_row + count) for tensor in _run(runner, slot, inputs).outputs]

        parts.append(Part(alone, [cut(tensor, start, end) for tensor in whole], again))
        start = end
    return difference(parts, whole, runner.kind)


def _run(runner: Runner, slot: int, inputs: Sequence[Tensor], quiet: bool = False) -> Computed:
    """Computes a batch. quiet: an error that a handler raises is no failure that its author should see."""
    runner.quiet = quiet
    try:
        return runner.compute(slot, [Column(t.datatype, t.shape, [t.data]) for t in inputs])
    finally:
        runner.quiet = False

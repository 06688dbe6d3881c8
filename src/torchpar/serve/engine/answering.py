"""Finds out whether a model would answer requests, by what came of the first that were made up for it.

Values that were made up may be what a model cannot stand; then it is served, and said to be not tried. What no values
can change ends the start: outputs that cannot be sent or are not as declared, a device or an operator that is not
there, a rank, a datatype or a size that the model does not take, an input that is not described, the end of the
process that computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torchpar.serve.errors import CannotAnswer, Lasting, ServeError
from torchpar.serve.runners.runner import Runner
from torchpar.serve.tensors import Tensor, TensorSpec

# Of a worker that computed the first request, or several rows.
ENDED = (
    "the worker process died when it computed a request that was made up, or its example: by a signal, or as the code"
    " ends it itself, such as by sys.exit(); see the log"
)
_OUTPUT = "the model failed: OutputError: "


def refuse(runner: Runner, error: ServeError, others: Callable[[], Iterable[ServeError | Sequence[Tensor]]]) -> None:
    """Raises CannotAnswer where the first request failed for a reason that others have too.

    others tries more of them, of other numbers of rows and with other values; what they come to, outputs or errors.
    """
    said = error.message
    if error.status == 503:
        raise CannotAnswer(ENDED)
    if error.lasting is Lasting.OUTPUT:
        raise CannotAnswer(said.replace(_OUTPUT, "", 1))
    if runner.example is not None:
        raise CannotAnswer(f"it fails on its own example: {said}")
    if error.lasting is Lasting.DEVICE and runner.kind == "KIND_CPU":
        raise CannotAnswer(f"a device is fixed in the model, which is not there: make the file on the CPU: {said}")
    if error.lasting is Lasting.OPERATOR:
        raise CannotAnswer(f"this torch has no code for one of its operators: {said}")
    takes = ", ".join(f"'{spec.name}' {spec}" for spec in runner.inputs)
    # A size is no reason where some are open, for then there may be others.
    lasting = {Lasting.KIND, Lasting.NAME} | (set() if is_open(runner.inputs) else {Lasting.SIZE})
    # What a program cuts out of its inputs by their values has other shapes with others, as has a single row.
    if runner.guessed or error.lasting not in lasting:
        return
    if all(isinstance(each, ServeError) and each.lasting in lasting for each in others()):
        raise CannotAnswer(f"it does not take what is described, {takes}: {said}")


def refuse_nothing(runner: Runner, others: Callable[[], Iterable[ServeError | Sequence[Tensor]]]) -> None:
    """Raises CannotAnswer where the first request was answered without any output, and others are too."""
    if runner.example is None and not all(isinstance(each, ServeError) or not each for each in others()):
        return
    names = ", ".join(spec.name for spec in runner.outputs)
    of_these = f"none of the outputs that are described, {names}," if names else "nothing that can be sent"
    asked = "on its own example" if runner.example is not None else "on anything that was tried"
    raise CannotAnswer(f"it returns {of_these} {asked}")


def difference_to_declared(runner: Runner, outputs: Sequence[Tensor]) -> str:
    """Says in words how the outputs differ from the declared ones; "" if they do not.

    A declared output that is missing is no difference: it may be None this time.
    """
    found = {tensor.name: tensor for tensor in outputs}
    for spec in runner.outputs:
        tensor = found.get(spec.name)
        if tensor is None:
            continue
        sizes = zip(spec.shape, tensor.shape)
        if (
            spec.datatype != tensor.datatype
            or len(spec.shape) != len(tensor.shape)
            or (any(want not in (-1, have) for want, have in sizes) and not is_open(runner.inputs))
        ):
            real = f"{tensor.datatype} of shape {list(tensor.shape)}"
            return f"output '{spec.name}' is declared as {spec}; it is {real}"
    return ""


def is_open(inputs: Sequence[TensorSpec]) -> bool:
    """Says whether a request chooses other sizes than the number of its rows."""
    return any(-1 in spec.shape[1:] for spec in inputs)

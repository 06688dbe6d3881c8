"""Python handlers: a file with `load()` and `predict(batch)`.

    import torch

    INPUTS = [("x", "FP32", (-1, 784))]
    OUTPUTS = [("y", "FP32", (-1, 10))]

    def load():
        global model
        model = torch.load("/srv/digits.pt", weights_only=False).eval()

    def predict(batch):
        with torch.inference_mode():
            return {"y": model(batch["x"])}

`load` runs once, before the worker processes are forked: they share what it made. Where it leaves threads behind, it
runs in each of them instead. Both run as they do in plain Python: torch records for gradients, unless they say
`torch.inference_mode()` or `torch.no_grad()`. `predict` gets a dictionary, name to
torch.Tensor (for BYTES: a list of bytes objects), whose rows may be of several requests; it returns a dictionary, a
tensor, or a list in the order of OUTPUTS. A row's answer must not depend on the rows beside it: that is tried at the
start, on what `example()` returns (a dictionary of one row or more) where the handler has it. MAX_BATCH = 1 in the file
switches batching off. With accelerators `load` runs in each process, and `load(device)` is told which one is its own.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

from torchpar.serve.errors import ModelError, NoInputError, OutputError, text_of
from torchpar.serve.models.description import Description, limit_of, specs_of
from torchpar.serve.models.opened import Opened
from torchpar.serve.models.program import Program, example_of, fitting
from torchpar.serve.models.results import Results
from torchpar.serve.models.values import tensor_of
from torchpar.serve.tensors import Tensor, TensorSpec


class Handler(Program):
    """The file is run as a module of its own; what lies beside it can be imported."""

    platform = "python"

    def __init__(self, path: str, description: Description, device: str | None = "cpu") -> None:
        with Opened(path) as opened:
            self._load(path, description, device)
        self.files = opened.files

    def _load(self, path: str, description: Description, device: str | None) -> None:
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
        module = _run_file(path)
        for name in ("load", "predict"):
            if not callable(getattr(module, name, None)):
                raise ModelError(f"{path}: a handler has the functions load() and predict(batch); {name} is missing")
        self._where = path
        self._module = module
        _check_arguments(path, "predict", module.predict, 1, "the batch")
        self.inputs = description.inputs or self._specs(module, "INPUTS")
        self.outputs = description.outputs or self._specs(module, "OUTPUTS")
        self._results = Results([spec.name for spec in self.outputs])
        limit = limit_of(getattr(module, "MAX_BATCH", None), f"{path}: MAX_BATCH")
        self.max_batch = limit if description.max_batch is None else description.max_batch
        if not self.inputs:
            raise ModelError(f'{path}: INPUTS is missing: INPUTS = [("x", "FP32", (-1, 784))]')
        if description.example is not None:
            self.example = example_of(self.inputs, description.example, path)
        if device is None:
            return
        takes_device = bool(inspect.signature(module.load).parameters)
        _check_arguments(path, "load", module.load, int(takes_device), "nothing, or the device")
        with _told(path, "load"):
            module.load(device) if takes_device else module.load()
        if callable(getattr(module, "example", None)):
            _check_arguments(path, "example", module.example, 0, "nothing")
            with _told(path, "example"):
                example = module.example()
            self.example = self._example(example)

    def compute(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Calls predict() with the inputs by name; its results are the declared outputs."""
        batch = {spec.name: value for spec, value in zip(self.inputs, inputs)}
        try:
            result = self._module.predict(batch)  # the one that load() may have made
        except KeyError as error:
            if _asked_for(error, batch):
                raise NoInputError(f"predict() asks for {error}; INPUTS has {', '.join(batch)}") from error
            raise
        if result is None:
            raise OutputError("predict() returned nothing: a dictionary, a tensor or a list is expected")
        if not isinstance(result, dict):
            return self._results(result)
        missing = [spec.name for spec in self.outputs if spec.name not in result]
        if missing:
            raise OutputError(f"predict() returned no '{missing[0]}', which OUTPUTS names")
        return {spec.name: result[spec.name] for spec in self.outputs} if self.outputs else result

    def _example(self, values: Any) -> list[Tensor]:
        names = [spec.name for spec in self.inputs]
        if not isinstance(values, dict) or set(values) != set(names):
            real = f"the keys {', '.join(map(str, values))}" if isinstance(values, dict) else type(values).__name__
            raise ModelError(
                f"{self._where}: example(): a dictionary with the inputs is expected, {', '.join(names)}; it is {real}"
            )
        try:
            tensors = [tensor_of(name, values[name]) for name in names]
        except OutputError as error:
            said = str(error).replace("output", "input", 1)
            raise ModelError(f"{self._where}: example(): {said}") from None
        return fitting(self.inputs, tensors, self._where)

    def _specs(self, module: Any, name: str) -> tuple[TensorSpec, ...]:
        entries = getattr(module, name, ())
        try:
            listed = [{"name": n, "datatype": d, "shape": list(s)} for n, d, s in entries]
        except (TypeError, ValueError):
            raise ModelError(f'{self._where}: {name}: expected is [("x", "FP32", (-1, 784))]') from None
        return specs_of(listed, f"{self._where}: {name}")


class _told:
    """Raises an error of the handler's own code while it loads as a ModelError with its file and line."""

    def __init__(self, path: str, function: str) -> None:
        self._name = f"{path}: {function}()"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # Also asyncio's CancelledError, which would be taken for that of the load itself; exit() means this process.
        if error is not None and not isinstance(error, (SystemExit, KeyboardInterrupt)):
            while trace.tb_next:
                trace = trace.tb_next
            place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
            raise ModelError(f"{self._name} failed at {place}: {type(error).__name__}: {text_of(error)}") from error


def _check_arguments(path: str, name: str, function: Any, count: int, expected: str) -> None:
    """Raises ModelError where it cannot be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # of native code
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise ModelError(f"{path}: {name}{signature}: it is called with {expected}: {error}") from None


def _asked_for(error: KeyError, batch: dict[str, Any]) -> bool:
    """Says whether a KeyError is of a key of the batch, by the line that looked it up, and of no other dict."""
    trace = error.__traceback__
    if not trace or len(error.args) != 1 or not isinstance(error.args[0], str) or error.args[0] in batch:
        return False
    while trace.tb_next:
        trace = trace.tb_next
    frame, line = trace.tb_frame, trace.tb_lineno
    known = {**frame.f_globals, **frame.f_locals}
    try:
        with open(frame.f_code.co_filename, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return False
    looked_up = [
        node.slice
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.lineno <= line <= (node.end_lineno or 0)
        and known.get(node.value.id) is batch
    ]
    keys = [key.value if isinstance(key, ast.Constant) else known.get(getattr(key, "id", "")) for key in looked_up]
    return error.args[0] in keys


def _run_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("torchpar_handler", path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _told(path, "import"):
        spec.loader.exec_module(module)
    return module

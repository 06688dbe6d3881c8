"""TorchScript files (.pt): what every torch since 1.13 loads without the code that made them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torchpar.serve.engine.columns import Column
from torchpar.serve.engine.samples import SIZES_TO_TRY, made_up
from torchpar.serve.errors import ModelError
from torchpar.serve.models.binding import Argument, bind
from torchpar.serve.models.contents import words_for
from torchpar.serve.models.counting import find_count
from torchpar.serve.models.description import INSIDE, Description, parse_description
from torchpar.serve.models.program import Program, example_of
from torchpar.serve.models.results import Results
from torchpar.serve.models.values import bytes_of, value_of
from torchpar.serve.models.writes import always, find_seed, find_write
from torchpar.serve.tensors import TensorSpec


class TorchScript(Program):
    """A forward runs without Python's lock, so several threads can share one.

    The file knows the names of its inputs. Their datatypes and shapes are in the description, within the file or beside
    it; without one they are guessed from the first layer and tried.
    """

    platform = "pytorch_libtorch"

    def __init__(self, path: str, description: Description, device: str = "cpu") -> None:
        extra: dict[str, Any] = {INSIDE: ""}
        try:
            with warnings.catch_warnings():
                # That TorchScript is deprecated is for who makes models.
                warnings.simplefilter("ignore", DeprecationWarning)
                module = torch.jit.load(path, map_location=device, _extra_files=extra)
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip() or "unreadable").splitlines()[0].rstrip(".") + words_for(str(error))
            raise ModelError(f"{path}: not a TorchScript file that this torch can load: {reason}") from None
        text = extra[INSIDE]
        if text:
            within = parse_description(text if isinstance(text, str) else text.decode(), f"{path}: {INSIDE}")
            description = description.over(within)
        module.eval()
        if not hasattr(module, "forward"):
            raise ModelError(f"{path}: it has no forward(), or several: save a module that calls the one that is meant")
        arguments = module.forward.schema.arguments[1:]
        by_key = [argument.type.annotation_str for argument in arguments] == ["Dict[str, Tensor]"]
        if by_key:
            takes = _keys(path, module.forward.inlined_graph, description.inputs)
        else:
            takes = _arguments(path, arguments, None if description.inputs else _first_input(module))
        bound = bind(path, takes, description.inputs, counted=not by_key)
        for spec, place in zip(bound.inputs, bound.places):
            _check_kind(path, spec, "Tensor" if by_key else arguments[place].type.annotation_str)
        self._keys = [takes[place].name for place in bound.places] if by_key else []
        self.inputs = bound.inputs
        if description.example is not None:
            self.example = example_of(self.inputs, description.example, path)
        self.outputs = description.outputs
        self._results = Results([spec.name for spec in self.outputs])
        self.max_batch = description.max_batch
        self.guessed = not description.inputs
        # What stands between the arguments that are bound; what is left out behind them the program knows.
        self._between = {
            i: argument.default_value
            for i, argument in enumerate(arguments[: max(bound.places, default=-1) + 1])
            if i not in bound.places and not self._keys
        }
        self._mode = torch.enable_grad if _gradients(module) else torch.inference_mode
        self.steady = "prim::Loop" not in {node.kind() for node in _nodes(module.forward.inlined_graph)}
        self._writes = find_write(module)
        self.seeds = find_seed(module)
        self.counts = find_count(module, always(module))
        self._take(module)
        if description.optimize:
            if writes := self._writes or self._find_change(device):
                raise ModelError(f'{path}: it writes to itself ({writes}), which "optimize" might make constant')
            self._take(_optimized(module, path))

    def _take(self, module: Any) -> None:
        # nn.Module's own __call__ runs hooks in Python, which a loaded module has none of.
        self._forward = module.forward
        self._module = module
        self._sums = _sums(module)

    def _find_change(self, device: str) -> str:
        """Runs it once, with its example or what is made up, and names what has changed: constants show nothing."""
        made = ([made_up(spec, 1, size, seed=0) for spec in self.inputs] for size in SIZES_TO_TRY)
        for tensors in [self.example] if self.example else made:
            try:
                values = [value_of(Column(tensor.datatype, tensor.shape, [tensor.data])) for tensor in tensors]
                self.compute([value.to(device) if isinstance(value, torch.Tensor) else value for value in values])
                break
            except Exception:  # of what the size does not fit: the trials that follow say what is wrong
                continue
        return self.writes()

    def writes(self) -> str:
        """Names what the graph writes to, or, where it names nothing, what has changed since the file was loaded."""
        return self._writes or ", ".join(name for name, now in _sums(self._module).items() if now != self._sums[name])

    def tensors(self) -> list[Any]:
        """See Program."""
        return [*self._module.parameters(), *self._module.buffers()]

    def moved(self) -> None:
        """See Program. torch counts the exchange as a write."""
        self._sums = _sums(self._module)

    def compute(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Runs forward once."""
        if self._keys:
            inputs = [dict(zip(self._keys, inputs))]
        elif self._between:
            inputs = list(inputs)
            for place, value in self._between.items():
                inputs.insert(place, value)
        with self._mode():
            return self._results(self._forward(*inputs))


def _optimized(module: Any, path: str) -> Any:
    """Makes constants of the weights, folds layers together and lays them out for this CPU. Raises ModelError."""
    if kinds := _gradients(module):
        what = ", ".join(sorted(kinds))
        raise ModelError(f'{path}: it computes derivatives or may do so ({what}), for which "optimize" leaves nothing')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.optimize_for_inference(torch.jit.freeze(module))
    except RuntimeError as error:
        raise ModelError(f"{path}: it cannot be optimized: {str(error).strip().splitlines()[-1]:.300}") from None


# What computes derivatives, or goes another way where torch does not record for them.
_GRADIENTS = (
    "aten::grad", "aten::backward", "aten::requires_grad_", "aten::is_leaf", "aten::retain_grad", "aten::retains_grad",
    "aten::_version", "aten::is_inference", "aten::_make_dual", "prim::requires_grad", "prim::CallMethod",
)  # fmt: skip


def _gradients(module: Any) -> set[str]:
    """Returns the operations that answer otherwise, or fail, where torch does not record, as a derivative does.

    A program that asks whether torch records is made for both: torch's transformers choose faster code then.
    """
    kinds = {node.kind() for node in _nodes(module.forward.inlined_graph)}
    if "aten::is_grad_enabled" in kinds:
        kinds.discard("prim::requires_grad")
    return kinds & set(_GRADIENTS)


def _nodes(graph: Any) -> Iterator[Any]:
    """Yields all nodes, however deep their blocks are; the graph's own first."""
    blocks = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            yield node
            blocks += node.blocks()
            if "Subgraph" in node.attributeNames():
                blocks.append(node.g("Subgraph"))


# TorchScript's names of types → whether it is BYTES.
_TAKEN = {"Tensor": False, "Optional[Tensor]": False, "List[str]": True, "Optional[List[str]]": True}


def _keys(path: str, graph: Any, described: Sequence[TensorSpec]) -> list[Argument]:
    """Returns the keys that a program looks up in its dictionary. Raises ModelError where nothing describes them.

    Those that it looks up in any case must be there. Where it does more with the dictionary, as walk through it, any
    others may be there too.
    """
    taken = list(graph.inputs())[1].debugName()
    found: dict[str, bool] = {}  # key → whether it must be there
    own: set[str] = set()  # that the program itself puts in
    maybe: set[str] = set()  # that it puts in at times
    is_open = False
    count = sum(1 for _ in graph.nodes())
    for i, node in enumerate(_nodes(graph)):
        in_any_case = i < count
        values = list(node.inputs())
        names = [value.debugName() for value in values]
        # What comes out of a branch may be the dictionary, by another name.
        is_open = is_open or any(taken == out.debugName() for block in node.blocks() for out in block.outputs())
        if taken not in names:
            continue
        key = values[1].toIValue() if len(values) > 1 and names.index(taken) == 0 else None
        if not isinstance(key, str) or node.kind() not in _LOOKS_UP:
            is_open = True
        elif node.kind() == "aten::_set_item":
            (own if in_any_case else maybe).add(key)
        elif key not in own:
            always = node.kind() == "aten::__getitem__" and in_any_case and key not in maybe
            found[key] = found.get(key, always) or always
    is_open = is_open or taken in [value.debugName() for value in graph.outputs()]
    if not described:
        keys = f" with the keys {', '.join(found)}" if found else ""
        raise ModelError(f"{path}: it takes a dictionary{keys}: describe its keys as the inputs")
    others = [spec.name for spec in described if is_open and spec.name not in found]
    return [Argument(key, required) for key, required in found.items()] + [Argument(key, False) for key in others]


_LOOKS_UP = ("aten::__getitem__", "aten::get", "aten::__contains__", "aten::_set_item")


def _arguments(path: str, arguments: Sequence[Any], first: Any | None) -> list[Argument]:
    """Returns the arguments that a tensor can be bound to. Raises ModelError where another one has no default.

    first guesses what the first one is, where nothing describes them.
    """
    takes = []
    for i, argument in enumerate(arguments):
        kind, required = argument.type.annotation_str, not argument.has_default_value()
        if kind not in _TAKEN and required:
            raise ModelError(
                f"{path}: argument '{argument.name}' is of type {kind}, which no request can carry: take a Tensor"
                " in forward(), or write a handler that calls the model (torchpar-model(5))"
            )
        guess = None
        if first and required:
            guess = first(argument.name) if i == 0 else TensorSpec(argument.name, "FP32", (-1,))
            guess = TensorSpec(argument.name, "BYTES", (-1,)) if _TAKEN[kind] else guess
        takes.append(Argument(argument.name, required, guess))
    if first and takes and not any(take.required for take in takes):
        names = ", ".join(take.name for take, each in zip(takes, arguments) if each.type.annotation_str in _TAKEN)
        raise ModelError(
            f"{path}: forward() has a default for each of its arguments, so nothing says which of them requests bring:"
            f" describe the inputs, of {names or 'which none is a tensor'} (torchpar-model(5))"
        )
    return takes


def _check_kind(path: str, spec: TensorSpec, kind: str) -> None:
    if _TAKEN.get(kind) is not (spec.datatype == "BYTES"):
        raise ModelError(
            f"{path}: input '{spec.name}' is described as {spec.datatype}; the program's argument is of type {kind}"
        )


def _sums(module: Any) -> dict[str, tuple[int, int]]:
    """Sums each parameter's and buffer's bytes, and reads torch's count of its writes: a change alters one of these."""
    found = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        added = 0
        for part in _parts(tensor.detach()) if tensor.device.type == "cpu" else ():
            raw = bytes_of(part.contiguous())
            whole = len(raw) // 8 * 8
            added += int(torch.frombuffer(raw[:whole], dtype=torch.int64).sum()) if whole else 0
            added += sum(raw[whole:])
        found[name] = (added, tensor._version)
    return found


def _parts(tensor: Any) -> list[Any]:
    """Returns the dense tensors that one consists of; none where torch does not show them."""
    if tensor.is_nested:
        return []
    if tensor.is_quantized:
        return [tensor.int_repr()]
    if tensor.layout is torch.strided:
        return [tensor.resolve_conj().resolve_neg()]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()] if tensor.is_mkldnn else []


def _first_input(module: Any) -> Any:
    """Guesses the first input from the first parameter: a linear layer's width, a convolution's channels, an index."""
    parameter = next(iter(module.parameters()), None)
    kind = next((m.original_name for m in module.modules() if m._c.hasattr("weight")), "")

    def spec(name: str) -> TensorSpec:
        if parameter is None:
            return TensorSpec(name, "FP32", (-1,))
        if kind == "Embedding":
            return TensorSpec(name, "INT64", (-1, -1))
        if kind.startswith("Conv"):
            return TensorSpec(name, "FP32", (-1, parameter.shape[1], *(-1 for _ in parameter.shape[2:])))
        return TensorSpec(name, "FP32", (-1, parameter.shape[-1]) if parameter.dim() == 2 else (-1,))

    return spec

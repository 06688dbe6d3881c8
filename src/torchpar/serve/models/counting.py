"""Finding out whether a program computes with the number of its rows: from its graph, before it has run.

Comparing answers tells what more rows do to one of them only where that is more than rounding. Nothing in a graph is
too small: a number of rows that meets a tensor as a value ends batching. One that is a shape, an index or a bound of a
loop does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Union

from torchpar.serve.models.writes import arguments_of

# What a value holds of a number of rows: the number, a tensor's sizes with it at this index, a list or tuple of these.
COUNT = "count"
Holds = Union[None, str, int, tuple["Holds", ...]]

_SIZES = ("aten::size", "aten::sym_size")
_ALL_ELEMENTS = ("aten::numel", "aten::sym_numel", "aten::len")
_WRAPPED = ("aten::tensor", "aten::as_tensor", "prim::NumToTensor")
_MADE = ("prim::ListConstruct", "prim::TupleConstruct")
_UNPACKED = ("prim::ListUnpack", "prim::TupleUnpack")
_SWAPPED = ("aten::transpose", "aten::transpose_", "aten::swapaxes", "aten::swapdims")
# Of these nothing is known of where the rows are in what they return: they are taken to be first.
_RESHAPED = ("aten::view", "aten::reshape", "aten::flatten", "aten::unsqueeze", "aten::squeeze", "aten::select",
             "aten::expand", "aten::stack", "aten::movedim", "aten::unflatten")  # fmt: skip
# An argument of whole numbers says where or how many, not what; Scalar and number may be a value.
_SHAPE_OR_INDEX = re.compile(r"(Optional\[|List\[)*(int|SymInt)\b[][0-9?]*")


def find_count(module: Any, known: Callable[[Any], Any]) -> str:
    """Says in words where a loaded TorchScript module's forward takes a number of rows as a value; "" if nowhere.

    known gives a value that is the same at every call; anything but True and False where that is no condition.
    """
    try:
        return _Graph(module.forward.inlined_graph, known).find()
    except RecursionError:
        return "what is too deep within its branches to be found out"


class _Graph:
    """The graph of forward, walked in its order; loops until nothing new is found in them."""

    def __init__(self, graph: Any, known: Callable[[Any], Any]) -> None:
        self._graph = graph
        self._known = known
        self._holds: dict[str, Holds] = {}
        self._row_dimensions: dict[str, int] = {}  # tensors whose rows are not first
        self._data: set[str] = set()  # tensors that depend on a request's numbers, and not on its sizes alone
        self._found = ""

    def find(self) -> str:
        given = list(self._graph.inputs())[1:]
        self._given = {value.debugName() for value in given}
        self._data = set(self._given)
        self._walk(self._graph)
        for value in self._graph.outputs():
            if not self._found and self.of(value) is not None:
                self._found = "what it returns"
        return self._found

    def of(self, value: Any) -> Holds:
        return self._holds.get(value.debugName())

    def _walk(self, block: Any) -> None:
        for node in block.nodes():
            if self._found:
                return
            kind = node.kind()
            if kind == "prim::If":
                self._branch(node)
            elif kind == "prim::Loop":
                self._loop(node)
            else:
                self._step(node, kind)

    def _step(self, node: Any, kind: str) -> None:
        inputs, outputs = list(node.inputs()), list(node.outputs())
        if kind in _SIZES or kind in _ALL_ELEMENTS:
            self._set(outputs[0], self._size(kind, inputs))
            return
        if any(value.debugName() in self._data for value in inputs):
            self._data.update(output.debugName() for output in outputs)
        if inputs and outputs and _is_tensor(outputs[0]):
            self._follow(kind, inputs, outputs[0])
        holds = [self.of(value) for value in inputs]
        if not any(each is not None for each in holds):
            return
        if kind in _MADE:
            self._set(outputs[0], tuple(holds))
        elif kind in _UNPACKED:
            for i, output in enumerate(outputs):
                self._set(output, _element(holds[0], i))
        elif kind in ("aten::__getitem__", "prim::TupleIndex"):
            self._set(outputs[0], _element(holds[0], _integer(inputs[1])))
        elif kind == "aten::slice" and not _is_tensor(outputs[0]):
            self._set(outputs[0], _sliced(holds[0], *(_integer(each) for each in inputs[1:4])))
        elif any(map(_is_tensor, outputs)):
            self._meet(node, kind, inputs, holds)
        else:
            for output in outputs:
                self._set(output, COUNT)

    def _meet(self, node: Any, kind: str, inputs: Sequence[Any], holds: Sequence[Holds]) -> None:
        """Finds out whether an operation that returns a tensor takes a number of rows as a value."""
        types = arguments_of(node.schema())
        if kind not in _WRAPPED and all(
            each is None or is_shape_or_index(kind, *types[i].split()[:2]) for i, each in enumerate(holds)
        ):
            return
        if any(_is_tensor(value) and value.debugName() in self._data for value in inputs):
            self._found = _words(node)
            return
        for output in node.outputs():
            self._set(output, COUNT)

    def _size(self, kind: str, inputs: Sequence[Any]) -> Holds:
        tensor = inputs[0]
        if kind == "aten::len" and not _is_tensor(tensor):
            return COUNT if tensor.debugName() in self._given and tensor.type().kind() == "ListType" else None
        if not _is_tensor(tensor) or _is_own(tensor) or self.of(tensor) is not None:
            return None
        dimension = self._row_dimensions.get(tensor.debugName(), 0)
        if kind in _ALL_ELEMENTS:
            return COUNT if kind != "aten::len" or dimension == 0 else None
        if len(inputs) == 1:
            return dimension
        wanted = _integer(inputs[1])
        if wanted is not None and wanted < 0:
            dimensions = _dimensions(tensor)
            wanted = wanted + dimensions if dimensions else wanted
        return COUNT if wanted is None or wanted == dimension else None

    def _follow(self, kind: str, inputs: Sequence[Any], output: Any) -> None:
        """Notes which dimension of a result has the rows: mostly the one that has them in the first tensor taken."""
        first = next((value for value in inputs if _is_tensor(value)), None)
        dimension = self._row_dimensions.get(first.debugName(), 0) if first is not None else 0
        if kind in _RESHAPED:
            dimension = 0
        elif kind in _SWAPPED or kind == "aten::permute" or kind in ("aten::t", "aten::t_"):
            moved = [0, 1] if kind in ("aten::t", "aten::t_") else [_integer(each) for each in inputs[1:3]]
            if kind == "aten::permute":
                order = [_integer(each) for each in inputs[1].node().inputs()]
                dimension = order.index(dimension) if dimension in order else 0
            elif dimension in moved:
                other = moved[1 - moved.index(dimension)]
                dimension = other if other is not None else 0
        if dimension:
            self._row_dimensions[output.debugName()] = dimension

    def _branch(self, node: Any) -> None:
        condition = next(iter(node.inputs()))
        known = self._known(condition)
        blocks = list(node.blocks())
        taken = [blocks[0 if known else 1]] if isinstance(known, bool) else blocks
        for block in taken:
            self._walk(block)
        taken = [block for block in taken if not _only_raises(block)] or taken
        asked = self.of(condition) is not None and len(taken) > 1
        for i, output in enumerate(node.outputs()):
            leaves = [list(block.outputs())[i] for block in taken]
            if asked and _is_tensor(output) and len({leaf.debugName() for leaf in leaves}) > 1:
                self._found = self._found or _words(node)
            for leaf in leaves:
                self._same(output, leaf)
                self._set(output, COUNT if asked and not _is_tensor(output) else self.of(leaf))
        if asked and any(_writes(block) for block in taken):
            self._found = self._found or _words(node)

    def _loop(self, node: Any) -> None:
        (block,) = node.blocks()
        inputs, leaves, carried = list(node.inputs()), list(block.outputs()), list(block.inputs())
        rounds = self.of(inputs[0]) is not None
        while not self._found:
            before = dict(self._holds), set(self._data)
            for i, value in enumerate(carried[1:]):
                leaf = leaves[i + 1]
                for source in (inputs[i + 2], leaf):
                    self._set(value, self.of(source))
                    self._same(value, source)
                counted = rounds and _is_number(value) and leaf.debugName() != value.debugName()
                output = list(node.outputs())[i]
                self._set(output, COUNT if counted else self.of(value))
                self._same(output, value)
            self._walk(block)
            if (self._holds, self._data) == before:
                return

    def _same(self, value: Any, source: Any) -> None:
        """Notes that one value may be another one, by another name."""
        name = source.debugName()
        if name in self._data:
            self._data.add(value.debugName())
        if name in self._row_dimensions:
            self._row_dimensions[value.debugName()] = self._row_dimensions[name]

    def _set(self, value: Any, holds: Holds) -> None:
        """Adds to what is known of a value. It only grows, or a loop would never end."""
        if holds is None:
            return
        name = value.debugName()
        self._holds[name] = holds if self._holds.get(name, holds) == holds else COUNT


def is_shape_or_index(operation: str, kind: str, name: str) -> bool:
    """Says whether an argument of this type and name in a schema is a shape, an index or a bound, and no value."""
    return bool(_SHAPE_OR_INDEX.fullmatch(kind)) or operation == "aten::arange" and name.startswith("end")


def _element(holds: Holds, index: int | None) -> Holds:
    if holds is None or holds == COUNT:
        return holds
    if isinstance(holds, tuple):
        if index is None:
            return COUNT if any(each is not None for each in holds) else None
        return holds[index] if -len(holds) <= index < len(holds) else None
    return COUNT if index is None or index == holds else None


def _sliced(holds: Holds, start: int | None, end: int | None, step: int | None) -> Holds:
    if isinstance(holds, tuple):
        found = holds[slice(start, end, step)]
        return found if any(each is not None for each in found) else None
    if isinstance(holds, int):
        start = start or 0
        return None if start > holds or step not in (None, 1) else holds - max(start, 0)
    return holds


def _only_raises(block: Any) -> bool:
    return any(node.kind() == "prim::RaiseException" for node in block.nodes())


def _writes(block: Any) -> bool:
    return any("!" in node.schema() for node in block.nodes())


def _is_tensor(value: Any) -> bool:
    return "Tensor" in str(value.type().annotation_str)


def _is_number(value: Any) -> bool:
    return str(value.type()) in ("int", "float", "bool")


def _is_own(value: Any) -> bool:
    """Says whether a value is a constant or an attribute, and so does not depend on a request."""
    return value.node().kind() in ("prim::Constant", "prim::GetAttr")


def _integer(value: Any) -> int | None:
    """Returns the whole number that a value always is; None where it is another each time."""
    found = value.toIValue() if value.node().kind() == "prim::Constant" else None
    return found if isinstance(found, int) else None


def _dimensions(tensor: Any) -> int | None:
    return tensor.type().dim() if tensor.type().kind() == "TensorType" else None


def _words(node: Any) -> str:
    """Names the operation, and the line that it comes from, where the file has it."""
    lines = node.sourceRange().splitlines()
    marked = next((i for i, line in enumerate(lines) if "<--- HERE" in line), 0)
    return f"{node.kind()}: {lines[marked - 1].strip()}" if marked else node.kind()


def find_count_exported(program: Any) -> str:
    """Does the same for a program of torch.export, whose numbers are formulas of its inputs' sizes; it has no loops.

    Where no first dimension is open there is nothing to find, nor a batch.
    """
    given = set(program.graph_signature.user_inputs)
    rows: set[Any] = set()
    for node in program.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        if node.op == "placeholder" and node.name in given and shape:
            rows |= _symbols(shape[0])
    for node in program.graph.nodes:
        if node.op == "call_function" and any(hasattr(leaf, "dtype") for leaf in _leaves(node.meta.get("val"))):
            schema = getattr(node.target, "_schema", None)
            arguments = schema.arguments if schema else ()
            names = [argument.name for argument in arguments] or list(map(str, range(len(node.args))))
            kinds = {argument.name: str(argument.type) for argument in arguments}
            for name, value in [*zip(names, node.args), *node.kwargs.items()]:
                counts = any(rows & _symbols(getattr(leaf, "meta", {}).get("val")) for leaf in _leaves(value))
                if counts and not is_shape_or_index(schema.name if schema else "", kinds.get(name, "bool"), name):
                    return str(node.target)
    return ""


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in _leaves(each)]
    return [value]


def _symbols(value: Any) -> set[Any]:
    """Returns the symbols in a number that is a formula."""
    expression = getattr(getattr(value, "node", None), "expr", None)
    return set(expression.free_symbols) if expression is not None else set()

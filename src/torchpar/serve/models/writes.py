"""Finding out whether a TorchScript program writes to itself: from its graph, before it has run.

Attributes that are set, and operations in place on what an attribute or a constant holds, also through views and
containers. A branch that eval() closes is not looked at: every BatchNorm counts its batches in one. In doubt it writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

# A written argument in a schema: Tensor(a!). Tensor(a) is one that is, or may be, part of a result.
_WRITTEN = re.compile(r"\([^()]*![^()]*\)")
_CONSTRUCTED = ("prim::ListConstruct", "prim::DictConstruct", "prim::TupleConstruct")
# They have a schema without marks, and write to the statistics (3 and 4) where the 5th argument says so.
_NORMS = ("aten::batch_norm", "aten::instance_norm", "aten::native_batch_norm")
UNKNOWN = object()


# They leave something in the parameters without saying so in their schema: gradients.
_BACKWARD = ("aten::backward", "aten::_backward")


def find_write(module: Any) -> str:
    """Names the thing that a loaded module writes to when its forward runs; "" if there is none."""
    try:
        return _Graph(module).write()
    except RecursionError:
        return "what is too deep within its branches to be found out"


def find_seed(module: Any) -> str:
    """Names the operations of a loaded module's forward that seed the process's random numbers; "" if none does."""
    kinds = {node.kind() for node in _all(module.forward.inlined_graph)}
    return ", ".join(sorted(kinds & {"aten::manual_seed", "aten::seed"}))


def always(module: Any) -> Callable[[Any], Any]:
    """Returns a function that tells the value that a value of forward has at every call, or UNKNOWN."""
    return _Graph(module).known


class _Graph:
    """The graph of forward, with all that it calls in place."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._graph = module.forward.inlined_graph
        self._self = next(iter(self._graph.inputs())).debugName()
        self._set = {node.s("name") for node in _all(self._graph) if node.kind() == "prim::SetAttr"}
        self._seen: set[str] = set()  # values that were followed, none of which is the program's own
        self._inputs = [each.debugName() for each in self._graph.inputs()]
        self._carried = dict(_carried(self._graph))
        self._values: dict[str, Any] = {}  # by name, those that are the same at every call

    def write(self) -> str:
        for node in self._open(self._graph):
            kind = node.kind()
            inputs = list(node.inputs())
            if kind == "prim::SetAttr":
                return f"attribute '{node.s('name')}'"
            if kind in ("prim::CallMethod", "prim::CallFunction"):
                return "what it calls through an interface"
            if kind in _BACKWARD:
                return f"gradients ({kind})"
            if kind in _NORMS and self.known(inputs[3]) is not None and self.known(inputs[5]) is not False:
                return "the statistics of a normalisation"
            for value, written in zip(inputs, arguments_of(node.schema())):
                if _WRITTEN.search(written) and value.node().kind() not in _CONSTRUCTED and self._is_own(value):
                    return f"{self._name(value)} ({kind})"
        return ""

    def _open(self, block: Any) -> Iterator[Any]:
        """Yields the nodes that can run."""
        for node in block.nodes():
            yield node
            blocks = list(node.blocks())
            if node.kind() == "prim::If":
                condition = self.known(next(iter(node.inputs())))
                if condition is not UNKNOWN:
                    blocks = [blocks[0 if condition else 1]]
            elif "Subgraph" in node.attributeNames():
                blocks = [node.g("Subgraph")]
            for each in blocks:
                yield from self._open(each)

    def known(self, value: Any) -> Any:
        """Returns a value that is the same at every call, else UNKNOWN."""
        name = value.debugName()
        if name not in self._values:
            self._values[name] = self._look(value)
        return self._values[name]

    def _look(self, value: Any) -> Any:
        node = value.node()
        kind = node.kind()
        if kind == "prim::Constant":
            return value.toIValue()
        if kind == "prim::GetAttr":
            name, owner = node.s("name"), self._owner(next(iter(node.inputs())))
            return UNKNOWN if owner is None or name in self._set else owner.getattr(name)
        asks = ("aten::__is__", "aten::__isnot__", "aten::__not__")
        known = [self.known(each) for each in node.inputs()] if kind in asks else []
        if kind == "prim::If":
            condition = self.known(next(iter(node.inputs())))
            blocks = list(node.blocks())
            if condition is not UNKNOWN:
                blocks = [blocks[0 if condition else 1]]
            found = [self.known(list(block.outputs())[_place(node, value)]) for block in blocks]
            return found[0] if all(each is found[0] for each in found) else UNKNOWN
        if len(known) == 2 and known[1] is None and known[0] is not UNKNOWN:
            return (known[0] is None) == (kind == "aten::__is__")
        if len(known) == 1 and known[0] is not UNKNOWN:
            return not known[0]
        return UNKNOWN

    def _owner(self, value: Any) -> Any:
        """Returns the module, or the module within it, that a value is; None if it is none."""
        if value.debugName() == self._self:
            return self._module._c
        node = value.node()
        if node.kind() != "prim::GetAttr":
            return None
        owner = self._owner(next(iter(node.inputs())))
        return None if owner is None else owner.getattr(node.s("name"))

    def _is_own(self, value: Any) -> bool:
        """Says whether a value is, or may be, memory that the program keeps.

        The first that is one ends the search, so nothing is followed twice, however many writes there are.
        """
        following = [value]
        while following:
            value = following.pop()
            if value.debugName() not in self._seen:
                self._seen.add(value.debugName())
                sources = self._sources(value)
                if sources is None:
                    return True
                following += sources
        return False

    def _sources(self, value: Any) -> list[Any] | None:
        """Returns the values whose memory a value may be; None where it is the program's own."""
        node = value.node()
        kind = node.kind()
        if kind == "prim::Param":
            if value.debugName() in self._inputs:
                return None if value.debugName() == self._inputs[0] else []
            return self._carried.get(value.debugName())  # parameters of other blocks than loops are not followed
        if kind == "prim::Constant":
            return [] if str(value.type()) in ("int", "float", "bool", "str", "NoneType", "Device") else None
        sources = list(node.inputs())
        if kind in ("prim::If", "prim::Loop"):
            place = _place(node, value)
            # A loop's blocks return first whether it goes on.
            outputs = [list(block.outputs())[place + (kind == "prim::Loop")] for block in node.blocks()]
            return outputs if kind == "prim::If" else [*outputs, sources[2 + place]]
        if kind.startswith("aten::"):
            if "(" not in node.schema().rpartition("->")[2].strip(" ()"):
                return []  # fresh memory
            # Of the arguments only those are in it that the schema marks.
            return [source for source, mark in zip(sources, arguments_of(node.schema())) if "(" in mark]
        return sources

    def _name(self, value: Any) -> str:
        while value.node().kind() != "prim::Param":
            node = value.node()
            if node.kind() == "prim::GetAttr":
                return f"attribute '{node.s('name')}'"
            sources = list(node.inputs())
            if not sources:
                break
            value = sources[0]
        return "what it keeps"


def _all(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _all(inner)


def _carried(graph: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yields the parameters of loops, by name: the value that each begins with, and the one that every round leaves."""
    for node in _all(graph):
        if node.kind() == "prim::Loop":
            (block,) = node.blocks()
            begins, leaves = list(node.inputs()), list(block.outputs())
            for place, each in enumerate(block.inputs()):
                # The first is the round's number.
                yield each.debugName(), [begins[1 + place], leaves[place]] if place else []


def _place(node: Any, value: Any) -> int:
    return [each.debugName() for each in node.outputs()].index(value.debugName())


@lru_cache(maxsize=1024)
def arguments_of(schema: str) -> list[str]:
    """Splits the arguments of a schema, such as "aten::add_.Scalar(Tensor(a!) self, Scalar other) -> Tensor(a!)"."""
    inside = schema.partition("(")[2].rpartition(") ->")[0]
    found, depth = [""], 0
    for letter in inside:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [argument.strip() for argument in found if argument.strip() != "*"]

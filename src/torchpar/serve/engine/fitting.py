"""Checks requests against what a model declares, and says which of them can be computed together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from torchpar.serve.engine.requests import Request
from torchpar.serve.errors import ServeError
from torchpar.serve.tensors import SIZES, Tensor, TensorSpec, byte_size

# Shapes that were seen before need not be looked at again; clients that send ever new ones must not fill the memory.
SHAPES_KEPT = 512


class Fit(NamedTuple):
    """A request's rows, the bytes of its inputs, and a key: requests of one key are computed together."""

    rows: int
    key: Hashable
    size: int


class Fitting:
    """The check of one version of a model."""

    def __init__(
        self,
        model: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        loose: bool,
        most: int | None,
    ) -> None:
        """loose: the inputs' shapes are guesses, and requests may have others. most: rows of one request."""
        self._model = model
        self._inputs = inputs
        self._loose = loose
        self._most = most
        self._names = [spec.name for spec in inputs]
        self._output_names = frozenset(spec.name for spec in outputs)
        self._shapes: dict[Any, tuple[int, Hashable, tuple[int, ...]]] = {}

    def check(self, request: Request) -> Fit:
        """Checks a request against the model, and puts its inputs into the model's order.

        Raises ServeError 400, or 413 where it has more rows than the model takes.
        """
        inputs = request.inputs
        # Before the look-up: what is found there is only right for inputs in the model's order.
        if [tensor.name for tensor in inputs] != self._names:
            request.inputs = inputs = self._in_order(inputs)
        if len(inputs) == 1:
            one = inputs[0]
            kind: Any = (one.name, one.datatype, one.shape)
        else:
            kind = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in inputs])
        try:
            found = self._shapes.get(kind)
        except TypeError:
            raise ServeError(400, "a shape is a tuple of whole numbers") from None
        if found is None:
            found = self._look(inputs)
            if len(self._shapes) >= SHAPES_KEPT:
                self._shapes.clear()
            self._shapes[kind] = found
        rows, key, sizes = found
        whole = 0
        for tensor, size in zip(inputs, sizes):
            have = len(tensor.data)
            if have != size:
                what = "elements" if tensor.datatype == "BYTES" else "bytes"
                raise ServeError(
                    400,
                    f"input '{tensor.name}': {tensor.datatype} of shape {list(tensor.shape)} has {size} {what}, "
                    f"not {have}",
                )
            whole += have if tensor.datatype != "BYTES" else have * 4 + sum(map(len, tensor.data))  # type: ignore[arg-type]
        if request.outputs is not None and self._output_names:
            for name in request.outputs:
                if name not in self._output_names:
                    raise ServeError(400, f"model '{self._model}' has no output '{name}'")
        # A bucket of its own: what is not as the model declares is not put together with anything.
        return Fit(rows, object() if key is None else key, whole)

    def _in_order(self, inputs: list[Tensor]) -> list[Tensor]:
        """Returns the inputs in the model's order. Raises ServeError 400 where they are not the model's."""
        names = [tensor.name for tensor in inputs]
        by_name = {tensor.name: tensor for tensor in inputs}
        for name in names:
            if name not in self._names:
                raise ServeError(400, f"model '{self._model}' has no input '{name}'; it has {', '.join(self._names)}")
        if len(by_name) < len(names):
            raise ServeError(400, "an input is there twice")
        for name in self._names:
            if name not in by_name:
                raise ServeError(400, f"input '{name}' of model '{self._model}' is missing")
        return [by_name[name] for name in self._names]

    def _look(self, inputs: Sequence[Tensor]) -> tuple[int, Hashable, tuple[int, ...]]:
        fits = True
        sizes = []
        for tensor, spec in zip(inputs, self._inputs):
            if tensor.datatype not in SIZES:
                raise ServeError(400, f"input '{tensor.name}': there is no datatype {tensor.datatype!r:.20}")
            if not all(type(size) is int and size >= 0 for size in tensor.shape):
                raise ServeError(400, f"input '{tensor.name}': a shape is a list of whole numbers from 0 on")
            if tensor.datatype != spec.datatype or not spec.fits(tensor.shape):
                fits = False
                if not self._loose:
                    raise ServeError(
                        400,
                        f"input '{tensor.name}': {spec} is expected (-1: any), "
                        f"not {tensor.datatype} of shape {list(tensor.shape)}",
                    )
            size = byte_size(tensor.datatype, tensor.shape)
            sizes.append(byte_size("UINT8", tensor.shape) or 0 if size is None else size)
        rows = self._rows(inputs) if fits else None
        if rows is None:
            return 1, None, tuple(sizes)
        if self._most is not None and rows > self._most:
            bounds = f"the {self._most} that model '{self._model}' takes at once"
            raise ServeError(413, f"{rows} rows are more than {bounds} (MaxBatch=, or max_batch of the model)")
        return rows, tuple([tensor.shape[1:] for tensor in inputs]), tuple(sizes)

    def _rows(self, inputs: Sequence[Tensor]) -> int | None:
        """Returns the rows of a request that can be put together with others; None if it cannot."""
        counts = {t.shape[0] if t.shape and spec.shape[:1] == (-1,) else 0 for t, spec in zip(inputs, self._inputs)}
        return counts.pop() or None if len(counts) == 1 else None

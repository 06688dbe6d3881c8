"""Reads for which inputs an AOTInductor package was compiled: its loader does not tell it, its C++ code does.

It lies beside the machine code, and has a function for each input that checks datatype, sizes and strides. torch calls
these only where an environment variable says so; without them machine code reads beyond what it is given.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torchpar.serve.errors import ModelError
from torchpar.serve.tensors import TORCH_NAMES, TensorSpec

_CHECK = re.compile(r"static void check_input_(\d+)\(.*?\n\}", re.DOTALL)
_NAME = re.compile(r'inputs_info_\[(\d+)\]\.name = "(\w+)";')
_DTYPE = re.compile(r"= aoti_torch_dtype_(\w+)\(\);")
_SIZE = re.compile(r"if \((\d+)L* != \w+_size\[(\d+)\]\)")
_LOW = re.compile(r"if \(\w+_size\[(\d+)\] < (-?\d+)")
_HIGH = re.compile(r"if \(\w+_size\[(\d+)\] > (\d+)")
_STRIDE = re.compile(r"if \((\d+)L* != \w+_stride\[(\d+)\]\)")
# An open size has a name, which is that of every size that must be the same.
_SYMBOL = re.compile(r"\b(?:int64_t|auto) (\w+) = (\w+)_size\[(\d+)\];")
_ALIAS = re.compile(r"\bint64_t (\w+) = (\w+);")
_SIZES = re.compile(r'assert_size_stride\((\w+), \{([^{}]*)\}, \{[^{}]*\}, "input"\)')
# What it keeps from call to call, and where it computes with that: a kernel's arguments are constant or written.
_KEPT = re.compile(r'constants_info_\[(\d+)\]\.name = "(\w+)";')
_KEPT_AS = re.compile(r'constants_info_\[(\d+)\]\.original_fqn = "([^"]*)";')
_RUN = re.compile(r"^void \w+::run_impl\(.*?^\}", re.DOTALL | re.MULTILINE)
_VIEW = re.compile(r"(\w+)(?: = |\()[^;=]*?reinterpret_tensor_wrapper\((\w+),")
_POINTER = re.compile(r"(?:\(|<)(const )?[\w:]+ ?\*>?\)?\((\w+)\.data_ptr\(\)\)")
# Operators outside of kernels whose names end so write to their first argument.
_WRITER = re.compile(r"aoti_torch_\w*?(?:_out|_)\((?:\w+\()*(\w+)\b")
_TREE = re.compile(r'\bin_spec_ = R"\((.*?)\)";', re.DOTALL)

# What stands for "nothing bounds it".
_MANY = 1 << 40


@dataclass(frozen=True)
class Made:
    """The inputs that a package takes, read from its C++.

    equal holds groups of (input, dimension) whose sizes must be the same; None where not all is told of open sizes.
    tree is torch's JSON of how the inputs are nested in a call's arguments, "" if it is not there. writes names the
    constants that it keeps and writes to, "" if none is known.
    """

    inputs: tuple[TensorSpec, ...]
    equal: tuple[tuple[tuple[int, int], ...], ...] | None
    tree: str
    writes: str = ""


def read_made(path: str, model: str = "model") -> Made | None:
    """Reads a package; None where it does not tell its inputs. Raises ModelError for what no request can be."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if f"/aotinductor/{model}/" in name and name.endswith(".cpp"):
                    text = archive.read(name).decode(errors="replace")
                    if _NAME.search(text):
                        return parse_made(path, text)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a .pt2 file: {error}") from None
    return None


def parse_made(path: str, text: str) -> Made | None:
    """Parses the C++ of a package; `path` names it in the messages. See `read_made`."""
    names = [name for _, name in sorted({(int(number), name) for number, name in _NAME.findall(text)})]
    checks = {int(found[1]): found[0] for found in _CHECK.finditer(text)}
    if sorted(checks) != list(range(len(names))):
        return None
    inputs = tuple(_parse_input(f"{path}: input {number}", checks[number]) for number in sorted(checks))
    equal = _parse_equal(text, names, inputs)
    tree = _TREE.search(text)
    return Made(inputs, equal, tree[1] if tree else "", parse_writes(text))


def parse_writes(text: str) -> str:
    """Names the constants of a package that its C++ writes to; "" if none is seen.

    A write by a kernel for accelerators, or by an operator of somebody else, is not seen.
    """
    names, words = dict(_KEPT.findall(text)), dict(_KEPT_AS.findall(text))
    kept = {name: words.get(number, name) for number, name in names.items()}
    run = "\n".join(_RUN.findall(text))
    for view, name in _VIEW.findall(run):
        if name in kept:
            kept.setdefault(view, kept[name])
    written = [name for constant, name in _POINTER.findall(run) if not constant] + _WRITER.findall(run)
    return ", ".join(sorted({f"'{kept[name]}'" for name in written if name in kept}))


def _parse_input(where: str, text: str) -> TensorSpec:
    dtype = _DTYPE.search(text)
    datatype = next((word for word, name in TORCH_NAMES.items() if dtype and name == dtype[1]), None)
    if datatype is None:
        what = dtype[1] if dtype else "thing"
        raise ModelError(f"{where} is a {what}, which no request can carry: write a handler")
    sizes = {int(dimension): int(size) for size, dimension in _SIZE.findall(text)}
    lows = {int(dimension): int(low) for dimension, low in _LOW.findall(text)}
    highs = {int(dimension): int(high) for dimension, high in _HIGH.findall(text)}
    strides = {int(dimension): int(stride) for stride, dimension in _STRIDE.findall(text)}
    rank = max((*sizes, *lows, *highs, *strides, -1)) + 1
    shape = tuple(sizes.get(dimension, -1) for dimension in range(rank))
    for dimension, stride in strides.items():
        if shape[dimension] != 1 and stride != _contiguous(shape[dimension + 1 :]):
            raise ModelError(
                f"{where} was compiled for a tensor that does not lie row by row in memory (stride {stride} in"
                f" dimension {dimension}): export the model with contiguous example inputs"
            )
    open_limits = (_limit(lows.get(dimension, 0), highs.get(dimension)) for dimension in range(rank))
    limits = tuple(limit if size == -1 else (size, size) for size, limit in zip(shape, open_limits))
    return TensorSpec("", datatype, shape, limits)


def _limit(low: int, high: int | None) -> tuple[int, int | None]:
    # Every range begins at 2 where nobody gave one; the code takes 1 all the same.
    return (1 if low == 2 else low), (None if high is None or high >= _MANY else high)


def _contiguous(sizes: Sequence[int]) -> int | None:
    """Returns the stride of a dimension before these; None where a request chooses it."""
    stride = 1
    for size in sizes:
        if size == -1:
            return None
        stride *= max(size, 1)
    return stride


def _parse_equal(
    text: str, names: Sequence[str], inputs: Sequence[TensorSpec]
) -> tuple[tuple[tuple[int, int], ...], ...] | None:
    """Parses which dimensions must have the same size, as groups of (input, dimension).

    None where that is not told of each, or is not all that must hold.
    """
    found = [(name, int(dimension), symbol) for symbol, name, dimension in _SYMBOL.findall(text)]
    symbols = {(names.index(name), dimension): symbol for name, dimension, symbol in found if name in names}
    asserted = {names.index(name): sizes for name, sizes in _SIZES.findall(text) if name in names}
    for number, sizes in asserted.items():
        words = [word.strip() for word in sizes.split(",") if word.strip()]
        shape = inputs[number].shape
        symbols.update({(number, i): word for i, word in enumerate(words) if shape[i] == -1})
    others = dict(_ALIAS.findall(text))
    symbols = {key: others.get(symbol, symbol) for key, symbol in symbols.items()}
    keys = [(number, i) for number, spec in enumerate(inputs) for i, size in enumerate(spec.shape) if size == -1]
    if not all(key in symbols or (asserted and key[0] not in asserted) for key in keys):
        return None
    if not all(symbols[key].isidentifier() for key in keys if key in symbols):
        return None
    # A size that others are computed from is read under its own name.
    if any(symbols.get((number, i)) == f"{names[number]}_size_{i}" for number, i in keys):
        return None
    named = sorted((symbols[key], key) for key in keys if key in symbols)
    groups = [tuple(key for _, key in group) for _, group in groupby(named, key=lambda pair: pair[0])]
    return tuple(group for group in groups if len(group) > 1)

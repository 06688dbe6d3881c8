"""Names a file that is no model, before torch does, whose words for it tell of archives and opcodes.

It is only looked at. Nothing in it is loaded or run.
"""

from __future__ import annotations

import ast
import os
import pickletools
import re
import zipfile
import zlib

from torchpar.serve.errors import ModelError

# What a file begins with, where that is no model of any kind, and what to do.
_BEGINS = (
    (b"version https://git-lfs.github.com", "a Git LFS pointer, not the file that it stands for: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the file that it stands for: git annex get"),
    (b"<!DOCTYPE", "a web page, as of a download that was refused: get the file again"),
    (b"<!doctype", "a web page, as of a download that was refused: get the file again"),
    (b"<html", "a web page, as of a download that was refused: get the file again"),
    (b"<?xml", "XML, as of a download that was refused, or of OpenVINO: get the file again, or write a handler"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (b"GGUF", "a GGUF file, which llama.cpp serves"),
    (b"\x1f\x8b", "packed by gzip: gunzip it"),
    (b"\xfd7zXZ", "packed by xz: unxz it"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd: unzstd it"),
    (b"BZh", "packed by bzip2: bunzip2 it"),
    (b"7z\xbc\xaf", "packed by 7-Zip: unpack it"),
)
# Of an ONNX file: its version, and then who made it, or what is in it.
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x3a\x42]")
_TAR = slice(257, 262), b"ustar"
_AGAIN = "it was not copied to the end, or over another file: copy it again"
_SCRIPT = "make a TorchScript file of it, torch.jit.script(model.eval()).save(...), or write a handler that loads it"
_PROGRAM = f"which has numbers and no program: {_SCRIPT} (torchpar-model(5))"
# Of a pickle only this much is looked at: names of classes are in front of the weights.
_PICKLE_BYTES = 1 << 22
# What torch's own pickles of tensors name.
_TENSORS = tuple(
    f"{module} "
    for module in (
        "torch", "torch._utils", "torch.storage", "torch.serialization", "collections", "_codecs", "builtins",
        "__builtin__", "numpy", "numpy.core.multiarray", "numpy._core.multiarray",
    )  # fmt: skip
)


def refuse_other_kinds(path: str) -> None:
    """Says what it is where it is no model of the kind that its name says. Raises ModelError."""
    try:
        with open(path, "rb") as file:
            first = file.read(512)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}: the service's user must be able to read it") from None
    if not first.strip(b"\0"):
        size = os.path.getsize(path)
        raise ModelError(f"{path}: it is {'empty' if not size else 'zeros'}: copy it again")
    # An editor of Windows leaves a mark in front.
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    for begin, what in _BEGINS:
        if first.startswith(begin) or text.startswith(begin):
            raise ModelError(f"{path}: it is {what}")
    place, mark = _TAR
    if first[place] == mark:
        raise ModelError(f"{path}: it is packed by tar: unpack it")
    if path.endswith(".py"):
        _look_at_python(path)
        return
    if _ONNX.match(first):
        raise ModelError(f"{path}: it is an ONNX file: write a handler that loads it (torchpar-model(5))")
    _look_at_archive(path, first)
    if path.endswith((".pt", ".pt2")) and not first.startswith(b"PK\x03\x04"):
        raise ModelError(f"{path}: it is no archive, as torch writes them, {_beginning(first)}: copy it again")


def _beginning(first: bytes) -> str:
    try:
        line = first[:400].decode().strip().splitlines()[0]
    except (UnicodeDecodeError, IndexError):
        line = ""
    if line.isprintable() and len(line) > 3:
        return f"but text, which begins with {line[:60]!r}"
    return f"but something that begins with the bytes {first[:8].hex(' ')}"


def _look_at_archive(path: str, first: bytes) -> None:  # noqa: C901 - a branch for each thing that a file can be instead
    if first.startswith(b"\x80"):
        raise ModelError(f"{path}: {_pickled(_names_in_file(path), 'a pickle, as torch.save wrote before 1.6')}")
    if first[8:10] == b'{"':
        raise ModelError(f"{path}: it is a safetensors file, {_PROGRAM}")
    if not first.startswith(b"PK\x03\x04"):
        if zipfile.is_zipfile(path):
            raise ModelError(f"{path}: its beginning is damaged: {_AGAIN}")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            every = archive.namelist()
            inner = {name.partition("/")[2]: name for name in every}
            names: list[str] = []
            if "data.pkl" in inner:
                with archive.open(inner["data.pkl"]) as pickle:
                    names = _names(pickle.read(_PICKLE_BYTES))
    except zipfile.BadZipFile as error:
        if zipfile.is_zipfile(path):
            raise ModelError(f"{path}: it is damaged ({str(error).rstrip('.')}): {_AGAIN}") from None
        size = os.path.getsize(path)
        raise ModelError(
            f"{path}: the end of it is missing, it has {size} bytes: it was not copied, or not written, to the end"
        ) from None
    except (OSError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ModelError(f"{path}: it cannot be read: {error}") from None
    if "MANIFEST.json" in inner or any("MAR-INF/" in name for name in inner.values()):
        raise ModelError(f"{path}: it is a TorchServe archive: unpack it, and serve the model in it, or a handler")
    script = "constants.pkl" in inner or any(name.startswith("code/") for name in inner)
    package = any("aotinductor/" in name or name.endswith("exported_program.json") for name in inner.values())
    package = package or any(name.startswith("models/") and name.endswith(".json") for name in inner)
    if script and not path.endswith(".pt"):
        raise ModelError(f"{path}: it is a TorchScript file: call it .pt")
    if package and not script and not path.endswith(".pt2"):
        raise ModelError(f"{path}: it is of torch.export: call it .pt2")
    if any(name.startswith(".data/") and name.endswith("extern_modules") for name in inner):
        raise ModelError(f"{path}: it is of torch.package: write a handler that loads it (torchpar-model(5))")
    if "data.pkl" in inner and not script and not package:
        raise ModelError(f"{path}: {_pickled(names, 'what torch.save wrote')}")
    if not script and not package and path.endswith(".pt"):
        raise ModelError(f"{path}: it is an archive of something else; in it are {', '.join(sorted(every)[:3])}")
    if script or package:
        _check_sums(path)


def _check_sums(path: str) -> None:
    """Raises ModelError where a part is not what it was when it was written: torch does not look.

    As of a copy over an older file of the same size that was broken off.
    """
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if not part.CRC:
                continue  # written without
            try:
                with archive.open(part) as content:
                    while content.read(_PICKLE_BYTES):
                        pass
            except NotImplementedError:
                continue  # packed in a way that Python does not know
            except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
                raise ModelError(f"{path}: it is damaged ({error}): {_AGAIN}") from None


def _pickled(names: list[str], what: str) -> str:
    # What is pickled is named before what is in it.
    found = next((name.replace(" ", ".") for name in names if not name.startswith(_TENSORS)), None)
    if found is None:
        return f"it is {what}, a state_dict or a checkpoint, {_PROGRAM}"
    return f"it is {what}, a pickle of {found}, whose code is not in it: {_SCRIPT} (torchpar-model(5))"


def _names_in_file(path: str) -> list[str]:
    with open(path, "rb") as file:
        return _names(file.read(_PICKLE_BYTES))


def _names(pickle: bytes) -> list[str]:
    """Lists the classes and functions that a pickle names, "MODULE NAME" each, as far as it can be read."""
    found: list[str] = []
    start = 0
    # Before 1.6 several pickles follow each other.
    for _ in range(8):
        strings: list[str] = []
        end = start
        try:
            for opcode, argument, place in pickletools.genops(pickle[start:]):
                end = start + (place or 0) + 1
                if opcode.name == "GLOBAL":
                    found.append(str(argument))
                elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    found.append(" ".join(strings[-2:]))
                elif "UNICODE" in opcode.name:
                    strings.append(str(argument))
        except Exception:  # cut off, or no pickle behind the last: what was found so far is what can be told
            return found
        start = end
    return found


def _look_at_python(path: str) -> None:
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (SyntaxError, ValueError):
        return  # Python says where, when it runs it
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "TritonPythonModel":
            raise ModelError(
                f"{path}: it is a model for Triton's Python backend: put what its initialize() does into load(), and"
                " what its execute() does into predict(batch), see torchpar-model(5)"
            )


def words_for(reason: str) -> str:
    """Says what to do where torch does not load a file for this reason; "" where that is not known."""
    if "Unknown builtin op" in reason or "failed to resolve torch.ops" in reason:
        return "; the library of that operator is not loaded: write a handler that imports it before it loads the file"
    if "supported version" in reason or "schema version" in reason:
        return "; it was made with a newer torch: make it with this one, or give the service a Python= with that one"
    if "in pytree is not registered" in reason:
        return "; that class is its author's own: export it with tuples, lists and dictionaries instead"
    return ""

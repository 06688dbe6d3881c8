"""Files that are no models: what they are, whose they are, and what to do, before torch says it in its words."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.serve.models import mlp, save_script
from torchpar.serve.errors import ModelError
from torchpar.serve.models import files
from torchpar.serve.models.files import ModelFile, check_owner
from torchpar.serve.models.kinds import load_program


def refusal(path: Path) -> str:
    """What loading a file says."""
    with pytest.raises(ModelError) as error:
        load_program(ModelFile("m", "1", str(path), None))
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with some of its files changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_without_a_program_are_told_from_pickled_modules(tmp_path: Path, zipped: bool) -> None:
    """As torch.save writes them now, and as it did before."""
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    for what in (net.state_dict(), {"epoch": 3, "model": net.state_dict(), "optimizer": optimizer.state_dict()}):
        torch.save(what, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        assert "a state_dict or a checkpoint, which has numbers and no program" in refusal(tmp_path / "m.pt")
    torch.save(net, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    says = refusal(tmp_path / "m.pt")
    assert "a pickle of torch.nn.modules.container.Sequential" in says and "torch.jit.script" in says


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "Git LFS pointer.*git lfs pull"),
        ("m.pt2", b"/annex/objects/SHA256E-s3--12.pt\n", "git-annex pointer"),
        ("m.pt", b"<!DOCTYPE html><title>Sign in</title>", "a web page, as of a download"),
        ("m.pt", b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\r\noid sha256:12\r\n", "Git LFS pointer"),
        ("m.pt", b"\n <html>", "a web page"),
        ("m.pt", b"\x08\x07\x12\x07pytorch\x1a\x052.0.0:" + bytes(100), "an ONNX file: write a handler"),
        ("m.onnx", b"\x08\x0a\x3a\x07pytorch" + bytes(100), "an ONNX file: write a handler"),
        ("m.pt", b"m.pt".ljust(257, b"\0") + b"ustar  \0" + bytes(300), "packed by tar"),
        ("m.pt", b"Not Found", "no archive, as torch writes them, but text, which begins with 'Not Found'"),
        ("m.pt2", b'{"detail": "Not authenticated"}', "but text, which begins with '{\"detail\""),
        ("m.pt", b"\x01\x02\xff\xfe" * 20, "begins with the bytes 01 02 ff fe"),
        ("m.txt", b"hello", "not a model: .pt, .pt2, .py are"),
        ("m.pt", b"", "it is empty"),
        ("m.pt2", bytes(5000), "it is zeros"),
        ("m.pt", b"\x1f\x8b\x08\0", "gunzip"),
        ("m.pt", (64).to_bytes(8, "little") + b'{"weight":{"dtype":"F32"}}', "a safetensors file, which has numbers"),
        (
            "model.py",
            b"import triton_python_backend_utils\nclass TritonPythonModel:\n    def execute(self, requests): pass\n",
            r"Triton's Python backend: .*initialize\(\) .*load\(\).*predict\(batch\)",
        ),
    ],
)
def test_what_is_something_else_is_called_by_its_name(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    """And what to do is said."""
    (tmp_path / name).write_bytes(content)
    assert re.search(says, refusal(tmp_path / name))


def test_half_a_file_is_told(tmp_path: Path) -> None:
    """However much of it is there."""
    whole = save_script(mlp(), tmp_path / "whole.pt").read_bytes()
    for size in (40, len(whole) // 2, len(whole) - 30):
        (tmp_path / "m.pt").write_bytes(whole[:size])
        assert f"the end of it is missing, it has {size} bytes" in refusal(tmp_path / "m.pt")


def test_a_file_that_was_half_overwritten_is_told(tmp_path: Path) -> None:
    """Its parts are in the same places, and torch would load half of each."""
    old, new = (save_script(mlp(seed, 64), tmp_path / f"{seed}/m.pt").read_bytes() for seed in (1, 2))
    assert len(old) == len(new)
    half = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b) + 100
    (tmp_path / "m.pt").write_bytes(new[:half] + old[half:])
    says = refusal(tmp_path / "m.pt")
    assert re.search(r"it is damaged \(Bad CRC-32 for file '.*'\): it was not copied to the end, or over", says)
    (tmp_path / "m.pt").write_bytes(bytes(64) + old[64:])
    assert "its beginning is damaged" in refusal(tmp_path / "m.pt")
    middle = old.index(b"PK\x01\x02")
    (tmp_path / "m.pt").write_bytes(old[:middle] + bytes(4) + old[middle + 4 :])
    assert "it is damaged (Bad magic number" in refusal(tmp_path / "m.pt")


def test_a_model_by_another_name_is_told_the_right_one(tmp_path: Path) -> None:
    """As others call them."""
    script = save_script(mlp(), tmp_path / "m.pt")
    for name in ("m.pth", "m.bin", "m.torchscript", "m"):
        assert "it is a TorchScript file: call it .pt" in refusal(Path(shutil.copy(script, tmp_path / name)))
    with zipfile.ZipFile(tmp_path / "in.pt", "w") as archive:
        archive.write(script, "m.pt")
    assert "an archive of something else; in it are m.pt" in refusal(tmp_path / "in.pt")


@pytest.mark.parametrize("text", ['{"inputs": [{"name": "gr\u00f6\u00dfe"}]}'.encode("latin-1"), "{}".encode("utf-16")])
def test_a_description_in_another_code_is_told(tmp_path: Path, text: bytes) -> None:
    """A mark in front of UTF-8 is none."""
    path = save_script(mlp(), tmp_path / "m.pt")
    (tmp_path / "m.json").write_bytes(text)
    with pytest.raises(ModelError, match="m.json: it is not UTF-8: save it as that"):
        load_program(ModelFile("m", "1", str(path), str(tmp_path / "m.json")))
    (tmp_path / "m.json").write_bytes(b"\xef\xbb\xbf{}")
    load_program(ModelFile("m", "1", str(path), str(tmp_path / "m.json")))


def test_a_newer_archive_and_a_missing_library_are_told(tmp_path: Path) -> None:
    """With the name of the operator."""
    path = save_script(torch.nn.Sequential(torch.nn.ReLU()), tmp_path / "whole.pt")
    newer = rewritten(path, tmp_path / "m.pt", lambda name, data: b"99\n" if name.endswith("/version") else data)
    assert "it was made with a newer torch" in refusal(newer)

    def nms(name: str, data: bytes) -> bytes:
        return data.replace(b"return (_0).forward(input, )", b"return ops.torchvision.nms(input, input, 0.5)")

    says = refusal(rewritten(path, tmp_path / "m.pt", nms))
    assert "torchvision::nms" in says and "the library of that operator is not loaded" in says


class Named(torch.nn.Module):
    """Returns an OrderedDict."""

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return OrderedDict(y=x)


@pytest.mark.skipif(not hasattr(torch, "export"), reason="this torch has no torch.export")
def test_the_same_of_an_exported_program(tmp_path: Path) -> None:
    """Of which torch tells the reason in its log alone."""
    whole = tmp_path / "whole.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 3), (torch.ones(1, 3),)), str(whole))

    def nms(name: str, data: bytes) -> bytes:
        return data.replace(b"torch.ops.aten.linear.default", b"torch.ops.torchvision.nms.default")

    says = refusal(rewritten(whole, tmp_path / "m.pt2", nms))
    assert "torch.ops.torchvision.nms" in says and "the library of that operator is not loaded" in says

    def newer(name: str, data: bytes) -> bytes:
        return data.replace(b'"schema_version": {"major": ', b'"schema_version": {"major": 99')

    assert "it was made with a newer torch" in refusal(rewritten(whole, tmp_path / "m.pt2", newer))

    def classes(name: str, data: bytes) -> bytes:
        return data.replace(b"collections.OrderedDict", b"transformers.ModelOutput")

    named = tmp_path / "named.pt2"
    torch.export.save(torch.export.export(Named(), (torch.ones(1, 3),)), str(named))
    assert "that class is its author's own" in refusal(rewritten(named, tmp_path / "m.pt2", classes))
    assert "the end of it is missing" in refusal(shorter(whole, tmp_path / "m.pt2"))
    assert "it is of torch.export: call it .pt2" in refusal(Path(shutil.copy(whole, tmp_path / "m.pt")))
    script = save_script(mlp(), tmp_path / "m.pt")
    assert "it is a TorchScript file: call it .pt" in refusal(Path(shutil.copy(script, tmp_path / "m.pt2")))


def shorter(source: Path, target: Path) -> Path:
    """Half of it."""
    target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    return target


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")
def test_a_closed_directory_is_named_with_its_owner() -> None:
    """Not the file, which nobody can see from outside."""
    # Below what every user may enter, unlike pytest's own.
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        home = Path(top, "home")
        path = save_script(mlp(), home / "models/m.pt")
        os.chown(home, 12345, 0)
        home.chmod(0o700)
        os.seteuid(23456)
        try:
            with pytest.raises(ModelError) as error:
                check_owner(str(path))
        finally:
            os.seteuid(0)
    says = str(error.value)
    assert f"23456, the service's user, may not enter {home}, which has mode 0700 and belongs to user 12345" in says
    assert "below /srv" in says and "User=" in says


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away, which only root may")
def test_an_owner_that_the_namespace_hides_is_not_called_by_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PrivateUsers=yes all other users look like 65534."""
    path = save_script(mlp(), tmp_path / "m.pt")
    os.chown(path, 65534, 0)
    with pytest.raises(ModelError, match="belongs to user nobody; .*chown it to root"):
        check_owner(str(path))
    monkeypatch.setattr(files, "_sees_all_users", lambda: False)
    with pytest.raises(ModelError, match="belongs to another user .ls -l shows whose it is; .*User="):
        check_owner(str(path))

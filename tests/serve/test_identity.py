"""What a model is made of: all processes of a service serve the same, whatever lies on disk by now."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.engines import Answer, request
from tests.serve.models import Affine, described, save_script
from torchpar.serve.engine.engine import Engine
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.errors import ModelError, OtherFilesError
from torchpar.serve.models.identity import Serves, changed, differs, own_files, same, shortened
from torchpar.serve.models.opened import _OTHERS, Opened
from torchpar.serve.runners import processes

pytestmark = pytest.mark.subprocess

HANDLER = """
import json, os, tempfile
import torch
from beside_{name} import SHIFT

INPUTS = [("x", "FP32", (-1, 3))]

def load():
    global factor
    with open("{weights}") as file:
        factor = json.load(file)
    with tempfile.NamedTemporaryFile("w+") as own:
        own.write("1")
        own.flush()
        open(own.name).read()
    open("{log}", "w").close()

def predict(batch):
    return {{"y": batch["x"] * factor + SHIFT}}
"""


@pytest.fixture(autouse=True)
def _variables_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a login name folders that other processes read all the time, as PYENV_ROOT= does."""
    for name, value in list(os.environ.items()):
        if "/" in value and not _OTHERS.fullmatch(name):
            monkeypatch.delenv(name)


def _handler(folder: Path, name: str) -> Path:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/weights.json").write_text("2.0")
    (folder / f"beside_{name}.py").write_text("SHIFT = 1.0")
    text = HANDLER.format(name=name, weights=folder / "elsewhere/weights.json", log=folder / "log")
    (folder / "m.py").write_text(text)
    return folder / "m.py"


def _start(path: Path, like: Serves | None = None, **settings: Any) -> Serves:
    async def run() -> Serves:
        engine = Engine(EngineOptions("m", model=str(path), **settings))
        await engine.start(like)
        try:
            return engine.serves()
        finally:
            await engine.stop(1)

    return asyncio.run(run())


def test_files_are_others_when_they_are_replaced_rewritten_or_gone(tmp_path: Path) -> None:
    """A description that comes is a change too."""
    path = tmp_path / "m.pt"
    path.write_text("one")
    files = own_files(str(path))
    assert not changed(files)
    (tmp_path / "m.json").write_text("{}")
    assert changed(files) == str(tmp_path / "m.json")
    (tmp_path / "m.json").unlink()
    os.utime(path, ns=(0, 0))
    assert changed(files) == str(path)
    files = own_files(str(path))
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").rename(path)
    assert changed(files) == str(path)
    path.unlink()
    assert changed(files) == str(path)


def test_processes_are_the_same_where_the_files_are_that_both_have() -> None:
    """What one of them read for itself does not count."""
    one = {"m/1": shortened({"/a": (1,), "/b": None})}
    assert same(one, {"m/1": shortened({"/a": (1,), "/c": (2,)})})
    assert not same(one, {"m/1": shortened({"/a": (2,)})}) and not same(one, {"m/1": shortened({"/b": (2,)})})
    assert not same(one, {}) and not differs({}, one["m/1"])


def test_what_python_reads_is_of_the_model_but_for_what_it_wrote_or_is_the_interpreters(tmp_path: Path) -> None:
    """Devices, and what was put away again, are not either."""
    (tmp_path / "read").write_text("x")
    with Opened() as opened:
        (tmp_path / "read").read_text()
        (tmp_path / "written").write_text("x")
        (tmp_path / "written").read_text()
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        Path("/proc/self/stat").read_text()
        Path("/dev/null").read_bytes()
        Path(os.__file__).read_bytes()
        with pytest.raises(ValueError, match="null"):
            open("\0")
    (tmp_path / "later").write_text("x")
    (tmp_path / "later").read_text()
    assert list(opened.files) == [str(tmp_path / "read")]


def _read_natively(path: str) -> None:
    """As a library does: Python hears nothing of it."""
    libc = ctypes.CDLL(None)
    libc.close(libc.open(os.fsencode(path), os.O_RDONLY))


def test_what_libraries_read_is_of_the_model(tmp_path: Path) -> None:
    """Beside the handler, and where its text, its settings or the environment say; not what they write."""
    handler, far = tmp_path / "own/h.py", tmp_path / "far"
    names = [
        tmp_path / "own/deep/a.bin", far / "text/b c.pt", far / "settings/x/d.onnx", far / "environment/e.gguf",
        far / "links/f.bin", far / "unseen/g.bin", tmp_path / "own/h.log", tmp_path / "own/cache.bin",
        far / "mapped/i.bin", far / "open/j.bin",
    ]  # fmt: skip
    for path in names:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(8))
    (far / "link").symlink_to(far / "links")
    (tmp_path / "own/f").symlink_to(far / "links/f.bin")
    handler.write_text(f"PLACE = '{far}/text/b c.pt'")
    (tmp_path / "own/settings.json").write_text('{"folder": "../far/settings"}')
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WEIGHTS", f"{far}/environment/e.gguf:{far}/none")
        with Opened(str(handler)) as opened:
            (tmp_path / "own/settings.json").read_text()
            for path in names[:4] + names[5:8]:
                _read_natively(str(path))
            _read_natively(str(tmp_path / "own/f"))
            with (tmp_path / "own/cache.bin").open("wb"):
                pass
            kept = torch.from_file(str(far / "mapped/i.bin"), size=2)
            number = ctypes.CDLL(None).open(os.fsencode(far / "open/j.bin"), os.O_RDONLY)
        os.close(number)
        del kept
    found = {os.path.relpath(path, tmp_path) for path in opened.files}
    assert found == {
        "own/settings.json", "own/deep/a.bin", "far/text/b c.pt", "far/settings/x/d.onnx", "far/environment/e.gguf",
        "own/f", "far/links/f.bin", "far/mapped/i.bin", "far/open/j.bin",
    }  # fmt: skip


def test_what_is_replaced_after_a_library_has_read_it_is_not_what_was_read(tmp_path: Path) -> None:
    """But where the code itself replaces it, as a cache."""
    for name in ("h.py", "a.bin", "b.bin", "c.bin", "new"):
        (tmp_path / name).write_text("")
    with Opened(str(tmp_path / "h.py")) as opened:
        subprocess.run(["mv", tmp_path / "new", tmp_path / "c.bin"], check=True)
        for name in ("a.bin", "b.bin", "c.bin"):
            _read_natively(str(tmp_path / name))
        subprocess.run(["sh", "-c", "echo > new; mv new a.bin"], cwd=tmp_path, check=True)
        (tmp_path / "mine").write_text("")
        (tmp_path / "mine").rename(tmp_path / "b.bin")
    assert set(opened.files) == {str(tmp_path / "a.bin"), str(tmp_path / "c.bin")}
    assert changed(opened.files) == str(tmp_path / "a.bin")


def test_programs_and_libraries_are_no_models_though_a_folder_above_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes start all the time."""
    (tmp_path / "h.py").write_text("")
    monkeypatch.setenv("SOMETHING", "/usr")
    with Opened(str(tmp_path / "h.py")) as opened:
        subprocess.run(["sh", "-c", "ls /usr/share >/dev/null"], check=True)
    assert not opened.files


def test_a_handler_without_a_kernel_that_tells_is_what_python_reads(tmp_path: Path) -> None:
    """As where all of the user's watches are taken."""
    (tmp_path / "h.py").write_text("")
    (tmp_path / "a.bin").write_text("")
    opened = Opened(str(tmp_path / "h.py"))
    opened._folders.seen()
    with opened:
        (tmp_path / "a.bin").read_text()
    assert list(opened.files) == [str(tmp_path / "a.bin")]


NATIVE = """
import json, os, torch
INPUTS = [("x", "FP32", (-1, 3))]
HERE = os.path.dirname(os.path.abspath(__file__))
def load():
    global net
    with open(os.path.join(HERE, "settings.json")) as file:
        name = json.load(file)["weights"]
    net = torch.jit.load(os.path.join(HERE, name + ".pt"))
def predict(batch):
    return {"y": net(batch["x"])}
"""


def test_weights_that_torch_itself_opens_are_of_the_model(tmp_path: Path) -> None:
    """Whose name stands nowhere as a whole."""
    (tmp_path / "m.py").write_text(NATIVE)
    (tmp_path / "settings.json").write_text('{"weights": "net"}')
    save_script(Affine(1.0), tmp_path / "net.pt")
    serves = _start(tmp_path / "m.py")
    assert same(_start(tmp_path / "m.py", serves), serves)
    save_script(Affine(2.0), tmp_path / "new.pt").rename(tmp_path / "net.pt")
    with pytest.raises(OtherFilesError, match="net.pt"):
        _start(tmp_path / "m.py", serves)


@pytest.mark.parametrize("what", ["m.py", "beside_{}.py", "elsewhere/weights.json", "m.json"])
def test_a_handler_is_all_that_it_read(tmp_path: Path, what: str) -> None:
    """Modules beside it, weights elsewhere."""
    name = f"h{abs(hash(what))}"
    handler = _handler(tmp_path, name)
    serves = _start(handler)
    assert same(_start(handler, serves), serves)
    path = tmp_path / what.format(name)
    text = path.read_text() if path.exists() else "{}"
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)
    with pytest.raises(OtherFilesError, match=str(path)):
        _start(handler, serves)


def test_only_versions_that_the_others_serve_are_loaded(tmp_path: Path) -> None:
    """One that came meanwhile waits for a reload; where one is gone, this process cannot serve what they do."""
    save_script(Affine(), tmp_path / "a/1/model.pt", described(-1, 3))
    serves = _start(tmp_path)
    save_script(Affine(), tmp_path / "a/2/model.pt", described(-1, 3))
    assert set(serves) == set(_start(tmp_path, serves)) == {"a/1"}
    both = _start(tmp_path)
    assert set(both) == {"a/1", "a/2"} and _start(tmp_path, {}) == {}
    (tmp_path / "a/1/model.pt").unlink()
    with pytest.raises(OtherFilesError, match="a/1, which is not there any more"):
        _start(tmp_path, both)


def test_a_file_that_changes_while_it_is_loaded_is_not_served(tmp_path: Path) -> None:
    """Half of it may be of another model."""
    path = _handler(tmp_path, "changing")
    text = path.read_text()
    path.write_text(text.replace("def load():", f"def load():\n    os.utime({str(path)!r})"))
    with pytest.raises(ModelError, match="has changed while it was loaded"):
        _start(path)


def test_a_process_whose_workers_would_load_other_files_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its fork server was killed; with the same files it goes on."""
    path = _handler(tmp_path, "ending")
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        raise OSError("ended")

    async def run() -> None:
        engine = Engine(EngineOptions("m", model=str(path)))
        await engine.start()
        served = engine._repository.get("m").runner
        assert isinstance(served, processes.ProcessRunner)
        x = torch.ones(1, 3)
        for status in (200, 503):
            (worker,) = served.pids()
            assert worker and served._process
            served._process.kill()
            os.kill(worker, signal.SIGKILL)
            assert await Answer(engine, request(x)).status() == 503
            if status == 200:
                until = time.monotonic() + 300
                while served.pids() == [None] and time.monotonic() < until:
                    await asyncio.sleep(0.05)
                assert float((await Answer(engine, request(x)).values())[0][0, 0]) == 3.0 and not ended
                monkeypatch.setattr(processes.os, "_exit", end)
                os.utime(path)
        until = time.monotonic() + 300
        while not ended and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await engine.stop(1)

    asyncio.run(run())
    assert ended == [1]

"""Several models and versions, and exchanging them while requests come."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.serve.engines import Answer, ask, request, serving
from tests.serve.models import Affine, Slow, described, save_script
from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.models.files import ModelFile, check_owner
from torchpar.serve.models.kinds import load_program

ROWS = described(-1, 3)
X = torch.tensor([[1.0, 2.0, 3.0]])


def test_a_directory_is_models_and_versions(tmp_path: Path, journal: Callable[[], str]) -> None:
    """The latest is the highest number; what is no model is named in the log or the index."""
    save_script(Affine(1), tmp_path / "a/2/model.pt", ROWS)
    save_script(Affine(2), tmp_path / "a/10/model.pt", ROWS)
    save_script(Affine(3), tmp_path / "b/1/model.pt", ROWS)
    (tmp_path / "b/2").mkdir()
    (tmp_path / "c/1").mkdir(parents=True)
    (tmp_path / "c/1/model.pt").write_bytes(b"no model")
    (tmp_path / "notes").mkdir()
    (tmp_path / "a/config.pbtxt").write_text('platform: "pytorch_libtorch"')

    async def run() -> None:
        async with serving(tmp_path) as engine:
            for model, version, k in (("a", "", 2), ("a", "2", 1), ("a", "10", 2), ("b", "1", 3)):
                (y,) = await Answer(engine, request(X, model=model, version=version)).values()
                assert torch.equal(y, 2 * X + k)
            assert engine.metadata("a").versions == ("2", "10")
            assert [(i.name, i.version, i.state) for i in engine.index()] == [
                ("a", "2", "READY"), ("a", "10", "READY"), ("b", "1", "READY"), ("c", "1", "UNAVAILABLE"),
            ]  # fmt: skip
            assert "c/1/model.pt: it is no archive" in engine.index()[3].reason
            assert (engine.ready("a"), engine.ready("a", "3"), engine.ready("c")) == (True, False, False)
            assert [counted[:2] for counted in engine.statistics()] == [("a", "2"), ("a", "10"), ("b", "1")]
            for model, version, status in (("a", "3", 404), ("d", "", 404), ("c", "", 503)):
                with pytest.raises(ServeError) as refused:
                    Answer(engine, request(X, model=model, version=version))
                assert refused.value.status == status

    asyncio.run(run())
    said = journal()
    assert "b/2: no model.pt, model.pt2 or model.py in it" in said
    assert "notes: no version in it, such as notes/1/model.pt" in said
    assert "a/config.pbtxt: it is Triton's, and is not read here: " in said


def test_what_was_unloaded_leaves_the_memory(tmp_path: Path) -> None:
    """Though the thread that computed with it last has had nothing to do since."""
    save_script(Affine(), tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            await Answer(engine, request(X)).values()
            old = weakref.ref(engine._repository.get("m").runner)
            await engine.unload("m")
            for _ in range(100):
                gc.collect()
                if old() is None:
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("something keeps it")

    asyncio.run(run())


def test_a_file_that_is_wrong_is_told_and_the_others_are_served(tmp_path: Path) -> None:
    """At the start of a service of one model it is a ModelError."""
    save_script(Affine(), tmp_path / "a/1/model.pt", ROWS)
    save_script(Affine(), tmp_path / "b/1/model.pt", ROWS)
    (tmp_path / "b/1/model.json").write_bytes(b'{"inputs": "\xff"}')

    async def run() -> None:
        async with serving(tmp_path) as engine:
            assert [(i.name, i.state) for i in engine.index()] == [("a", "READY"), ("b", "UNAVAILABLE")]
            with pytest.raises(ServeError, match="b/1/model.json: it is not UTF-8") as refused:
                await engine.load("b")
            assert refused.value.status == 400

    async def alone() -> None:
        async with serving(tmp_path / "b/1/model.pt"):
            pass

    asyncio.run(run())
    with pytest.raises(ModelError, match="b/1/model.json: it is not UTF-8"):
        asyncio.run(alone())


def test_models_come_and_go_as_asked(tmp_path: Path) -> None:
    """unload answers what it has; load brings the model back; what is gone from the disk is unloaded."""
    save_script(Affine(1), tmp_path / "a/1/model.pt", ROWS)
    save_script(Affine(2), tmp_path / "b/1/model.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path) as engine:
            last = Answer(engine, request(X, model="a"))
            await engine.unload("a")
            assert torch.equal((await last.values())[0], 2 * X + 1)
            assert (engine.index()[0].state, engine.index()[0].reason) == ("UNAVAILABLE", "unloaded")
            with pytest.raises(ServeError, match="not served: unloaded") as refused:
                Answer(engine, request(X, model="a"))
            assert refused.value.status == 503
            await engine.load("a")
            assert engine.index()[0].state == "READY"
            save_script(Affine(7), tmp_path / "a/2/model.pt", ROWS)
            shutil.rmtree(tmp_path / "a/1")
            await engine.reload()
            assert torch.equal((await Answer(engine, request(X, model="a")).values())[0], 2 * X + 7)
            assert [(i.name, i.version, i.state) for i in engine.index() if i.state == "READY"] == [
                ("a", "2", "READY"), ("b", "1", "READY"),
            ]  # fmt: skip
            for call in (engine.load, engine.unload):
                with pytest.raises(ServeError) as unknown:
                    await call("nothing")
                assert unknown.value.status == 404

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_again_goes_on_as_it_was(tmp_path: Path) -> None:
    """A file that is half written when reload comes must not end the service."""
    save_script(Affine(1), tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:200])
            with pytest.raises(ServeError, match="the end of it is missing") as refused:
                await engine.reload()
            assert refused.value.status == 400 and engine.ready("m")
            assert torch.equal((await Answer(engine, request(X)).values())[0], 2 * X + 1)

    asyncio.run(run())


def test_reload_under_load_loses_no_request(tmp_path: Path) -> None:
    """Every answer is the old model's or the new one's, and after the reload the new one's."""
    save_script(Affine(0), tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt", workers=2) as engine:
            reloads = 0
            answers: list[Answer] = []

            async def clients() -> None:
                while reloads < 5:
                    answers.extend(ask(engine, [request(X)] * 4))
                    await asyncio.sleep(0.001)

            asking = asyncio.ensure_future(clients())
            for k in range(1, 6):
                save_script(Affine(float(k)), tmp_path / "new.pt", ROWS)
                os.replace(tmp_path / "new.pt", tmp_path / "m.pt")
                await engine.reload()
                assert torch.equal((await Answer(engine, request(X)).values())[0], 2 * X + k)
                reloads += 1
            await asking
            seen = [float((await answer.values())[0][0, 0]) - 2 for answer in answers]
            assert seen == sorted(seen) and set(seen) <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
            assert engine.statistics("m")[0][2].success[0] == len(answers) + 5

    asyncio.run(run())


def test_a_slow_model_does_not_keep_others_from_their_turn(tmp_path: Path) -> None:
    """Models take turns on the workers, however much waits for one of them."""
    save_script(Slow(), tmp_path / "slow/1/model.pt", described(-1, 1, max_batch=1))
    save_script(Affine(), tmp_path / "quick/1/model.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path) as engine:
            slow = ask(engine, [request(torch.full((1, 1), 100.0), model="slow")] * 20)
            quick = Answer(engine, request(X, model="quick"))
            await quick.values()
            assert not slow[-1]._future.done()
            await slow[-1].values()

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away, which only root may")
def test_a_file_of_another_user_is_no_model(tmp_path: Path) -> None:
    """A model is a program, and would run as the service's user."""
    path = save_script(Affine(), tmp_path / "m.pt", ROWS)
    os.chown(path, 12345, 0)
    with pytest.raises(ModelError, match="belongs to user 12345; .*chown"):
        asyncio.run(_start(path))


@pytest.mark.parametrize("what", ["the file", "its directory", "its description"])
def test_what_everybody_may_write_to_is_no_model(tmp_path: Path, what: str) -> None:
    """Nor a file in a directory where everybody could put another in its place."""
    path = save_script(Affine(), tmp_path / "models/m.pt", ROWS)
    path.with_suffix(".json").write_text("{}")
    loose = {"the file": path, "its directory": path.parent, "its description": path.with_suffix(".json")}[what]
    loose.chmod(loose.stat().st_mode | 0o002)
    with pytest.raises(ModelError, match="everybody may .*chmod o-w"):
        asyncio.run(_start(path))


def test_a_handler_beside_which_everybody_may_write_is_no_model(tmp_path: Path) -> None:
    """In a folder like /tmp nobody can replace it; but anybody can put a module there that it imports."""
    path = save_script(Affine(), tmp_path / "open/m.pt", ROWS)
    handler = path.with_name("h.py")
    handler.write_text("raise SystemExit('ran')\n")
    path.parent.chmod(0o1777)
    check_owner(str(path))
    own = tmp_path / "own"
    own.mkdir()
    (own / "h.py").symlink_to(handler)
    for named in (handler, own / "h.py"):
        with pytest.raises(ModelError, match="everybody may replace it, .*chmod o-w"):
            check_owner(str(named))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "m.json: not JSON"),
        ("[]", "m.json: an object is expected"),
        ('{"input": []}', "unknown key 'input'; known: inputs, outputs, max_batch, example, optimize"),
        ('{"inputs": [{"name": "x", "datatype": "FLOAT", "shape": [-1]}]}', r"inputs\[0\]: datatype 'FLOAT'"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}', r"inputs\[0\]: shape: a list of sizes"),
        ('{"inputs": {}}', "inputs: a list is expected"),
        ('{"max_batch": true}', "max_batch: a number of rows"),
        ('{"optimize": 1}', "optimize: true or false is expected"),
        ('{"inputs": [' + ", ".join(['{"name": "x", "datatype": "FP32", "shape": [-1]}'] * 2) + "]}", "stands there"),
    ],
)
def test_a_description_that_is_wrong_is_told_where(tmp_path: Path, text: str, says: str) -> None:
    """File, key and what is expected."""
    path = save_script(Affine(), tmp_path / "m.pt")
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ModelError, match=says):
        asyncio.run(_start(path))


async def _start(path: Path) -> None:
    async with serving(path):
        pass


def test_torchscript_is_not_fused_for_cpus(tmp_path: Path) -> None:
    """Whatever this torch does by itself: not every build's code can be trusted."""
    torch._C._jit_override_can_fuse_on_cpu(True)
    save_script(Affine(), tmp_path / "m.pt", described(-1, 3))
    load_program(ModelFile("m", "1", str(tmp_path / "m.pt"), None))
    assert torch._C._jit_can_fuse_on_cpu() is False

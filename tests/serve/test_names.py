"""Inputs and outputs by name: arguments, keys of dictionaries, keywords; what does not fit is refused in words."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Optional

import pytest
import torch

from tests.serve.engines import Answer, request, serving
from tests.serve.models import described, save_script
from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.protocol.triton import model_config

X = torch.tensor([[1.0, 2.0, 3.0]])
ONES = torch.ones(1, 3)
EXPORTS = pytest.mark.skipif(not hasattr(torch, "export"), reason="this torch has no torch.export")


class Difference(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b


class Optionals(torch.nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        k: float = 2.0,
        bias: Optional[torch.Tensor] = None,  # noqa: UP045 - TorchScript of torch 1.13 knows no other form
        more: Optional[torch.Tensor] = None,  # noqa: UP045
    ) -> torch.Tensor:
        y = x * k
        if bias is not None:
            y = y + bias
        if more is not None:
            y = y + 100 * more
        return y


class Keys(torch.nn.Module):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": batch["a"] + batch["b"], "difference": batch["a"] - batch["b"]}


class Nested(torch.nn.Module):
    def forward(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, Optional[torch.Tensor]], dict[str, torch.Tensor]]:  # noqa: UP045
        return x + 1, (x + 2, None), {"tail": x + 3}


class Images(torch.nn.Module):
    def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
        return images[0]


class Defaults(torch.nn.Module):
    def forward(
        self,
        ids: Optional[torch.Tensor] = None,  # noqa: UP045
        mask: Optional[torch.Tensor] = None,  # noqa: UP045
    ) -> torch.Tensor:
        assert ids is not None
        return ids


class Nothing(torch.nn.Module):
    def forward(self) -> torch.Tensor:
        return torch.ones(1)


class Number(torch.nn.Module):
    def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
        return x * k


def answers(path: Path, asked: Any) -> dict[str, list[list[float]]]:
    """The outputs of one request by name."""

    async def run() -> dict[str, list[list[float]]]:
        async with serving(path) as engine:
            answer = Answer(engine, asked)
            values = await answer.values()
            names = [tensor.name for tensor in (await answer.get()).outputs]  # type: ignore[union-attr]
            declared = [spec.name for spec in engine.metadata("m").outputs]
            assert not declared or declared == names
            return {name: value.tolist() for name, value in zip(names, values, strict=True)}

    return asyncio.run(run())


def refused(path: Path) -> str:
    """What the start says."""

    async def run() -> None:
        async with serving(path):
            pass

    with pytest.raises(ModelError) as error:
        asyncio.run(run())
    return str(error.value)


@pytest.mark.parametrize("names", ["a b", "b a", "INPUT__0 INPUT__1", "INPUT__1 INPUT__0", "left__0 right__1"])
def test_inputs_are_bound_by_name_or_by_number(tmp_path: Path, names: str) -> None:
    """In whichever order the description has them, and the request."""
    path = save_script(Difference(), tmp_path / "m.pt", described(-1, 3, names=names))
    first, second = names.split()
    if first[-1] in "b1" and first not in ("left__0",):
        first, second = second, first
    for asked in (request(X, ONES, names=f"{first} {second}"), request(ONES, X, names=f"{second} {first}")):
        assert answers(path, asked) == {"OUTPUT__0": [[0.0, 1.0, 2.0]]}


@pytest.mark.parametrize("names", ["a c", "c b", "a", "a b c", "INPUT__0 INPUT__2", "INPUT__0 b", "INPUT__0"])
def test_inputs_that_are_not_the_arguments_are_refused_with_both_lists(tmp_path: Path, names: str) -> None:
    """A guess would be a wrong answer."""
    path = save_script(Difference(), tmp_path / "m.pt", described(-1, 3, names=names))
    says = refused(path)
    assert f"described are the inputs {names.replace(' ', ', ')}; the program takes a, b" in says


def test_the_only_input_may_have_any_name(tmp_path: Path) -> None:
    """As nothing else can be meant."""
    path = save_script(torch.nn.Sequential(torch.nn.ReLU()), tmp_path / "m.pt", described(-1, 3, names="features"))
    assert answers(path, request(X, names="features")) == {"OUTPUT__0": X.tolist()}


def test_arguments_with_defaults_may_be_left_out(tmp_path: Path) -> None:
    """Also between two that are not."""
    for names, values, expected in (
        ("x", [X], [2.0, 4.0, 6.0]),
        ("x bias", [X, ONES], [3.0, 5.0, 7.0]),
        ("more x", [ONES, X], [102.0, 104.0, 106.0]),
    ):
        path = save_script(Optionals(), tmp_path / "m.pt", described(-1, 3, names=names))
        assert answers(path, request(*values, names=names)) == {"OUTPUT__0": [expected]}


def test_the_inputs_of_a_dictionary_are_its_keys(tmp_path: Path) -> None:
    """And the outputs, which the description may have in another order."""
    more = {"outputs": [{"name": n, "datatype": "FP32", "shape": [-1, 3]} for n in ("difference", "sum")]}
    for extra in ({}, more):
        path = save_script(Keys(), tmp_path / "m.pt", described(-1, 3, names="b a", **extra))
        got = answers(path, request(X, ONES, names="a b"))
        assert got == {"sum": [[2.0, 3.0, 4.0]], "difference": [[0.0, 1.0, 2.0]]}


class SomeKeys(torch.nn.Module):
    """One key must be there, one may be, and one it makes itself."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        batch["twice"] = 2 * batch["image"]
        y = batch["twice"]
        if "mask" in batch:
            y = y * batch["mask"]
        return y


class AllKeys(torch.nn.Module):
    """Whatever is there is added up; one key must be."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        y = batch["image"]
        for key in batch.keys():
            y = y + batch[key]
        return y


class OtherKeys(torch.nn.Module):
    """It goes on with one of two dictionaries."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        other = {"image": batch["image"]} if int(batch["image"].size(0)) > 1000 else batch
        return other["image"] + other["depth"]


@pytest.mark.parametrize("names", ["pixels mask", "INPUT__0 INPUT__1", "mask", "image masks", "image mask depth"])
def test_keys_that_a_program_does_not_look_up_are_refused_with_both_lists(tmp_path: Path, names: str) -> None:
    """No number stands for a key."""
    says = refused(save_script(SomeKeys(), tmp_path / "m.pt", described(-1, 3, names=names)))
    assert f"described are the inputs {names.replace(' ', ', ')}; the program takes image, mask" in says
    assert "by number" not in says


def test_keys_that_need_not_be_there_may_be_left_out(tmp_path: Path) -> None:
    """And where a program walks through the dictionary, others may be there."""
    for module, names, values, y in (
        (SomeKeys(), "image", [X], 2 * X),
        (SomeKeys(), "mask image", [ONES * 3, X], 6 * X),
        (Keys(), "b a", [ONES, ONES], None),
        (AllKeys(), "depth image", [ONES, X], 2 * X + 1),
        (OtherKeys(), "depth image", [ONES, X], X + 1),
    ):
        path = save_script(module, tmp_path / "m.pt", described(-1, 3, names=names))
        got = answers(path, request(*values, names=names))
        assert y is None or got == {"OUTPUT__0": y.tolist()}
    assert "and image must be there" in refused(save_script(AllKeys(), path, described(-1, 3, names="depth other")))


def test_tuples_in_tuples_are_outputs_one_after_another(tmp_path: Path) -> None:
    """None is left out, and a number counts it all the same."""
    path = save_script(Nested(), tmp_path / "m.pt", described(-1, 3))
    plain = {"OUTPUT__0": [[2.0, 3.0, 4.0]], "OUTPUT__1": [[3.0, 4.0, 5.0]], "tail": [[4.0, 5.0, 6.0]]}
    assert answers(path, request(X)) == plain
    outputs = [{"name": n, "datatype": "FP32", "shape": [-1, 3]} for n in ("tail", "OUTPUT__1")]
    path = save_script(Nested(), tmp_path / "m.pt", described(-1, 3, outputs=outputs))
    assert answers(path, request(X)) == {"tail": plain["tail"], "OUTPUT__1": plain["OUTPUT__1"]}


@pytest.mark.parametrize(
    ("module", "names", "says"),
    [
        (Images(), "images", r"argument 'images' is of type List\[Tensor\], which no request can carry.*handler"),
        (Number(), "x", "argument 'k' is of type int, which no request can carry"),
        (Defaults(), "", r"has a default for each of its arguments.*: describe the inputs, of ids, mask"),
        (Nothing(), "", "it takes no input"),
        (Keys(), "", "it takes a dictionary with the keys a, b: describe its keys"),
    ],
)
def test_arguments_that_no_request_can_carry_are_told(
    tmp_path: Path, module: torch.nn.Module, names: str, says: str
) -> None:
    """With their name and type."""
    path = save_script(module, tmp_path / "m.pt", described(-1, 3, names=names) if names else None)


    assert re.search(says, refused(path))


class Deep(torch.nn.Module):
    def forward(self, x: Any, parts: Any, k: Any = None, *, mask: Any = None) -> Any:
        return {"logits": x + parts["a"] * mask, "cache": None, "state": (x * 2, x * 3)}, x + 1


def export_deep(path: Path, description: object = None) -> Path:
    """Names within names, None, keywords; one to eight rows of four to twenty numbers."""
    rows, size = torch.export.Dim("rows", min=1, max=8), torch.export.Dim("size", min=4, max=20)
    x, dims = torch.randn(2, 5), {0: rows, 1: size}
    shapes = {"x": dims, "parts": {"a": dims}, "mask": dims}
    program = torch.export.export(Deep(), (x, {"a": x.clone()}), {"mask": x.clone()}, dynamic_shapes=shapes)
    torch.export.save(program, str(path))
    if description:
        path.with_suffix(".json").write_text(json.dumps(description))
    return path


@EXPORTS
@pytest.mark.subprocess
def test_an_exported_program_is_used_as_it_was_exported(tmp_path: Path) -> None:
    """Keywords, dictionaries, None among the outputs; dictionaries also by their keys."""
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    a, mask = 10 * x, torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    expected = {
        "logits": [[11.0, 2.0, 33.0, 4.0]], "state_0": (2 * x).tolist(), "state_1": (3 * x).tolist(),
    }  # fmt: skip
    path = export_deep(tmp_path / "m.pt2")
    got = answers(path, request(mask, x, a, names="mask x parts_a"))
    assert {name: got[name] for name in expected} == expected
    assert len(got) == 4 and (x + 1).tolist() in got.values()
    path = export_deep(tmp_path / "m.pt2", described(-1, -1, names="mask a x"))
    got = answers(path, request(mask, x, a, names="mask x a"))
    assert {name: got[name] for name in expected} == expected


@EXPORTS
@pytest.mark.subprocess
def test_the_bounds_of_an_exported_program_are_those_of_requests(tmp_path: Path) -> None:
    """They are in the metadata's limits, and beyond them is a 400 with the number, of a batch too."""

    async def run() -> None:
        async with serving(export_deep(tmp_path / "m.pt2")) as engine:
            assert model_config(engine.metadata("m"))["max_batch_size"] == 8
            for rows, size, says in ((9, 4, "dimension 0 to 8"), (1, 3, "dimension 1 from 4 to 20"), (1, 21, "to 20")):
                x = torch.ones(rows, size)
                with pytest.raises(ServeError, match=says) as refusal:
                    Answer(engine, request(x, x, x, names="x parts_a mask"))
                assert refusal.value.status == 400
            x = torch.ones(8, 20)
            assert len(await Answer(engine, request(x, x, x, names="x parts_a mask")).values()) == 4
            # Two sizes that each are within the bounds, and that the program wants to be one.
            other = request(torch.ones(1, 5), torch.ones(1, 6), torch.ones(1, 5), names="x parts_a mask")
            assert await Answer(engine, other).status() == 400

    asyncio.run(run())


@EXPORTS
@pytest.mark.subprocess
def test_a_description_cannot_widen_an_exported_program(tmp_path: Path) -> None:
    """Narrower is fine; another datatype, rank or size is not."""
    for shape, datatype in (((-1, 30), "FP32"), ((-1, -1, -1), "FP32"), ((-1, -1), "FP64"), ((9, 5), "FP32")):
        path = export_deep(tmp_path / "m.pt2", described(*shape, datatype=datatype, names="x parts_a mask"))
        assert "is described as" in refused(path)

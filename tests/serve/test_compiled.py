"""AOTInductor packages: compiled code gets what it was compiled for, and nothing else."""

from __future__ import annotations

import asyncio
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.serve.engines import Answer, ask, request, serving
from tests.serve.models import mlp
from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.models.compiled import Made, parse_made, read_made
from torchpar.serve.models.files import ModelFile
from torchpar.serve.models.kinds import load_program
from torchpar.serve.protocol.triton import model_config
from torchpar.serve.tensors import TensorSpec

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.skipif(not hasattr(torch, "export") or not shutil.which("g++"), reason="nothing to compile it with"),
]


class Looked(torch.nn.Module):
    """Numbers, a table's rows beside them, and a keyword; one that may be left out was."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 3)

    def forward(
        self, x: torch.Tensor, index: torch.Tensor, *, by: torch.Tensor, shift: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        y = (x + self.table(index).sum(1)) * by
        return {"y": y if shift is None else y + shift}


class Kept(torch.nn.Module):
    """A count, a history with a view of it, a table with places that are set; and what is only read."""

    def __init__(self) -> None:
        super().__init__()
        for name, size in (("count", 3), ("history", 8), ("table", 8), ("added", 4), ("read", 4)):
            self.register_buffer(name, torch.arange(float(size)))  # numbers that are all the same are compiled in

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self.count.add_(1.0)
        self.history[1:3].add_(x[0, :2])
        self.table.index_put_((index,), x[:2, 0])
        self.added.scatter_add_(0, index, x[:2, 0])
        kept = self.history.sum() + self.table.sum() + self.added.sum()
        return x * 0.0 + self.count + 0.0 * (kept + torch.sort(self.read)[0].sum())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """four.pt2, which was compiled for four rows, and looked.pt2 for 2 to 4 rows and 3 to 5 indices."""
    folder = tmp_path_factory.mktemp("compiled")
    torch.manual_seed(0)
    four = torch.export.export(mlp(), (torch.randn(4, 3),))
    rows, many = torch.export.Dim("rows", min=2, max=4), torch.export.Dim("many", min=3, max=5)
    looked = torch.export.export(
        Looked().eval(),
        (torch.randn(4, 3), torch.zeros(4, 4, dtype=torch.int64)),
        {"by": torch.randn(4, 1, dtype=torch.float64)},
        dynamic_shapes={"x": {0: rows}, "index": {0: rows, 1: many}, "by": {0: rows}},
    )
    kept = torch.export.export(Kept(), (torch.randn(4, 3), torch.tensor([0, 1])))
    for name, program in (("four", four), ("looked", looked), ("kept", kept)):
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / f"{name}.pt2"))
    return folder


def _input(name: str, datatype: str, *shape: int) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


@pytest.fixture
def served(tmp_path: Path, compiled: Path) -> Path:
    """m.pt2 with a description to write beside it; for four rows where nothing else is copied there."""
    shutil.copy(compiled / "four.pt2", tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


def _describe(path: Path, *inputs: dict[str, object], **more: object) -> None:
    path.with_suffix(".json").write_text(json.dumps({"inputs": inputs, **more}))


def _refused(path: Path) -> str:
    beside = path.with_suffix(".json")
    with pytest.raises(ModelError) as refused:
        load_program(ModelFile("m", "1", str(path), str(beside) if beside.exists() else None))
    return str(refused.value)


def test_it_tells_what_it_was_compiled_for(compiled: Path) -> None:
    """Datatypes, sizes and bounds of all inputs, and which sizes are the same."""
    four, looked = (read_made(str(compiled / f"{name}.pt2")) for name in ("four", "looked"))
    assert four and four.inputs == (TensorSpec("", "FP32", (4, 3), ((4, 4), (3, 3))),) and four.equal == ()
    assert looked and looked.equal == (((0, 0), (1, 0), (2, 0)),)
    # That a range begins at 2 says nothing: every one does.
    assert looked.inputs == (
        TensorSpec("", "FP32", (-1, 3), ((1, 4), (3, 3))),
        TensorSpec("", "INT64", (-1, -1), ((1, 4), (3, 5))),
        TensorSpec("", "FP64", (-1, 1), ((1, 4), (1, 1))),
    )


def test_it_tells_what_it_writes_to(compiled: Path) -> None:
    """By kernels and by operators, also to parts; weights and tables that are only read are nothing of that."""
    made = {name: read_made(str(compiled / f"{name}.pt2")) for name in ("four", "looked", "kept")}
    assert {name: each and each.writes for name, each in made.items()} == {
        "four": "", "looked": "", "kept": "'added', 'count', 'history', 'table'",
    }  # fmt: skip


@pytest.mark.parametrize("tells", [True, False], ids=["told", "found out"])
def test_a_package_that_changes_a_buffer_is_computed_by_one_process(
    tmp_path: Path, compiled: Path, journal: Callable[[], str], tells: bool
) -> None:
    """From the first request on, as it was compiled; also where its code tells nothing, for it answers differently."""
    with zipfile.ZipFile(compiled / "kept.pt2") as package, zipfile.ZipFile(tmp_path / "m.pt2", "w") as served:
        for name in package.namelist():
            if tells or not name.endswith(".cpp"):
                served.writestr(name, package.read(name))
    _describe(tmp_path / "m.pt2", _input("x", "FP32", 4, 3), _input("index", "INT64", 2))

    async def run() -> None:
        async with serving(tmp_path / "m.pt2", workers=2) as engine:
            asked = [request(torch.ones(4, 3), torch.tensor([0, 1]), names="x index") for _ in range(4)]
            answers = [(await answer.values())[0] for answer in ask(engine, asked)]
            assert [float(answer[0, 0]) for answer in answers] == [1.0, 2.0, 3.0, 4.0]

    asyncio.run(run())
    assert "it writes to itself when it runs" in journal()


def test_other_rows_than_it_was_compiled_for_are_refused(served: Path) -> None:
    """Though the description says that a request chooses them."""
    _describe(served, _input("x", "FP32", -1, 3))

    async def run() -> None:
        async with serving(served) as engine:
            assert engine.metadata("m").platform == "pytorch_aotinductor"
            model = engine.metadata("m")
            assert model.inputs[0].shape == (4, 3) and model_config(model)["max_batch_size"] == 0
            x = torch.randn(4, 3)
            answers = ask(engine, [request(x * i) for i in range(3)])
            for i, answer in enumerate(answers):
                assert torch.allclose((await answer.values())[0], mlp()(x * i), atol=1e-5)
            for rows in (0, 1, 3, 5, 6):
                with pytest.raises(ServeError, match=r"\[4, 3\] is expected") as refused:
                    Answer(engine, request(torch.randn(rows, 3)))
                assert refused.value.status == 400

    asyncio.run(run())


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (_input("x", "FP32", 8, 3), "'x' is described as FP32 of shape [8, 3]; the program takes FP32 of shape [4, 3]"),
        (_input("x", "FP64", 4, 3), "described as FP64 of shape [4, 3]; the program takes FP32 of shape [4, 3]"),
        (_input("x", "FP32", 4, 3, 1), "described as FP32 of shape [4, 3, 1]; the program takes FP32 of shape [4, 3]"),
    ],
)  # fmt: skip
def test_a_description_that_says_otherwise_ends_the_start(
    served: Path, described: dict[str, object], said: str
) -> None:
    """With both."""
    _describe(served, described)
    assert said in _refused(served)


def test_inputs_that_it_does_not_have_end_the_start(served: Path) -> None:
    """Or that are missing."""
    _describe(served, _input("x", "FP32", -1, 3), _input("y", "FP32", -1, 3))
    assert "described are the inputs x, y; the program takes x" in _refused(served)
    served.with_suffix(".json").unlink()
    assert "describe them in a .json file" in _refused(served)


LOOKED = (_input("by", "FP64", -1, 1), _input("x", "FP32", -1, 3), _input("index", "INT64", -1, -1))


def test_it_is_batched_within_its_bounds(served: Path, compiled: Path) -> None:
    """Keywords are bound by name; never more than four rows are computed at once."""
    shutil.copy(compiled / "looked.pt2", served)
    _describe(served, *LOOKED)
    program = torch._inductor.aoti_load_package(str(served))
    names = "x index by"

    def inputs(rows: int, many: int = 4) -> list[torch.Tensor]:
        index = torch.randint(0, 10, (rows, many))
        return [torch.randn(rows, 3), index, torch.randn(rows, 1, dtype=torch.float64)]

    async def run() -> None:
        async with serving(served) as engine:
            version = engine._repository.get("m")
            assert version.batched and version.cap() <= 4 and model_config(engine.metadata("m"))["max_batch_size"] == 4
            asked = [inputs(rows, many) for rows in (1, 2, 3, 1, 4, 2) for many in (3, 4)]
            for each, answer in zip(asked, ask(engine, [request(*each, names=names) for each in asked]), strict=True):
                x, index, by = each
                wanted = program(x, index, by=by)["y"]
                assert torch.allclose((await answer.values())[0], wanted)
            for rows, many, said in ((5, 4, "dimension 0 from 1 to 4"), (2, 6, "from 3 to 5"), (2, 2, "from 3 to 5")):
                with pytest.raises(ServeError, match=said) as refused:
                    Answer(engine, request(*inputs(rows, many), names=names))
                assert refused.value.status == 400
            x, index, by = inputs(4)
            uneven = await Answer(engine, request(x, index[:2], by, names=names)).get()
            assert isinstance(uneven, ServeError) and uneven.status == 400
            assert "'x' 4 (0), 'index' 2 (0), 'by' 4 (0)" in uneven.message

    asyncio.run(run())


def test_one_that_does_not_tell_gets_what_is_described_and_nothing_else(
    served: Path, compiled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Sizes that a request would choose end the start; an example fixes them."""
    with zipfile.ZipFile(compiled / "four.pt2") as old, zipfile.ZipFile(served, "w") as new:
        for name in old.namelist():
            if not name.endswith(".cpp"):
                new.writestr(name, old.read(name))
    _describe(served, _input("x", "FP32", -1, 3))
    assert "it does not tell what it was compiled for" in _refused(served)
    _describe(served, _input("x", "BYTES", 4))
    assert "described as BYTES of shape [4], which no compiled package takes" in _refused(served)
    x = torch.randn(4, 3)
    for shape, more in (((4, 3), {}), ((-1, 3), {"example": {"x": x.tolist()}})):
        _describe(served, _input("x", "FP32", *shape), **more)

        async def run() -> None:
            async with serving(served) as engine:
                model = engine.metadata("m")
                assert model.inputs[0].shape == (4, 3) and model_config(model)["max_batch_size"] == 0
                assert torch.allclose((await Answer(engine, request(x)).values())[0], mlp()(x), atol=1e-5)
                with pytest.raises(ServeError, match="is expected"):
                    Answer(engine, request(torch.randn(5, 3)))

        asyncio.run(run())
        assert "gets only what is described, unbatched" in capfd.readouterr().err


CHECK = """
    inputs_info_[0].name = "arg0_1";
    inputs_info_[1].name = "arg1_1";
AOTI_NOINLINE static void check_input_0(
    AtenTensorHandle* input_handles
) {{
    int32_t arg0_1_expected_dtype = aoti_torch_dtype_float32();
    if (arg0_1_size[0] < 2) {{
    }}
    if (3 != arg0_1_size[1]) {{
    }}
    if ({stride} != arg0_1_stride[0]) {{
    }}
}}

AOTI_NOINLINE static void check_input_1(
    AtenTensorHandle* input_handles
) {{
    int32_t arg1_1_expected_dtype = aoti_torch_dtype_{dtype}();
    if (arg1_1_size[0] > 16) {{
    }}
}}
    int64_t s0 = arg0_1_size[0];
{more}
"""


def _parsed(stride: int = 3, dtype: str = "int64", more: str = "") -> Made | None:
    return parse_made("m.pt2", CHECK.format(stride=stride, dtype=dtype, more=more))


@pytest.mark.parametrize(
    ("more", "equal"),
    [
        ("    int64_t s1 = arg1_1_size[0];", ()),
        ('    assert_size_stride(arg1_1, {s0}, {1L}, "input");', (((0, 0), (1, 0)),)),
        ('    int64_t s7 = s0;\n    assert_size_stride(arg1_1, {s7}, {1L}, "input");', (((0, 0), (1, 0)),)),
        ("", None),
        ('    assert_size_stride(arg1_1, {2L*s0}, {1L}, "input");', None),
        ("    int64_t arg1_1_size_0 = arg1_1_size[0];\n    int64_t s1 = div(arg1_1_size_0, 8L);", None),
    ],
    ids=["each its own", "the same", "another name", "not told", "computed", "a multiple"],
)
def test_sizes_that_must_be_the_same_are_told_or_fixed(more: str, equal: object) -> None:
    """Where a size is one that others give, and not which, only fixed sizes are safe."""
    made = _parsed(more=more)
    assert made and made.equal == equal
    assert made.inputs[0].limits == ((1, None), (3, 3)) and made.inputs[1].limits == ((0, 16),)


def test_what_no_request_can_be_ends_the_start() -> None:
    """Complex numbers, and tensors that do not lie row by row."""
    with pytest.raises(ModelError, match="m.pt2: input 1 is a complex64, which no request can carry"):
        _parsed(dtype="complex64")
    with pytest.raises(ModelError, match="m.pt2: input 0 was compiled for a tensor that does not lie row by row"):
        _parsed(stride=1)

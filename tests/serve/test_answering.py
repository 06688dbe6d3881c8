"""READY means that a request would be answered: what no request could change is said at the start."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.engines import Answer, request, serving
from tests.serve.models import Affine, Lookup, described, mlp, save_script
from torchpar.serve.errors import ModelError
from torchpar.serve.models.description import Description
from torchpar.serve.models.torchscript import TorchScript
from torchpar.serve.protocol.triton import model_config


class Complex(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.complex(x, x)


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x + 2


class Device(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.device("cuda")) + 1


class Made(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(3, device=torch.device("cuda:0"))


class Force(torch.nn.Module):
    """What -x² pulls with: the derivative, for which torch has to record."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.requires_grad_(True)
        found = torch.autograd.grad([(x * x).sum()], [x])[0]
        assert found is not None
        return -found


def outputs(*specs: tuple[str, str, list[int]]) -> list[dict[str, Any]]:
    """Declared outputs."""
    return [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in specs]


def start(path: Path, backend: str = "auto") -> None:
    """Start an engine and end it."""

    async def run() -> None:
        async with serving(path, backend=backend):
            pass

    asyncio.run(run())


Y = ("y", "FP32", [-1, 3])


@pytest.mark.parametrize(
    ("module", "description", "says"),
    [
        (Complex(), described(-1, 3), "output 'OUTPUT__0' is of torch.complex64, which the protocol does not have"),
        (Device(), described(-1, 3), "a device is fixed in the model, .* on the CPU: .*(?i:cuda)"),
        (Made(), described(-1, 3), "a device is fixed in the model, .* on the CPU: .*(?i:cuda)"),
        (Affine(), described(-1, 3, outputs=outputs(("y", "FP64", [-1, 3]))), "'y' is declared as FP64 .* it is FP32"),
        (Affine(), described(-1, 3, outputs=outputs(("y", "FP32", [-1, 4]))), r"\[-1, 4\]; .* \[1, 3\]"),
        (Affine(), described(-1, 3, outputs=outputs(("y", "FP32", [3, -1]))), r"\[3, -1\]; .* \[1, 3\]"),
        (Affine(), described(-1, 3, outputs=outputs(("y", "FP32", [-1]))), r"\[-1\]; .* \[1, 3\]"),
        (Affine(), described(-1, 3, outputs=outputs(Y, ("z", *Y[1:]))), "y, z; the model returns OUTPUT__0"),
        (Pair(), described(-1, 3, outputs=outputs(Y)), "the outputs y; the model returns OUTPUT__0, OUTPUT__1"),
        (torch.nn.Conv2d(3, 2, 1), described(-1, 3), "does not take what is described, 'x' FP32"),
        (torch.nn.Embedding(4, 2), described(-1, 3), "does not take what is described"),
        (torch.nn.Linear(5, 2), described(-1, 4), r"what is described, 'x' FP32 of shape \[-1, 4\]: .*mat1"),
        (torch.nn.Linear(5, 2), described(-1, 5, datatype="FP64"), "does not take what is described"),
        (Lookup(), described(-1, datatype="FP32"), "does not take what is described"),
    ],
)  # fmt: skip
def test_a_model_that_would_answer_nothing_is_not_served(
    tmp_path: Path, module: torch.nn.Module, description: dict[str, Any], says: str
) -> None:
    """In words, and with what is described."""
    path = save_script(module, tmp_path / "m.pt", description)
    with pytest.raises(ModelError) as error:
        start(path)
    assert "no request would be answered: " in str(error.value)
    assert re.search(says, str(error.value)), error.value


class Never(torch.nn.Module):
    """It has nothing to say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor | None:
        return None


class Seldom(torch.nn.Module):
    """It has something to say of large numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor | None:
        large: torch.Tensor | None = None
        if bool((x > 20.0).any()):
            large = x
        return large


@pytest.mark.parametrize("more", [{}, {"outputs": outputs(Y)}])
def test_outputs_that_never_come_are_no_answer(tmp_path: Path, more: dict[str, Any]) -> None:
    """One that comes for other numbers is."""
    with pytest.raises(ModelError, match="it returns (none of the outputs .* y|nothing that can be sent).* was tried"):
        start(save_script(Never(), tmp_path / "m.pt", described(-1, 3, **more)))
    start(save_script(Seldom(), tmp_path / "m.pt", described(-1, 3, **more)))
    with pytest.raises(ModelError, match="on its own example"):
        start(save_script(Seldom(), tmp_path / "m.pt", described(-1, 3, **more, example={"x": [[1, 2, 3]]})))


def test_a_model_that_needs_gradients_has_them(tmp_path: Path) -> None:
    """Also when requests are computed together."""
    path = save_script(Force(), tmp_path / "m.pt", described(-1, 3))

    async def run() -> None:
        async with serving(path) as engine:
            for k in range(3):
                x = torch.full((2, 3), float(k))
                assert torch.equal((await Answer(engine, request(x)).values())[0], -2 * x)

    asyncio.run(run())


class Asks(torch.nn.Module):
    """It goes another way where nothing is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for _ in range(2):
            if self.linear(x).requires_grad:
                y = y + x
        return y


def test_a_program_that_asks_for_gradients_is_answered_as_in_python(tmp_path: Path) -> None:
    """Not what the other branch says."""
    path = save_script(Asks(), tmp_path / "m.pt", described(-1, 3))
    x = torch.ones(2, 3)

    async def run() -> None:
        async with serving(path) as engine:
            assert torch.equal((await Answer(engine, request(x)).values())[0], 3 * x)

    asyncio.run(run())


@pytest.mark.parametrize(("module", "mode"), [
    (mlp(), torch.inference_mode), (Affine(), torch.inference_mode), (Force(), torch.enable_grad),
    (torch.nn.TransformerEncoderLayer(4, 2, batch_first=True), torch.inference_mode),
])  # fmt: skip
def test_only_programs_that_ask_for_gradients_are_recorded(tmp_path: Path, module: torch.nn.Module, mode: Any) -> None:
    """Recording costs time; torch's transformers are made for both."""
    program = TorchScript(str(save_script(module, tmp_path / "m.pt")), Description())
    assert program._mode is mode


DERIVATIVES = """
import torch

INPUTS = [("x", "FP32", (-1, 3))]
weights = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
made = []

def cube(x):
    return (weights * x**3).sum()

def load(): pass

def predict(batch):
    x = batch["x"]
    asked = x.clone().requires_grad_(True)
    value = cube(asked)
    if not made:
        made.append(torch.nn.Linear(3, 1, bias=False))  # in the first request, and recorded in later ones
    later = x.clone().requires_grad_(True)
    slope, = torch.autograd.grad(made[0](later).sum(), later)
    return {
        "jacobian": torch.autograd.functional.jacobian(cube, x),
        "vjp": torch.autograd.functional.vjp(cube, x)[1],
        "func": torch.func.grad(cube)(x),
        "asks": torch.autograd.grad(value, asked)[0] if value.requires_grad else torch.zeros_like(x),
        "later": 3 * weights * x**2 + 0 * slope,
    }
"""


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(torch, "func"), reason="this torch has no torch.func")
def test_a_handler_has_the_derivatives_that_it_has_in_python(tmp_path: Path) -> None:
    """By whichever door of torch; what requires gradients can be sent."""
    (tmp_path / "h.py").write_text(DERIVATIVES)

    async def run() -> None:
        async with serving(tmp_path / "h.py") as engine:
            for k in (1.0, 2.0, 3.0):
                x = torch.full((2, 3), k)
                values = await Answer(engine, request(x)).values()
                assert len(values) == 5
                for value in values:
                    assert torch.equal(value, 3 * torch.tensor([1.0, 2.0, 3.0]) * x**2)

    asyncio.run(run())


class Says(torch.nn.Module):
    """It raises what torch says of a device, a rank and a datatype that are wrong, of numbers that are too small."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if int(x.min()) < 1000:
            raise RuntimeError("Expected 3D or 4D input; expected scalar type Float but found cuda, must be equal to 3")
        return x * 2


class Chosen(torch.nn.Module):
    """The rows' large numbers, which are to be three: with others torch itself complains of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x[x > 50.0].unsqueeze(0)) * 0 + x


class Squeezed(torch.nn.Module):
    """Of a single row torch itself says that the dimension is not there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze().sum(1)


class Sums(torch.nn.Module):
    """One number a row, of a single row without its dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1, keepdim=True).squeeze()


class Maybe(torch.nn.Module):
    """Its second output is there for large numbers only."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        large: torch.Tensor | None = None
        if bool((x > 50.0).any()):
            large = x
        return x, large


@pytest.mark.parametrize(
    ("module", "description", "x", "y"),
    [
        (Says(), described(-1, 2, datatype="INT64"), torch.tensor([[1000, 1001]]), torch.tensor([[2000, 2002]])),
        (Chosen(), described(-1, 3), torch.tensor([[60.0, 70.0, 80.0]]), torch.tensor([[60.0, 70.0, 80.0]])),
        (Squeezed(), described(-1, 2), torch.ones(2, 2), torch.tensor([2.0, 2.0])),
        (Sums(), described(-1, 2, outputs=outputs(("y", "FP32", [-1]))), torch.ones(2, 2), torch.tensor([2.0, 2.0])),
        (Maybe(), described(-1, 2, outputs=outputs(*((n, "FP32", [-1, 2]) for n in "yz"))), torch.ones(1, 2) * 60,
         torch.ones(1, 2) * 60),
        (Lookup(), described(-1, datatype="INT64"), torch.tensor([3]), None),
    ],
)  # fmt: skip
def test_a_model_that_answers_other_requests_is_served(
    tmp_path: Path, module: torch.nn.Module, description: dict[str, Any], x: torch.Tensor, y: torch.Tensor | None
) -> None:
    """Whatever it says of those that were made up, in whose words ever."""
    path = save_script(module, tmp_path / "m.pt", description)

    async def run() -> None:
        async with serving(path) as engine:
            name = description["inputs"][0]["name"]
            (answer, *_) = await Answer(engine, request(x, names=name)).values()
            assert torch.equal(answer, module(x) if y is None else y)

    asyncio.run(run())


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "raises",
    [
        'RuntimeError("Expected 3D or 4D input to conv2d")',
        'RuntimeError("mat1 and mat2 must have the same dtype, but got Double and Float")',
        'RuntimeError("Could not run \'aten::add\' with arguments from the \'CUDA\' backend")',
        'AssertionError("Torch not compiled with CUDA enabled")',
        'NotImplementedError("\\"add\\" not implemented for \'Half\'")',
        'ValueError("x must be equal to the dtype of cuda")',
    ],
)
def test_what_a_handler_raises_for_made_up_inputs_refuses_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], raises: str
) -> None:
    """It is not tried, and its error is in the log for its author."""
    (tmp_path / "h.py").write_text(
        'INPUTS = [("x", "FP32", (-1, 3))]\ndef load(): pass\n'
        f'def predict(batch):\n    if batch["x"].min() < 50: raise {raises}\n    return {{"y": batch["x"]}}\n'
    )

    async def run() -> str:
        async with serving(tmp_path / "h.py") as engine:
            x = torch.full((1, 3), 60.0)
            assert torch.equal((await Answer(engine, request(x)).values())[0], x)
            return engine.index()[0].reason

    reason = asyncio.run(run())
    assert reason.startswith("not tried, as it fails on made-up inputs: describe an example: the model failed: ")
    assert "Traceback" in capfd.readouterr().err


class Numbers(torch.nn.Module):
    """Numbers from a thousand on, of which nothing that is made up is one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert int(x.min()) >= 1000, "no such number"
        return x * 2


def test_what_made_up_numbers_cannot_try_is_said_to_be_not_tried(tmp_path: Path) -> None:
    """And with an example it is tried, and batched."""
    for example in ({}, {"example": {"x": [[1000, 2000]]}}):
        path = save_script(Numbers(), tmp_path / "m.pt", described(-1, 2, datatype="INT64", **example))

        async def run(path: Path) -> tuple[str, bool]:
            async with serving(path) as engine:
                x = torch.tensor([[3000, 4000]])
                assert torch.equal((await Answer(engine, request(x)).values())[0], 2 * x)
                return engine.index()[0].reason, model_config(engine.metadata("m"))["max_batch_size"] > 0

        reason, batched = asyncio.run(run(path))
        assert batched is bool(example)
        assert reason == "" if example else reason.startswith("not tried, as it fails on made-up inputs: describe an ")


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ([1], "example: an object with the inputs is expected: x"),
        ({"y": [[1000, 2000]]}, "example: an object with the inputs is expected: x"),
        ({"x": [[1000, 2000, 3000]]}, r"example: input 'x' is INT64 of shape \[1, 3\]; INT64 of shape \[-1, 2\] is"),
        ({"x": [[1000, 2000], [3000]]}, "example: input 'x': its arrays are not of one length"),
        ({"x": [[1000, "a"]]}, "example: input 'x': its data has values that are no INT64"),
        ({"x": [[1, 2]]}, "no request would be answered: it fails on its own example: .*no such number"),
    ],
)
def test_an_example_that_is_none_is_refused(tmp_path: Path, example: Any, says: str) -> None:
    """It is what the model is tried with."""
    path = save_script(Numbers(), tmp_path / "m.pt", described(-1, 2, datatype="INT64", example=example))
    with pytest.raises(ModelError, match=says):
        start(path)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ('{"z": batch["x"]}', r"predict\(\) returned no 'y', which OUTPUTS names"),
        ('{"y": {"a": 1}}', "output 'y' is a dict"),
        ('{"y": batch["x"].double()}', "output 'y' is declared as FP32 .* it is FP64"),
        ('{"y": None}', "output 'y' is a NoneType"),
        ("None", r"predict\(\) returned nothing"),
        ('{"y": batch["image"]}', "does not take what is described, 'x' .*asks for 'image'; INPUTS has x"),
        ("[batch[name] for name in ('x', 'mask')][1]", "asks for 'mask'; INPUTS has x"),
        ("__import__('sys').exit('no GPU')", "the worker process died"),
        ("batch['x'] if len(batch['x']) < 2 else __import__('os')._exit(3)", "the worker process died"),
    ],
)
def test_a_handler_is_held_to_what_it_declares(tmp_path: Path, returns: str, says: str) -> None:
    """By what it returns for the first row."""
    declared = 'INPUTS = [("x", "FP32", (-1, 3))]\nOUTPUTS = [("y", "FP32", (-1, 3))]\n'
    (tmp_path / "h.py").write_text(f"{declared}def load(): pass\ndef predict(batch): return {returns}\n")
    with pytest.raises(ModelError, match=says):
        start(tmp_path / "h.py")


ARGUMENTS = 'INPUTS = [("x", "FP32", (-1, 3))]\n'
MINIMUM = "def load(): pass\ndef predict(batch): return batch['x']\n"


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def load(): pass\ndef predict(x, y): return x", r"predict\(x, y\): it is called with the batch: missing"),
        ("def load(): pass\ndef predict(): pass", r"predict\(\): it is called with the batch: too many"),
        ("def load(a, b): pass\ndef predict(batch): return batch", r"load\(a, b\): it is called with nothing, or"),
        (MINIMUM + "def example(x): return x", r"example\(x\): it is called with nothing"),
        (MINIMUM + "def example(): return [1]", r"a dictionary with the inputs is expected, x; it is list"),
        (MINIMUM + "def example(): return {'y': 1}", r"with the inputs is expected, x; it is the keys y"),
        (MINIMUM + "def example(): return {'x': {}}", r"example\(\): input 'x' is a dict: a torch.Tensor"),
        (MINIMUM + "MAX_BATCH = '8'", "MAX_BATCH: a number of rows is expected, not '8'"),
        (MINIMUM + "MAX_BATCH = 8.0", "MAX_BATCH: a number of rows is expected, not 8.0"),
        (MINIMUM + "MAX_BATCH = -1", "MAX_BATCH: a number of rows is expected, not -1"),
        (MINIMUM + "MAX_BATCH = True", "MAX_BATCH: a number of rows is expected, not True"),
    ],
)
def test_what_a_handler_says_of_itself_is_looked_at(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    """Before anything is computed, and in words alone."""
    (tmp_path / "h.py").write_text(ARGUMENTS + text + "\n")
    with pytest.raises(ModelError, match=says):
        start(tmp_path / "h.py")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"torchpar: {tmp_path}/h.py: ")


@pytest.mark.subprocess
def test_another_table_without_a_key_says_nothing_of_the_inputs(tmp_path: Path) -> None:
    """Other numbers may be in it."""
    predict = "def predict(batch):\n    return batch['x'] * NUMBERS['ten' if batch['x'].min() >= 10 else 'less']\n"
    (tmp_path / "h.py").write_text(ARGUMENTS + "NUMBERS = {'ten': 10}\ndef load(): pass\n" + predict)

    async def run() -> None:
        async with serving(tmp_path / "h.py") as engine:
            x = torch.full((1, 3), 11.0)
            assert torch.equal((await Answer(engine, request(x)).values())[0], 10 * x)
            assert engine.index()[0].reason.startswith("not tried")

    asyncio.run(run())


@pytest.mark.subprocess
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_handler_that_is_cancelled_while_it_loads_is_not_served(tmp_path: Path, backend: str) -> None:
    """Nor is the load itself cancelled, of which nobody would hear."""
    loads = "import asyncio\ndef load(): raise asyncio.CancelledError\ndef predict(batch): return batch\n"
    (tmp_path / "h.py").write_text(ARGUMENTS + loads)
    with pytest.raises(ModelError, match=r"load\(\) failed at h.py:\d+: CancelledError"):
        start(tmp_path / "h.py", backend=backend)


def test_a_handler_that_asks_for_the_end_in_a_thread_is_not_served(tmp_path: Path) -> None:
    """It would end no process there."""
    (tmp_path / "h.py").write_text(ARGUMENTS + "import sys\ndef load(): pass\ndef predict(batch): sys.exit()\n")

    async def run() -> None:
        async with serving(tmp_path / "h.py", backend="thread"):
            pass

    with pytest.raises(ModelError, match="the worker process died"):
        asyncio.run(run())

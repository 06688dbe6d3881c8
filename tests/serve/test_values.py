"""What a model returns is sent as torch would print it, or named as what cannot be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.serve.engines import serving, value
from tests.serve.models import described, save_script
from torchpar.serve.errors import ModelError, OutputError
from torchpar.serve.models.values import tensor_of

X = torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, -4.0]])

# Flags, strides and memory that is not there: of each one row or column too, which is contiguous whatever it is.
VIEWS: dict[str, Callable[[], Tensor]] = {
    "negative": lambda: torch.complex(X, X).conj().imag,
    "negative column": lambda: torch.complex(X, X).conj().imag[:, 1:2],
    "negative row": lambda: torch.complex(X, X).conj().imag[:1],
    "negative number": lambda: torch.complex(X, X).conj().imag[0, 1],
    "transposed": lambda: X.t(),
    "transposed column": lambda: X.t()[:, 1:],
    "expanded": lambda: X[:1].expand(4, 3),
    "cut": lambda: X[:, 1:],
    "needs gradients": lambda: X.clone().requires_grad_() * 2.0,
    "zeros without memory": lambda: torch._efficientzerotensor((2, 3)),
    "none": lambda: X[:0],
    "parameter": lambda: nn.Parameter(X),
}
NOT_DENSE: dict[str, Callable[[], Tensor]] = {
    "coordinates": lambda: X.to_sparse(),
    "compressed rows": lambda: X.to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([X[0], X[1, :2]]),
    "jagged": lambda: torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged),
    "mkldnn": lambda: X.to_mkldnn(),
    "quantised": lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    "complex": lambda: torch.complex(X, X),
    "on no device": lambda: X.to("meta"),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_sent_as_its_numbers(view: str) -> None:
    """Whatever it shares memory with."""
    tensor = VIEWS[view]()
    sent = value(tensor_of("y", tensor))
    assert sent.shape == tensor.shape and sent.tolist() == tensor.clone().tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_what_is_not_dense_is_named(kind: str) -> None:
    """Its numbers do not lie one after another."""
    with pytest.raises(OutputError, match="output 'y' is"):
        tensor_of("y", NOT_DENSE[kind]())


class Sparse(nn.Module):
    """An output that has no bytes to send."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).to_sparse()


SPARSE = """
INPUTS = [("x", "FP32", (-1, 3))]

def load():
    pass

def predict(batch):
    return {"y": batch["x"].to_sparse_csr()}
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("name", ["m.pt", "m.py"])
def test_a_model_whose_output_is_sparse_is_not_served(tmp_path: Path, name: str) -> None:
    """No request would be answered."""
    save_script(Sparse(), tmp_path / "m.pt", described(-1, 3))
    (tmp_path / "m.py").write_text(SPARSE)

    async def run() -> None:
        async with serving(tmp_path / name):
            pass

    with pytest.raises(ModelError, match=r"laid out as torch\.sparse_\w+: a dense tensor is expected"):
        asyncio.run(run())

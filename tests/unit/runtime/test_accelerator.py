"""What is set for accelerators, on hosts that have none: torch.cuda is the fake torch's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.training import JOB, has_torch, printed, told, train

pytestmark = pytest.mark.subprocess

SCRIPT = """
import json
import torch
from torch.utils.data import DataLoader, Dataset
class Numbers(Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return i
"""


@pytest.mark.parametrize(
    ("planned", "before", "after"), [(True, False, True), (False, True, False), (None, True, True)]
)
def test_cudnn_searches_as_planned(place: Place, planned: bool | None, before: bool, after: bool) -> None:
    """None leaves what torch or the script has."""
    # The plan is in force when the import of torch ends; another module may have set it within that.
    script = "import torch, json\nprint(json.dumps(torch.backends.cudnn.benchmark))\n"
    if before and not has_torch():
        script = "import os; os.environ['FAKE_CUDNN'] = '1'\n" + script
    elif before:
        after = after and planned is not None
    assert printed(train(place, script, settings=replace(JOB, cudnn_benchmark=planned))) is after


@pytest.mark.parametrize(("asked", "said"), [(None, True), (True, False)])
def test_batches_that_are_not_pinned_are_told_at_the_end(place: Place, asked: bool | None, said: bool) -> None:
    """Where the script has used an accelerator; what torch has is not changed unless the conf asks."""
    script = SCRIPT + (
        "torch.cuda.is_initialized = lambda: True\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "from torchpar.runtime.patches import progress; progress.LONG_ENOUGH = 0\n"
        "loader = DataLoader(Numbers(), batch_size=2)\n"
        "print(json.dumps([len(list(loader)), loader.pin_memory]))\n"
    )
    outcome = train(place, script, settings=replace(JOB, pin_memory=asked), gpus=("0000:17:00.0",))
    assert printed(outcome) == [2, bool(asked)]
    pinned = "its batches are not pinned: PinMemory=yes lets them be copied while the accelerator computes"
    if not has_torch() or asked is None:  # a real torch pins nothing where there is no accelerator
        assert any(pinned in line for line in told(outcome)) is said

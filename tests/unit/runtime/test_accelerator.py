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


def test_a_dataset_on_an_accelerator_is_read_in_the_process(place: Place) -> None:
    """A forked process cannot use the accelerator's memory; a tensor in the host's is fine."""
    if has_torch():
        pytest.skip("only the fake torch has such a tensor without an accelerator")
    script = SCRIPT + (
        "seen = []\n"
        "for device in ('cpu', 'meta', 'cuda'):\n"
        "    data = Numbers(); data.part = {'x': torch.Tensor(device)}\n"
        "    loader = DataLoader(data, batch_size=2)\n"
        "    seen.append([list(loader), loader.num_workers])\n"
        "print(json.dumps(seen))\n"
    )
    outcome = train(place, script)
    assert printed(outcome) == [[[[0, 1], [2, 3]], workers] for workers in (1, 1, 0)]
    assert told(outcome)[-1].endswith("a worker could not share dataset.part['x'], a tensor on cuda")


def test_a_script_that_uses_an_accelerator_keeps_its_workers(place: Place) -> None:
    """Forking is fine as long as the workers leave the accelerator alone: most scripts fork after model.cuda()."""
    script = SCRIPT + (
        "torch.cuda.is_initialized = lambda: True\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "loader = DataLoader(Numbers(), batch_size=2)\n"
        "print(json.dumps([len(list(loader)), loader.num_workers, loader.pin_memory]))\n"
    )
    assert printed(train(place, script, gpus=("0000:17:00.0",))) == [2, 1, True]

"""What the launcher needs of a torch, for tests where there is none: torchrun's parser and its agent, and no tensor.

FAKE_TORCH=1.13 in the environment spells flags as that version does.
"""

import os
from typing import Any

__version__ = os.environ.get("FAKE_TORCH", "2.13")


class backends:
    class cudnn:
        benchmark = False


def get_num_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def get_num_interop_threads() -> int:
    return 1


def __getattr__(name: str) -> Any:
    raise AttributeError(f"the fake torch has no {name}")

"""Seeds that a fork must not share with its siblings."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def draw_anew() -> None:
    """Seeds what was copied with the process: all forks would draw the same numbers."""
    torch.seed()
    random.seed()
    numpy: Any = sys.modules.get("numpy")  # imported later, it seeds itself
    if numpy and hasattr(numpy, "random"):
        numpy.random.seed()

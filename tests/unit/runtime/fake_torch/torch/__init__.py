"""A torch of a few lines for tests where there is no real one: what torchpar.runtime touches, shaped like torch's own.

FAKE_TORCH=1.13 in the environment makes it an old one, FAKE_TORCH=other one of another inside.
"""

import os
import random
import types

__version__ = os.environ.get("FAKE_TORCH", "2.13") + ".0+fake"

_threads = {"intra": int(os.environ.get("OMP_NUM_THREADS", "2").partition(",")[0]), "interop": 1}
_grad = {"enabled": True}


def get_num_threads():
    return _threads["intra"]


def set_num_threads(number):
    _threads["intra"] = number


def get_num_interop_threads():
    return _threads["interop"]


def set_num_interop_threads(number):
    _threads["interop"] = number


def is_grad_enabled():
    return _grad["enabled"]


class no_grad:
    def __enter__(self):
        _grad["enabled"] = False

    def __exit__(self, *_):
        _grad["enabled"] = True


class Tensor:
    def __init__(self, device="cpu"):
        self.device = types.SimpleNamespace(type=device)


class Generator:
    def __init__(self):
        self._random = random.Random(0)

    def get_state(self):
        return self._random.getstate()

    def set_state(self, state):
        self._random.setstate(state)

    def manual_seed(self, seed):
        self._random.seed(seed)

    def draw(self):
        return self._random.getrandbits(63)


default_generator = Generator()
manual_seed = default_generator.manual_seed
cuda = types.SimpleNamespace(is_initialized=lambda: False)
_C = types.SimpleNamespace(set_num_interop_threads=set_num_interop_threads)
backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(benchmark="FAKE_CUDNN" in os.environ))

from torch import optim, utils  # noqa: E402, F401

"""Nothing of torchpar is found in what a script owns: what it inspects, copies, saves or compiles is torch's own."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.training import FAKE_TORCH, JOB, has_torch, train

pytestmark = pytest.mark.subprocess

# Everything in the modules that torchpar touches, as a script can look at it: whatever is wrapped one day is among it.
LOOK = '''
import copy, importlib, inspect, json, pickle, re, types, typing
import torch
MODULES = ["torch", "torch.optim.optimizer", "torch.optim", "torch.utils.data", "torch.utils.data.dataloader",
           "torch.utils.data._utils.worker", "torch.utils.data._utils.pin_memory"]

def attempt(look, thing):
    try:
        return repr(look(thing))
    except Exception as error:
        return type(error).__name__

LOOKS = {
    "repr": repr, "class": lambda x: x.__class__, "signature": inspect.signature, "argspec": inspect.getfullargspec,
    "source": inspect.getsource, "file": inspect.getsourcefile, "lines": lambda x: inspect.getsourcelines(x)[1],
    "doc": inspect.getdoc, "module": inspect.getmodule, "name": lambda x: (x.__name__, x.__qualname__, x.__module__),
    "function": inspect.isfunction, "builtin": inspect.isbuiltin, "callable": callable,
    "unwrapped": lambda x: inspect.unwrap(x).__qualname__, "hints": typing.get_type_hints,
    "pickle": pickle.dumps, "unpickled": lambda x: pickle.loads(pickle.dumps(x)) is x,
    "copy": lambda x: copy.deepcopy(copy.copy(x)) is x, "annotations": lambda x: x.__annotations__,
}

def parts(module):
    for name, value in sorted(vars(module).items()):
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            yield name, value
        elif isinstance(value, type) and value.__module__.startswith("torch.") and len(vars(value)) < 90:
            yield name, value
            for key, method in sorted(vars(value).items()):
                if isinstance(method, types.FunctionType):
                    yield f"{name}.{key}", method

seen = {}
for name in MODULES:
    module = importlib.import_module(name)
    seen[name] = sorted(vars(module))
    for part, thing in parts(module):
        # Of torch's thousand functions of C those that are called as this one is.
        if name != "torch" or "threads" in part:
            # What a worker runs goes to the worker only, by a pickle that is nobody else's.
            looks = {what for what in LOOKS if part != "_worker_loop" or not re.search("pickle|copy", what)}
            seen[f"{name}.{part}"] = {what: attempt(LOOKS[what], thing) for what in sorted(looks)}
'''

# What a script saves and copies, after it has been used.
SAVE = '''
from torch.utils.data import DataLoader, Dataset, IterableDataset
class Numbers(Dataset):
    def __len__(self): return 6
    def __getitem__(self, i): return i
class Stream(IterableDataset):
    def __iter__(self): return iter(range(6))
class Mine(DataLoader): pass
owned = {}
named = {"pin_memory": False}
for name, loader in {
    "map": DataLoader(Numbers(), 2, num_workers=0, **named), "iterable": DataLoader(Stream(), 2),
    "class": Mine(Numbers(), num_workers=0, **named), "no batches": DataLoader(Numbers(), None, num_workers=0, **named),
    "workers": DataLoader(Numbers(), 2, num_workers=1, prefetch_factor=2, **named),
}.items():
    iterator = iter(loader)
    owned[name] = [sorted(vars(loader)), sorted(vars(iterator)), [str(batch) for batch in iterator],
                   sorted(vars(copy.copy(loader))), sorted(vars(copy.deepcopy(loader.dataset)))]
    owned[name].append(pickle.dumps(loader).hex())
class Own(torch.optim.SGD):
    def step(self, closure=None): return super().step()
def reached(thing, seen):
    """What a pickle by value takes along (cloudpickle, for a remote worker): what functions close over and name."""
    if id(thing) not in seen and not isinstance(thing, (type, types.ModuleType, types.BuiltinFunctionType)):
        seen[id(thing)] = thing
        if isinstance(thing, types.FunctionType):
            for cell in thing.__closure__ or (): yield from reached(cell.cell_contents, seen)
            for name in thing.__code__.co_names: yield from reached(thing.__globals__.get(name), seen)
        else:
            yield thing
Own(torch.nn.Linear(1, 1).parameters() if hasattr(torch, "nn") else [], lr=0.1)
taken = list(reached(Own.step, {}))
owned["by value"] = sorted({attempt(lambda x: b"torchpar" in pickle.dumps(x), value) for value in taken})
unpickled = [attempt(lambda x: bool(pickle.loads(pickle.dumps(x))), value) for value in taken if callable(value)]
owned["unpickled"] = unpickled in ([], ["True"])
if hasattr(torch, "nn"):
    torch.manual_seed(1)
    model = torch.nn.Linear(2, 1)
    for kind in (torch.optim.SGD, torch.optim.Adam):
        optimizer = kind(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for _ in range(2):
            model(torch.ones(1, 2)).sum().backward(); optimizer.step(); scheduler.step()
        # The pickle of a tensor is not the same twice, as it holds an address.
        pickled = pickle.dumps(optimizer)
        owned[kind.__name__] = [sorted(vars(optimizer)), repr(optimizer), b"torchpar" in pickled,
                                sorted(vars(copy.deepcopy(optimizer))), repr(optimizer.state_dict())]
'''

# The graphs that torch.compile makes of a step, of a step with its optimizer, and where it gives up on a loader.
COMPILE = '''
import sys
graphs = []
def backend(graph, inputs):
    graphs.append(graph.code)
    return graph.forward
if hasattr(torch, "compile") and sys.version_info < (3, 14):
    torch.manual_seed(1)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    @torch.compile(backend=backend)
    def forward(x): return model(x).relu().sum()
    @torch.compile(backend=backend)
    def step(x):
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss
    @torch.compile(backend=backend)
    def epoch(total):
        for batch in DataLoader(torch.ones(4, 2), 2): total = total + batch.sum() * 2
        return total
    graphs += [float(forward(torch.ones(3, 2))), float(step(torch.ones(3, 2))), float(epoch(torch.zeros(())))]
    import torch._dynamo
    graphs.append({str(k): v for k, v in torch._dynamo.utils.counters["graph_break"].items()})
'''

END = "print(json.dumps([seen, owned, graphs]))\n"


@pytest.mark.parametrize("fake", ["real"] if has_torch() else ["2.13", "1.13"])
@pytest.mark.parametrize("asked", [False, True], ids=["auto", "asked"])
def test_what_a_script_owns_is_as_without_torchpar(place: Place, asked: bool, fake: str) -> None:
    """Names, signatures, sources, pickles, copies and graphs; also where the conf asks for loader arguments."""
    script = LOOK + SAVE + COMPILE + END
    place.write("x.py", script)
    environment = {"OMP_NUM_THREADS": "2"} if has_torch() else {"PYTHONPATH": str(FAKE_TORCH), "FAKE_TORCH": fake}
    bare = place.python("x.py", **environment)
    assert bare.status == 0, bare.err
    settings = replace(JOB, pin_memory=True, prefetch_factor=3) if asked else JOB
    ours = train(place, script, settings=settings, fake=fake, loader_workers=2 * asked)
    # Addresses differ, and where torch is installed is of no interest.
    left_out = r" at 0x[0-9a-fA-F]+|/[^\"' ]*/(site-packages|fake_torch)"
    texts = [re.sub(left_out, "", outcome.out) for outcome in (bare, ours)]
    plain, job = map(json.loads, texts)
    # Within a constructor that is given something, torch.compile has more reasons for the same graphs.
    assert job[2][:-1] == plain[2][:-1] and (asked or job[2] == plain[2])
    for theirs, own in zip(plain[:2], job[:2]):
        assert own.keys() == theirs.keys()
        for name in theirs:
            assert own[name] == theirs[name], name
    assert "torchpar" not in texts[1] and b"torchpar".hex() not in texts[1]

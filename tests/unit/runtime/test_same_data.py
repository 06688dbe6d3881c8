"""What a job sees of its data is what its script sees alone: each of these loses or repeats some in a forked worker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.training import FAKE_TORCH, JOB, RANK, has_torch, told
from torchpar.contract.job import job_environment

pytestmark = pytest.mark.subprocess

BEGIN = """
import itertools, os, queue, sys, tempfile, threading
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
class Numbers(Dataset):
    def __len__(self): return 12
    def __getitem__(self, i): return i
def values(loader): return [[int(x) for x in batch] for batch in loader]
"""

# Iterable ones: nobody may give them workers, whatever the conf asks for.
STREAMS = {
    "lines of the standard input": """
        class Lines(IterableDataset):
            def __iter__(self): return (int(line) for line in sys.stdin)
        print(values(DataLoader(Lines(), 2)))
    """,
    "a buffer that the loop fills": """
        buffer = [0]
        class Replay(IterableDataset):
            def __iter__(self):
                while True: yield buffer[-1]
        batches = iter(DataLoader(Replay(), 1))
        for step in range(5):
            buffer.append(step)
            print([int(x) for x in next(batches)])
    """,
    "a queue that a thread fills": """
        ready = queue.Queue(2)
        def produce():
            for i in (*range(8), None): ready.put(i)
        class Decoded(IterableDataset):
            def __iter__(self): return iter(ready.get, None)
        threading.Thread(target=produce, daemon=True).start()
        print(values(DataLoader(Decoded(), 3)))
    """,
    "a window of an endless stream": """
        stream = itertools.cycle(range(7))
        class Window(IterableDataset):
            def __iter__(self): return itertools.islice(stream, 5)
        loader = DataLoader(Window(), 2)
        print([values(loader) for epoch in range(3)])
    """,
}

# These have workers only where the conf asks for them, and then the script's author has said so.
TABLES = {
    "a descriptor that the loop reads too": """
        file = tempfile.TemporaryFile(); file.write(bytes(range(12))); file.flush()
        def read(i):
            os.lseek(file.fileno(), i, os.SEEK_SET)
            return os.read(file.fileno(), 1)[0]
        class Records(Numbers):
            def __getitem__(self, i): return read(i)
        for batch in DataLoader(Records(), 3): print([int(x) for x in batch], read(0))
    """,
    "results kept on the samples": """
        class Sample: pass
        class Corpus(Dataset):
            def __init__(self): self.samples = [Sample() for _ in range(6)]
            def __len__(self): return 6
            def __getitem__(self, i): return self.samples[i]
        corpus = Corpus()
        for batch in DataLoader(corpus, 2, collate_fn=list):
            for sample in batch: sample.vector = 1
        print([hasattr(sample, "vector") for sample in corpus.samples])
    """,
    "a size that the collating counts to": """
        class Collate:
            batches = 0
            def __call__(self, samples):
                self.batches += 1
                return [self.batches // 3] * len(samples)
        loader = DataLoader(Numbers(), 2, collate_fn=Collate())
        print([values(loader) for epoch in range(2)])
    """,
    "a lambda that collates": """
        print(values(DataLoader(Numbers(), 4, collate_fn=lambda samples: [2 * x for x in samples])))
    """,
    "random numbers of the process": """
        torch.manual_seed(3)
        drawn = iter(range(1000))
        class Jittered(Numbers):
            def __getitem__(self, i): return i * 1000 + next(drawn)
        loader = DataLoader(Jittered(), 4, shuffle=True)
        print([values(loader) for epoch in range(2)])
    """,
    "an init function for workers": """
        count = [0]
        def init(worker): count[0] = 0
        class Jittered(Numbers):
            def __getitem__(self, i):
                count[0] += 1
                return count[0]
        loader = DataLoader(Jittered(), 4, worker_init_fn=init)
        print([values(loader) for epoch in range(3)])
    """,
    "a table that the loop changes": """
        class Table(Numbers):
            rows = list(range(12))
            def __getitem__(self, i): return self.rows[i]
        for batch in DataLoader(Table(), 4):
            print([int(x) for x in batch])
            Table.rows = [x + 100 for x in Table.rows]
    """,
    "a checkpoint by a fork in mid-epoch": """
        seen = 0
        for epoch in range(2):
            for step, batch in enumerate(DataLoader(Numbers(), 2)):
                seen += len(batch)
                if step % 3 == 1:
                    child = os.fork()
                    if not child: sys.exit(7)
                    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(seen)
    """,
    "a fresh iterator at every step": """
        loader = DataLoader(Numbers(), 3)
        before = len(os.listdir("/proc/self/fd"))
        print([[int(x) for x in next(iter(loader))] for step in range(50)])
        print(len(os.listdir("/proc/self/fd")) - before, "more files")
    """,
    "gradients in the collating": """
        if hasattr(torch, "nn"):
            torch.manual_seed(1)
            embedding = torch.nn.Embedding(12, 2)
            optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
            for batch in DataLoader(Numbers(), 4, collate_fn=lambda samples: embedding(torch.tensor(samples))):
                optimizer.zero_grad(); batch.sum().backward(); optimizer.step()
            print(embedding.weight.tolist())
    """,
}


def same(place: Place, text: str, workers: int) -> None:
    """Run a script alone and by run.py with a plan; what both print must be the same."""
    script = place.write("x.py", text)
    script.write_text(BEGIN + script.read_text(), encoding="utf-8")
    environment = {"OMP_NUM_THREADS": "2", **({} if has_torch() else {"PYTHONPATH": str(FAKE_TORCH)})}
    stdin = "".join(f"{number}\n" for number in range(10))
    bare = place.python(script, stdin=stdin, **environment)
    assert bare.status == 0, bare.err
    settings = replace(JOB, ranks=(replace(RANK, loader_workers=workers),))
    job = place.python(place.launcher, "--", script, stdin=stdin, **environment, **job_environment(settings))
    assert (job.status, job.out) == (0, bare.out), job.err
    assert told(job) == []


@pytest.mark.parametrize("name", [*STREAMS, *TABLES])
def test_a_job_sees_what_its_script_sees(place: Place, name: str) -> None:
    """Without a key in the conf that asks for workers."""
    same(place, {**STREAMS, **TABLES}[name], workers=0)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_stays_whole_whatever_the_conf_asks_for(place: Place, name: str) -> None:
    """LoaderWorkers= is for datasets with an index."""
    same(place, STREAMS[name], workers=2)

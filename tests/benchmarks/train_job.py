"""A training job for the benchmark, plain PyTorch: `train_job.py KIND`, with KIND mlp, conv, encoder or loader, and
for loader a number of workers, or none.

It trains until the window that /srv/bench/window names ("FIRST LAST", seconds of the monotonic clock) is over, and
writes steps per second, page faults per step and peak memory of that window into the folder it runs in.
"""

import json
import os
import resource
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Images that cost some work each, as decoding and augmentation do."""

    def __len__(self):
        return 1 << 20

    def __getitem__(self, index):
        """An image of 3 x 64 x 64 and its class."""
        image = torch.arange(3 * 64 * 64, dtype=torch.float32).reshape(3, 64, 64).mul_(index % 97 + 1).sin_()
        for _ in range(4):
            image = image.flip(2).roll(1, 1).mul(1.01).clamp(-1, 1)
        return image, index % 10


def make_job(kind, workers):
    """A model, and an endless iterator over batches of inputs and classes. Sizes are those of the measured facts."""
    torch.manual_seed(1)
    if kind == "mlp":
        model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        return model, same(torch.randn(64, 784), torch.randint(10, (64,)))
    if kind == "conv":
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
        return model, same(torch.randn(32, 3, 64, 64), torch.randint(10, (32,)))
    if kind == "encoder":
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        model = nn.Sequential(nn.TransformerEncoder(layer, 4), nn.Flatten(), nn.Linear(64 * 256, 10))
        return model, same(torch.randn(8, 64, 256), torch.randint(10, (8,)))
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 10))
    # Without a wish the call is as most people write it, which an injected number needs.
    wish = {"num_workers": int(workers[0])} if workers else {}
    return model, iter(DataLoader(Images(), batch_size=32, **wish))


def same(inputs, classes):
    """The same batch for ever."""
    while True:
        yield inputs, classes


def main():
    """Train, and measure the window."""
    model, batches = make_job(sys.argv[1], sys.argv[2:])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss_of = nn.CrossEntropyLoss()
    with open("/srv/bench/window", encoding="ascii") as file:
        first, last = map(float, file.read().split())
    begin = end = None
    steps = 0
    while True:
        inputs, classes = next(batches)
        optimizer.zero_grad()
        loss_of(model(inputs), classes).backward()
        optimizer.step()
        now = time.monotonic()
        if begin is None and now >= first:
            begin, faults = now, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        elif begin is not None and end is None:
            steps += 1
            if now >= last:
                end, faults = now, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        # A little longer, so that a neighbour is not alone at the end of its own measurement.
        if end is not None and now >= last + 1:
            break
    result = {
        "rate": steps / (end - begin),
        "faults": faults / steps,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
    }
    with open(f"result-{os.getpid()}.new", "w", encoding="ascii") as file:
        json.dump(result, file)
    os.replace(f"result-{os.getpid()}.new", f"result-{os.getpid()}.json")


if __name__ == "__main__":
    main()

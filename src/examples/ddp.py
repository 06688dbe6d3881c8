"""Distributed data parallel, the way to train on several CPUs' nodes, GPUs or hosts; it can be stopped and goes on.

    [Train example]
    Script=/usr/share/torchpar/examples/ddp.py
    Ranks=numa

Each rank has its own part of the data; gradients are averaged at every step. `systemctl stop` makes stop_requested()
true in all ranks at the same step: the first saves, all end. `systemctl start` goes on from there.
"""

import itertools
import os
import pathlib
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import torchpar.runtime

CHECKPOINT = pathlib.Path(os.environ.get("STATE_DIRECTORY", ".")) / "checkpoint.pt"
EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 5


def save(model, optimizer, step):
    """Write beside the file first: it is whole at any moment, also when the host loses power."""
    beside = CHECKPOINT.with_suffix(".new")
    with beside.open("wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(CHECKPOINT)
    print(f"saved at step {step}", flush=True)


def main():
    job = torchpar.runtime.init()
    torch.manual_seed(0)
    model = job.wrap(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    inputs = torch.randn(4096, 20)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    sampler = DistributedSampler(data, job.world_size, job.rank)
    loader = DataLoader(data, batch_size=32, sampler=sampler)

    step = 0
    if CHECKPOINT.exists():
        saved = torch.load(CHECKPOINT, map_location=job.device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
        print(f"rank {job.rank} goes on at step {step}", flush=True)

    first_epoch, done = divmod(step, len(loader))
    for epoch in range(first_epoch, EPOCHS):
        sampler.set_epoch(epoch)
        for x, y in itertools.islice(loader, done, None):
            loss = nn.functional.mse_loss(model(x.to(job.device)), y.to(job.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if torchpar.runtime.stop_requested():
                if job.rank == 0:
                    save(model, optimizer, step)
                return
        done = 0
        if job.rank == 0:
            print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.4f}", flush=True)
            save(model, optimizer, step)


if __name__ == "__main__":
    main()

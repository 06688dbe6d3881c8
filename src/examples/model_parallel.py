"""Model parallel: one model on several devices of one rank, for models that are too large for one of them.

    [Train example]
    Script=/usr/share/torchpar/examples/model_parallel.py
    Ranks=gpu
    GPUsPerRank=2

Each rank has two GPUs; DistributedDataParallel between ranks works as ever. Without GPUs both halves are on the CPU.
"""

import torch
from torch import nn

import torchpar.runtime


class TwoHalves(nn.Module):
    """The first half on one device, the second on another; what is between them travels."""

    def __init__(self, first, second):
        super().__init__()
        self.second_device = second
        self.first = nn.Sequential(nn.Linear(20, 64), nn.ReLU()).to(first)
        self.second = nn.Linear(64, 1).to(second)

    def forward(self, x):
        return self.second(self.first(x).to(self.second_device))


job = torchpar.runtime.init()
first, second = job.devices[0], job.devices[-1]
torch.manual_seed(0)
model = job.wrap(TwoHalves(first, second))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
torch.manual_seed(job.rank)  # other data in each rank

for _ in range(200):
    x = torch.randn(64, 20)
    loss = nn.functional.mse_loss(model(x.to(first)), x.sum(1, keepdim=True).to(second))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if torchpar.runtime.stop_requested():
        break
if job.rank == 0:
    print(f"loss {loss.item():.4f} on {first} and {second}, {job.world_size} rank(s)", flush=True)

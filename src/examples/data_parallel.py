"""One process, several GPUs: torch.nn.DataParallel. Better is ddp.py.

    [Train example]
    Script=/usr/share/torchpar/examples/data_parallel.py
    GPUs=2

DataParallel copies the model to every GPU at each step, from threads of one Python process that wait for each other,
and collects all outputs on the first GPU. DistributedDataParallel has a process for each GPU, copies nothing but
gradients, while it still computes, and works over several hosts. On CPUs DataParallel only calls the model.
"""

import torch
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.DataParallel(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1)).to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

for _ in range(200):
    inputs = torch.randn(64, 20, device=device)
    loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.4f} on {max(1, torch.cuda.device_count())} device(s)", flush=True)

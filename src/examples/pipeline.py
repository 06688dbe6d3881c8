"""Pipeline parallel: each rank has a part of the model, and works on one part of a batch while the next has another.

    [Train example]
    Script=/usr/share/torchpar/examples/pipeline.py
    Ranks=2

By torch.distributed.pipelining where this torch has it (2.5 and newer), else by sending the parts from rank to rank.
"""

import torch
import torch.distributed as dist
from torch import nn

import torchpar.runtime

try:
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
except ImportError:
    PipelineStage = None

BATCH, PARTS, WIDTH = 64, 4, 64


def train_by_pipelining(job, stage, optimizer, steps):
    """torch's own schedule: all parts of a batch forward, then all backward."""
    schedule = ScheduleGPipe(
        PipelineStage(stage, job.rank, job.world_size, job.device), PARTS, loss_fn=nn.functional.mse_loss
    )
    for x, y in steps:
        losses = []
        optimizer.zero_grad()
        if job.rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y, losses=losses)
        optimizer.step()
    return sum(losses) / PARTS if losses else None


def train_by_messages(job, stage, optimizer, steps):
    """Does the same for two ranks, by hand: activations go up, gradients come down."""
    loss = None
    for x, y in steps:
        optimizer.zero_grad()
        if job.rank == 0:
            outputs = [stage(part) for part in x.chunk(PARTS)]
            sending = [dist.isend(output.detach(), 1, tag=i) for i, output in enumerate(outputs)]
            for i, output in enumerate(outputs):
                gradient = torch.empty_like(output)
                dist.recv(gradient, 1, tag=i)
                output.backward(gradient)
            for work in sending:
                work.wait()
        else:
            for i, part in enumerate(y.chunk(PARTS)):
                received = torch.empty(BATCH // PARTS, WIDTH, device=job.device)
                dist.recv(received, 0, tag=i)
                loss = nn.functional.mse_loss(stage(received.requires_grad_()), part)
                (loss / PARTS).backward()
                dist.send(received.grad, 0, tag=i)
        optimizer.step()
    return loss


def main():
    job = torchpar.runtime.init()
    if job.world_size != 2:
        raise SystemExit("this example has a model of two parts: set Ranks=2")
    torch.manual_seed(0)  # the same data in both ranks
    parts = nn.Sequential(nn.Linear(20, WIDTH), nn.ReLU()), nn.Linear(WIDTH, 1)
    stage = parts[job.rank].to(job.device)
    # Adam, as torch 2.6 sums the gradients of the parts, and newer versions average them.
    optimizer = torch.optim.Adam(stage.parameters(), lr=0.01)
    inputs = [torch.randn(BATCH, 20, device=job.device) for _ in range(200)]
    steps = [(x, x.sum(1, keepdim=True)) for x in inputs]
    train = train_by_pipelining if PipelineStage else train_by_messages
    loss = train(job, stage, optimizer, steps)
    if job.rank == 1:
        print(f"loss {loss.item():.4f} after {len(steps)} steps on {job.world_size} ranks", flush=True)


if __name__ == "__main__":
    main()

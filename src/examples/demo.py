"""The demo: a small character-level transformer learns the licence texts that every Debian host has.

Plain PyTorch (1.13 or newer), without a word of torchpar: placement, threads and malloc are systemd's affair. It saves
a checkpoint now and then, goes on from it when it is started again, and leaves model.pt, a TorchScript model.
"""

import math
import os
import pathlib
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

TEXTS = pathlib.Path("/usr/share/common-licenses")
STATE = pathlib.Path(os.environ.get("STATE_DIRECTORY", "."))
CHECKPOINT = STATE / "checkpoint.pt"
MODEL = STATE / "model.pt"

CONTEXT = 64  # characters that the model sees
BATCH = 64
WIDTH = 96
LAYERS = 2
STEPS = 500
REPORT_SECONDS = 2.0
SAVE_SECONDS = 10.0


def read_text():
    """Reads all licences, each once: several names there are links to one file. Only ASCII is kept."""
    files = sorted({path.resolve() for path in TEXTS.iterdir() if path.is_file()})
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in files)
    return "".join(character for character in text if character == "\n" or " " <= character <= "~")


class Windows(Dataset):
    """Pieces of the text, CONTEXT characters each, from random places; the same places in every run."""

    def __init__(self, data, count, seed):
        places = torch.Generator().manual_seed(seed)
        self.starts = torch.randint(len(data) - CONTEXT - 1, (count,), generator=places)
        self.data = data

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        start = int(self.starts[index])
        piece = self.data[start : start + CONTEXT + 1]
        return piece[:-1], piece[1:]


class Block(nn.Module):
    """Attention to what came before, then a small network; both add to what they got."""

    def __init__(self):
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, num_heads=4, batch_first=True)
        self.norm_network = nn.LayerNorm(WIDTH)
        self.network = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x, mask):
        y = self.norm_attention(x)
        y, _ = self.attention(y, y, y, attn_mask=mask, need_weights=False)
        x = x + y
        return x + self.network(self.norm_network(x))


class CharacterModel(nn.Module):
    """Characters in, as numbers of shape (batch, length); out for each place the scores of the next character."""

    def __init__(self, vocabulary: str):
        super().__init__()
        self.vocabulary = vocabulary  # the character of each number; stays in the saved model
        self.characters = nn.Embedding(len(vocabulary), WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, len(vocabulary))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        length = numbers.size(1)
        places = torch.arange(length, device=numbers.device)
        # True hides a place: nobody sees what comes after.
        mask = torch.ones(length, length, dtype=torch.bool, device=numbers.device).triu(1)
        x = self.characters(numbers) + self.places(places)
        for block in self.blocks:
            x = block(x, mask)
        return self.scores(self.norm(x))


def loss_of(model, inputs, targets):
    """Returns the mean surprise per character, in nats."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def held_out_loss(model, data):
    """Returns the loss on text that was not trained on."""
    model.eval()
    losses = [loss_of(model, *batch).item() for batch in DataLoader(Windows(data, 20 * BATCH, seed=1), BATCH)]
    model.train()
    return sum(losses) / len(losses)


def save(what, path):
    """Write beside the file first, so that it is whole at any moment."""
    beside = path.with_suffix(".new")
    torch.save(what, beside)
    beside.replace(path)


def save_model(model):
    """model.pt is all that a server needs: the network, and its `vocabulary`."""
    model.eval()
    beside = MODEL.with_suffix(".new")
    torch.jit.script(model).save(str(beside))
    beside.replace(MODEL)
    print(f"model saved to {MODEL}", flush=True)


def main():
    torch.manual_seed(0)
    text = read_text()
    vocabulary = "".join(sorted(set(text)))
    number = {character: i for i, character in enumerate(vocabulary)}
    data = torch.tensor([number[character] for character in text])
    # The last tenth is only for testing.
    split = len(data) * 9 // 10
    train, test = data[:split], data[split:]
    shares = torch.bincount(data).float() / len(data)
    entropy = -(shares * shares.log()).nansum().item()
    print(f"{len(data)} characters, {len(vocabulary)} different; unigram entropy {entropy:.3f} nats", flush=True)

    model = CharacterModel(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    step = 0
    if CHECKPOINT.exists():
        saved = torch.load(CHECKPOINT)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
        print(f"resumed at step {step}", flush=True)
    if step >= STEPS:
        print("already trained to the end", flush=True)
        if not MODEL.exists():
            save_model(model)
        return

    windows = Windows(train, STEPS * BATCH, seed=0)
    windows.starts = windows.starts[step * BATCH :]
    saved_at = reported_at = time.monotonic()
    reported_step = step
    for inputs, targets in DataLoader(windows, BATCH):
        step += 1
        for group in optimizer.param_groups:
            # Warm up for 50 steps, then down to a twentieth along a cosine.
            group["lr"] = 3e-3 * min(1.0, step / 50) * (0.525 + 0.475 * math.cos(math.pi * step / STEPS))
        loss = loss_of(model, inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        now = time.monotonic()
        if now - reported_at >= REPORT_SECONDS or step == STEPS:
            speed = (step - reported_step) * BATCH * CONTEXT / (now - reported_at)
            print(f"step {step}/{STEPS}  loss {loss.item():.3f}  {speed:.0f} tokens/s", flush=True)
            reported_at, reported_step = now, step
        if now - saved_at >= SAVE_SECONDS or step == STEPS:
            save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, CHECKPOINT)
            saved_at = now

    loss = held_out_loss(model, test)
    print(f"held-out loss {loss:.3f} nats, {100 * loss / entropy:.0f} % of the unigram entropy", flush=True)
    save_model(model)


if __name__ == "__main__":
    main()

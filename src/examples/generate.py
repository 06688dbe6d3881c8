"""Serves the demo's model: text that goes on like the licences that it has read.

    $ curl -d '{"text": "Permission is"}' http://localhost:8000/predict

A handler for torchpar's inference server: `load` runs once, `predict` for every batch. The model is the TorchScript
file that the training job left.
"""

import torch

MODEL = "/var/lib/torchpar/train/demo/model.pt"

CONTEXT = 64  # characters that the model sees
LENGTH = 100  # characters that are added
CHOICES = 3

INPUTS = [("text", "BYTES", (-1,))]
# The text with its continuation; the characters that are most likely to come next, and how likely they are.
OUTPUTS = [("text", "BYTES", (-1,)), ("next", "BYTES", (-1, CHOICES)), ("probability", "FP32", (-1, CHOICES))]

# Each text is as long as it likes, so there is nothing to gain from several at once.
MAX_BATCH = 1


def load():
    global model, number
    model = torch.jit.load(MODEL).eval()
    number = {character: i for i, character in enumerate(model.vocabulary)}


def example():
    return {"text": [b"Permission is"]}


def scores_after(text):
    """Returns the model's scores of each character of its vocabulary to be the next."""
    known = [number[character] for character in text if character in number][-CONTEXT:]
    return model(torch.tensor([known or [number["\n"]]]))[0, -1]


@torch.inference_mode()
def predict(batch):
    text = batch["text"][0].decode(errors="ignore")
    likely = scores_after(text).softmax(0).topk(CHOICES)
    choice = torch.Generator().manual_seed(0)  # the same text gets the same answer
    for _ in range(LENGTH):
        # Below 1, likely characters become likelier: fewer slips, less variety.
        share = (scores_after(text) / 0.6).softmax(0)
        text += model.vocabulary[int(torch.multinomial(share, 1, generator=choice))]
    following = [model.vocabulary[int(place)].encode() for place in likely.indices]
    return {"text": [text.encode()], "next": [following], "probability": likely.values[None]}

"""Continue texts, byte by byte, with a small GPT: on the .txt files of a folder, and on made-up sums where there are none."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import samestep

PARTS = {"train": range(8), "eval": [8], "test": [9]}  # of every ten rows


class Mine(samestep.Task):
    unit = "tokens"

    folder: str = "data"
    context: int = 64
    width: int = 64
    layers: int = 2

    def data(self, split):
        """Rows of context + 1 bytes, end to end; `samestep evaluate RUN --data test` asks for the third part."""
        files = sorted(Path(self.folder).rglob("*.txt"))
        text = b"\n".join(file.read_bytes() for file in files) if files else made_up()
        whole = len(text) // (self.context + 1) * (self.context + 1)
        rows = np.frombuffer(text[:whole], np.uint8).reshape(-1, self.context + 1)
        return {"tokens": rows[np.isin(np.arange(len(rows)) % 10, PARTS[split])]}

    def model(self):
        return Model(self.context, self.width, self.layers)

    def loss(self, model, batch):
        tokens = batch["tokens"].long()
        scores = model(tokens[:, :-1]).flatten(0, 1)
        return samestep.mean(F.cross_entropy(scores, tokens[:, 1:].flatten(), reduction="none"))

    def show(self, model):
        """Printed when the run is done."""
        device = next(model.parameters()).device
        text = b"7 + 5 ="
        while len(text) < 2 * self.context:
            seen = torch.tensor([list(text[-self.context :])], device=device)
            text += bytes([int(model(seen)[0, -1].argmax())])
        return text.decode(errors="replace")


class Model(nn.Module):
    def __init__(self, context, width, layers):
        super().__init__()
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.token(tokens) + self.place(torch.arange(length, device=tokens.device))
        mask = torch.full((length, length), float("-inf"), device=tokens.device).triu(1)
        return self.head(self.blocks(x, mask=mask, is_causal=True))


def made_up():
    pairs = np.random.default_rng(0).integers(0, 50, (4000, 2)).tolist()
    return "\n".join(f"{one} + {other} = {one + other}" for one, other in pairs).encode()

"""Learn what images have in common, without labels: two views of one lie close, those of others apart (SimCLR).

On the images of a folder, with pip install 'samestep[images]', or on made-up ones where there are none.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import samestep

PARTS = {"train": range(8), "eval": [8], "test": [9]}  # of every ten images


class Mine(samestep.Task):
    folder: str = "data"
    size: int = 32
    width: int = 16
    temperature: float = 0.2

    def data(self, split):
        """A list of rows; `samestep evaluate RUN --data test` asks for the third part."""
        files = sorted(file for kind in ("png", "jpg", "jpeg") for file in Path(self.folder).rglob(f"*.{kind}"))
        rows = [{"file": str(file)} for file in files] or made_up()
        return [row for number, row in enumerate(rows) if number % 10 in PARTS[split]]

    def transform(self, row, rng):
        """Two views of a row; rng depends on (seed, epoch, row) alone."""
        image = read(row["file"], self.size) if "file" in row else row["image"]
        return {"one": view(image, rng), "other": view(image, rng)}

    def model(self):
        width = self.width
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.GroupNorm(4, 4 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 128), nn.ReLU(), nn.Linear(128, 32),
        )  # fmt: skip

    def scores(self, model, batch):
        """How alike all views of a micro-batch are, and where the other view of each stands.

        A row is told apart from those of its micro-batch, at any number of processes: micro_batch_size is part of the loss.
        """
        found = F.normalize(model(torch.cat([batch["one"], batch["other"]])).float(), dim=1)
        alike = found @ found.T / self.temperature
        itself = torch.eye(len(found), dtype=torch.bool, device=found.device)
        return alike.masked_fill(itself, -1e9), torch.arange(len(found), device=found.device).roll(len(found) // 2)

    def loss(self, model, batch):
        scores, other = self.scores(model, batch)
        return samestep.mean(F.cross_entropy(scores, other, reduction="none"))

    def metrics(self, model, batch):
        scores, other = self.scores(model, batch)
        loss = F.cross_entropy(scores, other, reduction="none")
        return {"loss": samestep.mean(loss), "found": samestep.mean(scores.argmax(1) == other)}


def view(image, rng):
    """A random crop of three quarters, mirrored or not, with another brightness."""
    size = len(image)
    top, left = rng.integers(0, size // 4 + 1, 2)
    crop = image[top : top + size * 3 // 4, left : left + size * 3 // 4].astype(np.float32) / 127.5 - 1
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return np.ascontiguousarray((crop * rng.uniform(0.6, 1.4)).transpose(2, 0, 1).astype(np.float32))


def read(file, size):
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB").resize((size, size)))


def made_up(size=32):
    """Stripes, each image with a colour, a slope and a width of its own."""
    rng, rows = np.random.default_rng(0), []
    y, x = np.mgrid[:size, :size]
    for _ in range(1000):
        slope, waves = rng.uniform(0, np.pi), rng.uniform(0.2, 1.2)
        bright = 0.5 + 0.5 * np.sin(waves * (x * np.cos(slope) + y * np.sin(slope)))
        rows.append({"image": (bright[..., None] * rng.integers(60, 256, 3)).astype(np.uint8)})
    return rows

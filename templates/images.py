"""Classify images: a folder for each class, data/cat/1.png, data/dog/7.jpg; made-up shapes where there is no such folder.

pip install 'samestep[images]' reads images of one's own.
"""

from pathlib import Path

import numpy as np
from torch import nn
from torch.nn import functional as F

import samestep

PARTS = {"train": range(8), "eval": [8], "test": [9]}  # of every ten images


class Mine(samestep.Task):
    folder: str = "data"
    classes: int = 3  # as many as the folder has folders
    size: int = 32
    width: int = 16

    def data(self, split):
        """A list of rows; `samestep evaluate RUN --data test` asks for the third part."""
        names = sorted(path.name for path in Path(self.folder).glob("*/"))
        rows = [
            {"file": str(file), "label": label}
            for label, name in enumerate(names)
            for file in sorted(Path(self.folder, name).iterdir())
            if file.suffix.lower() in (".png", ".jpg", ".jpeg")
        ]
        if rows and len(names) != self.classes:
            raise ValueError(f"{self.folder} has {len(names)} folders; write with.classes={len(names)}")
        chosen = [row for number, row in enumerate(rows or made_up()) if number % 10 in PARTS[split]]
        return [{**row, "augment": split == "train"} for row in chosen]

    def transform(self, row, rng):
        """Reads a row, and augments it in training; rng depends on (seed, epoch, row) alone."""
        image = read(row["file"], self.size) if "file" in row else row["image"]
        if row["augment"] and rng.random() < 0.5:
            image = image[:, ::-1]
        return {"image": image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1, "label": row["label"]}

    def model(self):
        width = self.width
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.GroupNorm(4, 4 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, self.classes),
        )  # fmt: skip

    def loss(self, model, batch):
        return samestep.mean(F.cross_entropy(model(batch["image"]), batch["label"], reduction="none"))

    def metrics(self, model, batch):
        scores, label = model(batch["image"]), batch["label"]
        loss = F.cross_entropy(scores, label, reduction="none")
        return {"loss": samestep.mean(loss), "accuracy": samestep.mean(scores.argmax(1) == label)}


def read(file, size):
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB").resize((size, size)))


def made_up(size=32):
    """Discs, squares and crosses, each of a colour and at a place of its own."""
    rng, rows = np.random.default_rng(0), []
    for label in rng.integers(0, 3, 1500).tolist():
        image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
        y, x = np.abs(np.mgrid[:size, :size] - rng.integers(8, size - 8, (2, 1, 1)))
        shapes = x**2 + y**2 < 36, np.maximum(x, y) < 6, (np.minimum(x, y) < 2) & (np.maximum(x, y) < 7)
        image[shapes[label]] = rng.integers(120, 256, 3)
        rows.append({"image": image, "label": label})
    return rows

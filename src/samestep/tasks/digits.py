"""Scikit-learn's handwritten digits and a small convolutional network."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn
from torch.nn import functional as F

from samestep.errors import UsageError
from samestep.task import Batch, Ratio, Task

_HELD_OUT = 5  # every fifth image is for evaluation


class Digits(Task):
    """1,797 images of 8 × 8 pixels, ten classes; accuracy in evaluation."""

    channels: int = 16
    dropout: float = 0.1

    def data(self, split: str) -> dict[str, Any] | None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UsageError("task: digits needs scikit-learn; write pip install 'samestep[digits]'") from None
        found = load_digits()
        held_out = np.arange(len(found.target)) % _HELD_OUT == 0
        chosen = held_out if split == "eval" else ~held_out
        images = (found.images[chosen] / 16).astype(np.float32)
        return {"image": images.reshape(len(images), 64), "digit": found.target[chosen]}

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, self.channels, 3, padding=1),
            nn.BatchNorm2d(self.channels),
            nn.ReLU(),
            nn.Conv2d(self.channels, 2 * self.channels, 3, padding=1),
            nn.BatchNorm2d(2 * self.channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(2 * self.channels * 16, 10),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        return F.cross_entropy(model(batch["image"]), batch["digit"], reduction="sum"), len(batch["digit"])

    def metrics(self, model: nn.Module, batch: Batch) -> dict[str, Ratio]:
        logits = model(batch["image"])
        count = len(batch["digit"])
        loss = F.cross_entropy(logits, batch["digit"], reduction="sum")
        return {"loss": (loss, count), "accuracy": ((logits.argmax(1) == batch["digit"]).sum(), count)}

"""The seed example: a line through random samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from samestep.task import Batch, Ratio, Task


class Regression(Task):
    """Linear(10, 1) on 100 samples of random numbers, mean squared error."""

    samples: int = 100
    features: int = 10

    def data(self, split: str) -> dict[str, Any] | None:
        if split != "train":
            return None
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.samples, self.features), dtype=np.float32)
        y = rng.standard_normal((self.samples, 1), dtype=np.float32)
        return {"x": x, "y": y}

    def model(self) -> nn.Module:
        return nn.Linear(self.features, 1)

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        errors = model(batch["x"]) - batch["y"]
        return errors.square().sum(), errors.numel()

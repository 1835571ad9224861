"""Tasks that are hard to keep the bits of, for `test_same_bits.py`."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from samestep import Task

Batch = dict[str, torch.Tensor]
Ratio = tuple[torch.Tensor, int]


class Augmented(Task):
    """A random transform, drawn from the row's own generator and from the global one."""

    def data(self, split: str) -> datasets.Dataset | None:
        rng = np.random.default_rng(1)
        return datasets.Dataset.from_dict({"x": rng.standard_normal((90, 9), dtype=np.float32)}) if split == "train" else None

    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        noise = rng.standard_normal(9).astype(np.float32) + np.float32(np.random.rand())
        return {"x": row["x"] + noise * 0.1}

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(9, 17), nn.GELU(), nn.Dropout(0.2), nn.Linear(17, 9))

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        return F.mse_loss(model(batch["x"]), batch["x"], reduction="sum"), batch["x"].numel()


class Wide(Augmented):
    """Eight million parameters: several DDP buckets."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(9, 2000), nn.ReLU(), nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 2000), nn.ReLU(),
                             nn.Linear(2000, 9))  # fmt: skip


class _Hard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.frozen = nn.Linear(5, 7)
        self.inward, self.outward = nn.Linear(7, 13, bias=False), nn.Linear(13, 13, bias=False)
        self.again = nn.Linear(13, 13, bias=False)
        self.again.weight = self.outward.weight
        self.sometimes, self.never = nn.Linear(13, 13), nn.Linear(13, 13)
        self.head = nn.Linear(13, 1)
        self.frozen.requires_grad_(False)
        self.table: torch.Tensor
        self.register_buffer("table", torch.rand(32) / 3)
        self.convolution.weight.data = self.convolution.weight.data.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.convolution(x.to(memory_format=torch.channels_last))).relu().mean((2, 3))
        hidden = F.dropout(self.inward(self.frozen(hidden)), 0.1, self.training)
        hidden = self.again(torch.tanh(self.outward(hidden)))
        if x.mean() > 0:  # true of some micro-batches only
            hidden = hidden + self.sometimes(hidden)
        out: torch.Tensor = self.head(hidden) + self.table.sum()
        return out


class Hard(Task):
    """channels_last, a parameter used only now and then and one never, tied weights, a frozen part, odd widths."""

    def data(self, split: str) -> datasets.Dataset | None:
        rng = np.random.default_rng(2)
        size = 85 if split == "train" else 21
        return datasets.Dataset.from_dict({"x": rng.standard_normal((size, 1, 6, 6), dtype=np.float32)})

    def model(self) -> nn.Module:
        return _Hard()

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        return (model(batch["x"]).squeeze(1) - batch["x"].mean((1, 2, 3))).square().sum(), len(batch["x"])


class _Recomputed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(9, 17), nn.GELU(), nn.Dropout(0.2))
        self.head, self.reentrant = nn.Linear(17, 9), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant))
        return out


class Recomputed(Augmented):
    """Activation checkpointing around a part with dropout, whose random numbers must be drawn again as they were."""

    reentrant: bool = False

    def model(self) -> nn.Module:
        return _Recomputed(self.reentrant)

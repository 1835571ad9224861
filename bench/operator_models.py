"""Four models whose steps are counted, as deep as those that people train and as narrow as counting allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from samestep import Task
from samestep.task import Batch, Ratio
from samestep.tasks.gpt import GPT

CLASSES, TOKENS = 10, 16


class _Conv(nn.Module):
    """A convolution and its BatchNorm, as ResNets have them."""

    def __init__(self, inward: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inward, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = F.relu(self.norm(self.conv(x)))
        return out


class _Convs(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_Conv(3 if place == 0 else 8, 8) for place in range(count)])
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = conv(x)
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


class _Layer(nn.Module):
    """A pre-norm transformer block; `dropped` is the share of rows whose branches it leaves out."""

    def __init__(self, width: int, dropped: float = 0.0) -> None:
        super().__init__()
        self.dropped = dropped
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(rows, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self._drop(self.out(mixed.transpose(1, 2).reshape(rows, length, width)))
        return x + self._drop(self.down(F.gelu(self.up(self.second(x)))))

    def _drop(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.dropped:
            return branch
        kept = 1 - self.dropped
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(kept).div_(kept)


class _Layers(nn.Module):
    """Twelve or eighteen blocks over patches, or over tokens of which some are padding."""

    def __init__(self, layers: int, dropped: float = 0.0, masked: bool = False) -> None:
        super().__init__()
        width = 16
        self.inward = nn.Embedding(256, width) if masked else nn.Linear(48, width)
        self.layers = nn.ModuleList([_Layer(width, dropped * place / layers) for place in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = None
        if x.dtype == torch.int64:
            mask = (x != 0)[:, None, None, :]
        else:
            x = x.reshape(len(x), TOKENS, 48)
        hidden = self.inward(x)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        out: torch.Tensor = self.head(self.norm(hidden).mean(1))
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt": lambda: GPT(context=TOKENS, width=16, layers=12, heads=2, dropout=0.0),
    "batchnorms": lambda: _Convs(53),
    "layernorms": lambda: _Layers(18),
    "droppath": lambda: _Layers(12, dropped=0.2),
    "masked": lambda: _Layers(12, masked=True),
}


def loss_of(name: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor, reduction: str) -> torch.Tensor:
    logits = model(x)
    return F.cross_entropy(logits.flatten(0, -2).float(), (x if name == "gpt" else y).flatten(), reduction=reduction)


def rows_of(name: str, count: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(1, 256, (count, TOKENS), generator=draw)
    if name == "masked":
        x[:, TOKENS // 2 :] = 0
    if name not in ("gpt", "masked"):
        x = torch.randn(count, 3, TOKENS, TOKENS, generator=draw)
    return {"x": x, "y": torch.randint(CLASSES, (count,), generator=draw)}


class Counted(Task):
    name: str

    def data(self, split: str) -> dict[str, torch.Tensor] | None:
        return rows_of(self.name, 256) if split == "train" else None

    def model(self) -> nn.Module:
        return MODELS[self.name]()

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        loss = loss_of(self.name, model, batch["x"], batch["y"], "sum")
        return loss, batch["x" if self.name == "gpt" else "y"].numel()

"""What is timed: three models with their data and loss, in torch alone, so that every contender trains the same thing.

Every contender calls `Workload.loss` once a micro-batch, and there the clock ticks: one instrument for all of them.
"""

from __future__ import annotations

import json
import math
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

WINDOWS = 25  # the first five are not counted


class Clock:
    """Notes wall and CPU time at every window of micro-batches, and writes them to $BENCH_CLOCK when all have ticked.

    $BENCH_TICKS says how many micro-batches this process is going to compute.
    """

    def __init__(self) -> None:
        self._ticks, self._total = 0, int(os.environ.get("BENCH_TICKS", 0))
        self._window = max(1, self._total // WINDOWS)
        self._notes: list[tuple[int, float, float]] = []
        self._second: tuple[float, float] | None = None  # wall and CPU time when the second step began

    def tick(self) -> None:
        self._ticks += 1
        if self._ticks % self._window == 0:
            self._notes.append((self._ticks, time.perf_counter(), time.process_time()))
        if self._ticks == 1 + int(os.environ.get("BENCH_ACCUMULATE", 1)):
            self._second = time.time(), time.process_time()
        if self._ticks == self._total:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            second, second_cpu = self._second or (None, None)
            found = {"notes": self._notes, "second": second, "second_cpu": second_cpu, "peak_kib": peak}
            Path(f"{os.environ['BENCH_CLOCK']}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


clock = Clock()


@dataclass(frozen=True)
class Workload:
    """A model, its rows and its loss.

    Args:
        batch: rows of a micro-batch.
        steps: optimizer steps of a timed run, on one process and on two: many, where wandb begins beside them.
        kind: "squares", "classes" or "tokens": what the loss is.
    """

    make: Callable[[], nn.Module]
    rows: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    batch: int
    steps: tuple[int, int]
    kind: str
    lr: float = 1e-3

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        return self.rows()

    def loss(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        clock.tick()
        out = model(x)
        if self.kind == "squares":
            return F.mse_loss(out, y, reduction=reduction)
        return F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction=reduction)

    def score(self, model: nn.Module) -> float:
        """The loss over all rows, or the first 512 of text: contenders that trained the same thing come to much the same."""
        x, y = (tensor if self.kind != "tokens" else tensor[:512] for tensor in self.data())
        model.eval()
        with torch.no_grad():
            out = model(x)
        return float(F.mse_loss(out, y) if self.kind == "squares" else F.cross_entropy(out.flatten(0, -2), y.flatten()))


def _line_rows() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(4096, 10)
    return x, x @ torch.randn(10, 1) + 0.1 * torch.randn(4096, 1)


def _image_rows() -> tuple[torch.Tensor, torch.Tensor]:
    patterns, digits = torch.randn(10, 64), torch.randint(0, 10, (4096,))
    return patterns[digits] + torch.randn(4096, 64), digits


def _text_rows() -> tuple[torch.Tensor, torch.Tensor]:
    text = (Path(__file__).parent.parent / "README.md").read_bytes() * 40
    starts = torch.randint(0, len(text) - 65, (4096,)).tolist()
    tokens = torch.tensor([list(text[start : start + 65]) for start in starts])
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        inner: torch.Tensor = self.down(F.gelu(self.up(self.norms[1](x))))
        return x + inner


class _GPT(nn.Module):
    def __init__(self, width: int = 128, layers: int = 4, context: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[_Block(width, 4) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=1 / math.sqrt(width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        logits: torch.Tensor = self.head(self.norm(self.blocks(x)))
        return logits


WORKLOADS = {
    "tiny": Workload(lambda: nn.Linear(10, 1), _line_rows, batch=32, steps=(30_000, 5000), kind="squares"),
    "cnn": Workload(_cnn, _image_rows, batch=64, steps=(500, 500), kind="classes"),
    "gpt": Workload(_GPT, _text_rows, batch=8, steps=(75, 75), kind="tokens"),
}

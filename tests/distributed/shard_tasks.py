"""Models whose blocks are gathered one at a time, for `test_sharding.py`."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.nn import functional as F

from samestep import Task
from samestep.tasks.text import Text

if "NODES" in os.environ:  # of each rank, "aabb"
    os.environ["_SAMESTEP_NODE"] = os.environ["NODES"][int(os.environ.get("RANK", "0"))]

Batch = dict[str, torch.Tensor]
_calls = 0


class _Chain(nn.Module):
    """Odd widths, BatchNorm, dropout, a tied weight, one of a single number, a frozen part, one never or seldom used."""

    def __init__(self, skips: bool, in_evaluation: bool = False) -> None:
        super().__init__()
        self.inward = nn.Linear(5, 21)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(21, 13), nn.BatchNorm1d(13), nn.ReLU(), nn.Dropout(0.1), nn.Linear(13, 21))
            for _ in range(3)
        )
        self.once, self.again = nn.Linear(21, 21, bias=False), nn.Linear(21, 21, bias=False)
        self.again.weight = self.once.weight
        self.outward = nn.Linear(21, 3, bias=False)
        self.scale, self.frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(7), requires_grad=False)
        self.sometimes, self.never = nn.Linear(21, 21), nn.Linear(3, 3)
        self.skips, self.in_evaluation = skips, in_evaluation  # the second block; the last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.inward(x)
        skipped = 1 if self.skips else 2 if self.in_evaluation and not self.training else None
        for number, block in enumerate(self.blocks):
            if not (number == skipped and x.mean() > 0):
                hidden = hidden + block(hidden)
        hidden = self.again(torch.tanh(self.once(hidden)))
        if x.mean() > 0:
            hidden = hidden + self.sometimes(hidden)
        out: torch.Tensor = self.outward(hidden) * self.scale
        return out


class Chain(Task):
    skips: bool = False
    in_evaluation: bool = False

    def model(self) -> nn.Module:
        return _Chain(self.skips, self.in_evaluation)

    def data(self, split: str) -> datasets.Dataset | None:
        size = 50 if split == "train" else 23
        g = torch.Generator().manual_seed(size)
        x, y = torch.randn(size, 5, generator=g), torch.randint(0, 3, (size,), generator=g)
        return datasets.Dataset.from_dict({"x": x.tolist(), "y": y.tolist()})

    def loss(self, model: nn.Module, batch: Batch) -> Any:
        global _calls
        _calls += 1
        if str(_calls) == os.environ.get("DIES_AT") and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        loss = F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")
        return loss, len(batch["y"]), {"half": (loss.detach() / 2, len(batch["y"]))}


class Written(Text):
    """The built-in text task."""


class Pretrained(Task):
    """A Hugging Face model, made from its config."""

    def model(self) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(vocab_size=97, n_positions=16, n_embd=30, n_layer=3, n_head=3)
        model: nn.Module = GPT2LMHeadModel(config)
        return model

    def data(self, split: str) -> datasets.Dataset | None:
        tokens = torch.randint(0, 97, (40, 16), generator=torch.Generator().manual_seed(5))
        return datasets.Dataset.from_dict({"tokens": tokens.tolist()}) if split == "train" else None

    def loss(self, model: nn.Module, batch: Batch) -> Any:
        scores = model(input_ids=batch["tokens"]).logits[:, :-1]
        targets = batch["tokens"][:, 1:]
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum"), targets.numel()


class Changing(Chain):
    def after_step(self, model: nn.Module, step: int) -> None: ...


class Startled(Chain):
    """Cannot be asked for its one odd row a second time, by whoever looks whether its forwards are pure."""

    early: bool = False  # before the model is called
    _seen: bool = False

    def data(self, split: str) -> datasets.Dataset | None:
        rows = super().data(split)
        assert rows is not None
        return rows.add_column("odd", [split == "train" and number == 3 for number in range(len(rows))])

    def loss(self, model: nn.Module, batch: Batch) -> Any:
        if self.early:
            self._look_at(batch)
        found = super().loss(model, batch)
        if not self.early:
            self._look_at(batch)
        return found

    def _look_at(self, batch: Batch) -> None:
        if batch["odd"].any():
            if self._seen:
                raise ValueError("that row again")
            self._seen = True


class Around(Chain):
    """Goes past the model's own forward."""

    def loss(self, model: Any, batch: Batch) -> Any:
        return model.outward(torch.zeros(2, 21)).sum() + model(batch["x"]).sum(), 1


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(F.gelu(self.up(x)))
        return x + y


class _Tower(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Limited(Task):
    """A process may have no more memory than `limit` times the parameters, on top of what it had before there was a model."""

    layers: int = 20
    limit: float = 3.5

    def model(self) -> nn.Module:
        width = 512
        status = Path("/proc/self/status").read_text().splitlines()
        there = 1024 * int(next(line for line in status if line.startswith("VmData:")).split()[1])
        most = there + int(self.limit * 4 * self.layers * 8 * width * width)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        return _Tower(width, self.layers)

    def data(self, split: str) -> datasets.Dataset | None:
        x = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
        return datasets.Dataset.from_dict({"x": x.tolist()}) if split == "train" else None

    def loss(self, model: nn.Module, batch: Batch) -> Any:
        return (model(batch["x"]) - batch["x"].flip(1)).square().sum(), len(batch["x"])


class _Counting(_Chain):
    """Counts its calls, which harms nobody, and has a part that only micro-batches with few rows use."""

    def __init__(self) -> None:
        super().__init__(skips=False)
        self.calls = 0
        self.seldom = nn.Linear(21, 21)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out = super().forward(x)
        return out + self.seldom(self.inward(x)).mean() if len(x) < 2 else out


class Counting(Chain):
    """With few rows the last step is short: of a leaf some micro-batches count, and others have no rows of their own."""

    rows: int = 27

    def model(self) -> nn.Module:
        return _Counting().train(False)  # one row is too few for BatchNorm

    def data(self, split: str) -> datasets.Dataset | None:
        found = super().data(split)
        return found.select(range(self.rows)) if found is not None and split == "train" else found


class OneMemory(Chain):
    def model(self) -> nn.Module:
        model = _Chain(skips=False)
        model.register_parameter("other", nn.Parameter(model.outward.weight.data))
        return model

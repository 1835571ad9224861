"""Tasks to kill: steps slow enough to hit, an evaluation, BatchNorm and dropout; and some that hang or die by themselves."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.distributed as dist
from pydantic import PrivateAttr
from torch import nn
from torch.nn import functional as F

from samestep import Task
from samestep.errors import TrainingError
from samestep.exact import StepExchange
from samestep.tracking import Reports


class Slow(Task):
    pause_s: float = 0.004
    width: int = 16

    def data(self, split: str) -> datasets.Dataset:
        rng = np.random.default_rng(split == "train")
        return datasets.Dataset.from_dict({"x": rng.normal(size=(150, 6)).astype(np.float32).tolist()})

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, self.width), nn.BatchNorm1d(self.width), nn.Dropout(0.2), nn.Linear(self.width, 1))

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.pause_s)
        x = batch["x"]
        return F.mse_loss(model(x).squeeze(-1), x.sum(dim=1), reduction="sum"), torch.tensor(len(x))

    def show(self, model: nn.Module) -> str:
        return ""


class Faulty(Slow):
    """Rank 1 does `fault`, once: `mark` says that it has been done."""

    fault: str
    mark: str
    calls_before: int  # of `loss` in that process: the fault is in this one

    _calls: int = -1  # a start tries an evaluation first

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        self._calls += 1
        if os.environ.get("RANK", "0") == "1" and self._calls == self.calls_before and not Path(self.mark).exists():
            Path(self.mark).touch()
            if self.fault == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.fault == "raise":
                raise ValueError("planted")
            elif self.fault == "report":  # as where metrics.jsonl lies on a file system that hangs
                Reports.post = lambda *args: time.sleep(1e6)  # type: ignore[method-assign]
        return super().loss(model, batch)

    def transform(self, row: dict[str, object], rng: np.random.Generator) -> dict[str, object]:
        if self.fault == "endless" and os.environ.get("RANK", "0") == "1" and self._calls == self.calls_before:
            while True:
                time.sleep(0.01)
        return row


class FaultyAfterStep(Slow):
    """Rank 1 stays in after_step for ever, once."""

    fault: str
    mark: str
    calls_before: int

    def after_step(self, model: nn.Module, step: int) -> None:
        if os.environ.get("RANK", "0") == "1" and step == 12 and not Path(self.mark).exists():
            Path(self.mark).touch()
            while True:
                time.sleep(0.01)


class Unheard(Slow):
    """At one micro-batch, once, both ranks begin to wait for a message that the other never sends.

    With the fault "nan" what they hear, once torn out of that, is a loss that is not finite, as where a GPU waits.
    """

    fault: str
    mark: str
    calls_before: int

    _calls: int = -1

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        self._calls += 1
        rank = int(os.environ.get("RANK", "0"))
        mark = Path(f"{self.mark}-{rank}")
        if self._calls == self.calls_before and not mark.exists():
            mark.touch()
            if self.fault == "in the loss":
                self._wait(1 - rank)
            StepExchange.total = lambda *args: self._wait(1 - rank)  # type: ignore[assignment, method-assign]
        return super().loss(model, batch)

    def _wait(self, other: int) -> None:
        try:
            dist.recv(torch.zeros(1), src=other)
        except RuntimeError:
            if self.fault == "nan":
                raise TrainingError("step 12: the loss is nan") from None
            raise


class FaultyInBuckets(Faulty):
    """DDP makes three buckets of it, so that a rank waits for the first before its own backward is over."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 600), nn.Linear(600, 12_000), nn.Linear(12_000, 600), nn.Linear(600, 1))


class Doomed(Slow):
    """A process ends itself at each of `moments` once; "train 5" is its fifth `loss` in training. `marks` has those done."""

    moments: list[str]
    marks: str
    signal: int = signal.SIGKILL

    _calls: dict[str, int] = PrivateAttr(default_factory=lambda: {"train": 0, "eval": -1})  # a start tries an evaluation first

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        kind = "train" if model.training else "eval"
        self._calls[kind] += 1
        for number, moment in enumerate(self.moments):
            mark = Path(self.marks) / str(number)
            if moment == f"{kind} {self._calls[kind]}" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), self.signal)
        return super().loss(model, batch)

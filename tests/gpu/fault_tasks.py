"""A task of two ranks on two GPUs, one of which is killed while the other waits for its device."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from samestep import Task

_HELD_CYCLES = 1 << 35  # some twenty seconds


class Faulty(Task):
    """Rank 1 is killed in step 12, once; rank 0 waits `where` it is said."""

    where: str
    mark: str
    width: int = 256

    _step: int = 0

    def data(self, split: str) -> datasets.Dataset:
        rng = np.random.default_rng(split == "train")
        return datasets.Dataset.from_dict({"x": rng.normal(size=(150, 64)).astype(np.float32).tolist()})

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, self.width), nn.BatchNorm1d(self.width), nn.Dropout(0.2), nn.Linear(self.width, 1))

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x = batch["x"]
        loss = F.mse_loss(model(x).squeeze(-1), x.sum(dim=1), reduction="sum")
        rank, mark = os.environ.get("RANK", "0"), Path(f"{self.mark}-{os.environ.get('RANK', '0')}")
        self._step += model.training
        if self._step == 23 and not mark.exists():  # two micro-batches a step
            mark.touch()
            if rank == "1":
                if self.where == "in flight":
                    threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGKILL)).start()
                else:
                    time.sleep(1.0)
                    os.kill(os.getpid(), signal.SIGKILL)
            elif self.where == "launch":
                for _ in range(5000):
                    x = x + 1  # behind a collective of the step's, in the next one
            elif self.where == "kernel":
                torch.cuda._sleep(_HELD_CYCLES)
        return loss, torch.tensor(len(x))


class FaultyAfterStep(Faulty):
    """Rank 0 comes to after_step, which asks the device whether the step counted."""

    def after_step(self, model: nn.Module, step: int) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.999)

"""The workloads as samestep's tasks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from samestep import Task
from samestep.task import Batch, Ratio

sys.path.insert(0, str(Path(__file__).parent))
from workloads import WORKLOADS


class Timed(Task):
    workload: str

    def data(self, split: str) -> dict[str, torch.Tensor] | None:
        if split == "eval":
            return None
        x, y = WORKLOADS[self.workload].data()
        return {"x": x, "y": y}

    def model(self) -> nn.Module:
        return WORKLOADS[self.workload].model()

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        loss = WORKLOADS[self.workload].loss(model, batch["x"], batch["y"], reduction="sum")
        return loss, batch["y"].numel()

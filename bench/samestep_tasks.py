"""The workloads as samestep's tasks."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
from torch import nn

from samestep import Task
from samestep.task import Batch, Ratio

sys.path.insert(0, str(Path(__file__).parent))
from workloads import WORKLOADS


class Timed(Task):
    workload: str

    def data(self, split: str) -> datasets.Dataset | None:
        if split == "eval":
            return None
        x, y = WORKLOADS[self.workload].data()
        return datasets.Dataset.from_dict({"x": x.numpy(), "y": y.numpy()})

    def model(self) -> nn.Module:
        return WORKLOADS[self.workload].model()

    def loss(self, model: nn.Module, batch: Batch) -> Ratio:
        loss = WORKLOADS[self.workload].loss(model, batch["x"], batch["y"], reduction="sum")
        return loss, batch["y"].numel()

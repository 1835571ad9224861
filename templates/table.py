"""Predict a number from the others of its row: of the .csv files in a folder, or of made-up ones where there are none."""

import csv
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn import functional as F

import samestep

PARTS = {"train": range(8), "eval": [8], "test": [9]}  # of every ten rows


class Mine(samestep.Task):
    folder: str = "data"
    target: str = "y"  # the column to predict; all others are the inputs
    inputs: int = 4  # how many those are
    width: int = 64

    def data(self, split):
        """Columns of numbers; `samestep evaluate RUN --data test` asks for the third part."""
        rows = [
            row for file in sorted(Path(self.folder).glob("*.csv")) for row in csv.DictReader(file.read_text().splitlines(True))
        ] or made_up()
        names = sorted(rows[0].keys() - {self.target})
        if self.target not in rows[0] or len(names) != self.inputs:
            raise ValueError(f"the columns are {', '.join(rows[0])}; write with.target=NAME with.inputs={len(rows[0]) - 1}")
        x = np.array([[float(row[name]) for name in names] for row in rows], np.float32)
        y = np.array([float(row[self.target]) for row in rows], np.float32)
        place = np.arange(len(rows)) % 10
        known, chosen = np.isin(place, PARTS["train"]), np.isin(place, PARTS[split])
        x = (x - x[known].mean(0)) / (x[known].std(0) + 1e-6)  # in units of what is trained on
        y = (y - y[known].mean()) / (y[known].std() + 1e-6)
        return {"x": x[chosen], "y": y[chosen]}

    def model(self):
        return nn.Sequential(
            nn.Linear(self.inputs, self.width),
            nn.GELU(),
            nn.Linear(self.width, self.width),
            nn.GELU(),
            nn.Linear(self.width, 1),
        )

    def loss(self, model, batch):
        return samestep.mean(F.mse_loss(model(batch["x"])[:, 0], batch["y"], reduction="none"))

    def metrics(self, model, batch):
        found = model(batch["x"])[:, 0]
        errors = F.mse_loss(found, batch["y"], reduction="none")
        return {"loss": samestep.mean(errors), "distance": samestep.mean((found - batch["y"]).abs())}


def made_up():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 4))
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=3000)
    return [{"a": a, "b": b, "c": c, "d": d, "y": value} for (a, b, c, d), value in zip(x, y, strict=True)]

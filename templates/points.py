"""Which of three spiral arms does a point belong to? Put your own data, model and loss in their places."""

import numpy as np
from torch import nn
from torch.nn import functional as F

import samestep


class Mine(samestep.Task):
    # The fields are the hyperparameters: with.width=64 on the command line, `with: {width: 64}` in the config.
    width: int = 32
    dropout: float = 0.0

    def data(self, split):
        """Columns of numbers, for "train" and "eval", and for what `samestep evaluate RUN --data test` asks for.

        A datasets.Dataset will do as well, and much else (docs/data.md). All random numbers are seeded for you.
        """
        rng = np.random.default_rng(["train", "eval", "test"].index(split))
        rows = 3000 if split == "train" else 600
        arm, along = rng.integers(0, 3, rows), rng.uniform(0.1, 1.0, rows)
        angle = 2.1 * arm + 4 * along + rng.normal(0, 0.1, rows)
        x = np.stack([along * np.cos(angle), along * np.sin(angle)], 1).astype(np.float32)
        return {"x": x, "arm": arm}

    # def transform(self, row, rng):  # of one row, in training and evaluation; rng depends on (seed, epoch, row) alone
    #     return {**row, "x": row["x"] + rng.normal(0, 0.01, 2).astype(np.float32)}

    def model(self):
        return nn.Sequential(
            nn.Linear(2, self.width),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            nn.Linear(self.width, 3),
        )

    def loss(self, model, batch):
        """The mean over the rows of the whole global batch; of tokens that count, samestep.mean(losses, mask)."""
        return samestep.mean(F.cross_entropy(model(batch["x"]), batch["arm"], reduction="none"))

    def metrics(self, model, batch):
        """What an evaluation measures, by name, each a mean over all of its rows."""
        scores = model(batch["x"])
        loss = F.cross_entropy(scores, batch["arm"], reduction="none")
        return {"loss": samestep.mean(loss), "accuracy": samestep.mean(scores.argmax(1) == batch["arm"])}

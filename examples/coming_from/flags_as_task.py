"""`flags.py` with samestep: `python flags_as_task.py width=128 optimizer.lr=1e-3 epochs=20` are its flags."""

import torch
from flags import Images
from torch import nn
from torch.nn import functional as F

import samestep


class Digits(samestep.Task):
    width: int = 64  # a flag is a field of the task, or a key of the config

    def data(self, split):
        return Images(split == "eval")  # as it is: of a tuple's parts, batch[0] and batch[1] are the columns

    def weights(self, split):
        digits = self.data(split).digits
        return 1 / torch.bincount(digits)[digits]

    def model(self):
        model = nn.Sequential(nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, 10))
        model.register_buffer("average", model[2].bias.detach().clone())  # what a callback keeps is a buffer, and is saved
        return model

    def loss(self, model, batch):
        return samestep.mean(F.cross_entropy(model(batch[0]), batch[1], reduction="none"))

    def after_step(self, model, step):
        model.average.lerp_(model[2].bias, 0.1)


if __name__ == "__main__":
    samestep.main(
        Digits,
        global_batch_size=64,
        micro_batch_size=16,
        epochs=10,
        optimizer={"name": "adamw", "lr": 3e-3},
        schedule={"name": "step", "every": "4 epochs", "factor": 0.3},
        evaluate={"every": "1 epoch"},
        checkpoint={"best": "loss"},  # samestep.load(RUN, best=True)
    )

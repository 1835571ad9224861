"""What `lightning_module.py` trains, as a task.

pip install 'samestep[digits]'
python examples/coming_from/lightning_as_task.py
"""

import datasets
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import samestep


class Digits(samestep.Task):
    width: int = 64

    def data(self, split):
        images = load_digits().data / 16
        held_out = np.arange(len(images)) % 5 == 0
        return datasets.Dataset.from_dict({"image": images[~held_out if split == "train" else held_out]})

    def model(self):
        encoder = nn.Sequential(nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, 8))
        decoder = nn.Sequential(nn.Linear(8, self.width), nn.ReLU(), nn.Linear(self.width, 64))
        return nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    def loss(self, model, batch):
        errors = model["decoder"](model["encoder"](batch["image"])) - batch["image"]
        return samestep.mean(errors.square())

    def optimizer(self, model, config):
        groups = [
            {"params": model["encoder"].parameters(), "weight_decay": 0.0},
            {"params": model["decoder"].parameters(), "weight_decay": 0.01},
        ]
        return torch.optim.AdamW(groups, lr=config.optimizer.lr)


samestep.main(
    Digits,
    global_batch_size=64,
    micro_batch_size=16,
    epochs=20,
    optimizer={"name": "adamw", "lr": 3e-3},
    clip=1.0,
    evaluate={"every": 23},
    converge={"metric": "loss", "goal": "min", "patience": 3},
    checkpoint={"best": "loss"},
)

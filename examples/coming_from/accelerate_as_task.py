"""What `accelerate_script.py` trains, as a task.

pip install 'samestep[digits]'
accelerate launch examples/coming_from/accelerate_as_task.py
"""

import datasets
import numpy as np
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import samestep


class Digits(samestep.Task):
    def data(self, split):
        found = load_digits()
        images = found.images.astype(np.float32)[:, None] / 16
        held_out = np.arange(len(images)) % 5 == 0
        chosen = ~held_out if split == "train" else held_out
        return datasets.Dataset.from_dict({"image": images[chosen], "digit": found.target[chosen]})

    def model(self):
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
        )

    def loss(self, model, batch):
        return samestep.mean(F.cross_entropy(model(batch["image"]), batch["digit"], reduction="none"))

    def metrics(self, model, batch):
        scores, digit = model(batch["image"]), batch["digit"]
        loss = F.cross_entropy(scores, digit, reduction="none")
        return {"loss": samestep.mean(loss), "accuracy": samestep.mean(scores.argmax(1) == digit)}


samestep.main(
    Digits,
    global_batch_size=64,  # two forwards of 32 rows on one process, one each on two
    micro_batch_size=32,
    epochs=10,
    optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9},
    schedule={"name": "linear"},
    evaluate={"every": 23},
)

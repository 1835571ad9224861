"""What `plain.py` trains, as a task: on any number of processes, stopped and resumed, the same bits.

pip install 'samestep[digits]'
python examples/coming_from/plain_as_task.py
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
        held_out = np.arange(len(found.target)) % 5 == 0
        chosen = ~held_out if split == "train" else held_out
        return datasets.Dataset.from_dict({"image": found.data[chosen] / 16, "digit": found.target[chosen]})

    def model(self):
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))

    def loss(self, model, batch):
        return samestep.mean(F.cross_entropy(model(batch["image"]), batch["digit"], reduction="none"))

    def metrics(self, model, batch):
        scores, digit = model(batch["image"]), batch["digit"]
        loss = F.cross_entropy(scores, digit, reduction="none")
        return {"loss": samestep.mean(loss), "accuracy": samestep.mean(scores.argmax(1) == digit)}


samestep.main(
    Digits,
    global_batch_size=64,
    micro_batch_size=16,
    epochs=10,
    optimizer={"name": "adamw", "lr": 3e-3},
    schedule={"name": "cosine", "warmup": 20},
    clip=1.0,
    evaluate={"every": 23},
)

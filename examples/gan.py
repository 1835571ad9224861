"""A GAN on points around a ring: two networks in one model, which train in turn.

python examples/gan.py
bash launch/local.sh examples/gan.py
"""

import datasets
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import samestep


class Gan(samestep.Task):
    noise: int = 8
    width: int = 64

    def data(self, split):
        """Points near eight places of a ring."""
        rng = np.random.default_rng(0 if split == "train" else 1)
        rows = 4096 if split == "train" else 512
        angle = rng.integers(0, 8, rows) * np.pi / 4
        point = np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.02, (rows, 2))
        return datasets.Dataset.from_dict({"point": point.astype(np.float32)})

    def model(self):
        model = nn.ModuleDict({"generator": self.network(self.noise, 2), "discriminator": self.network(2, 1)})
        model["generator"].requires_grad_(False)  # the discriminator begins
        return model

    def network(self, inward, outward):
        first = [nn.Linear(inward, self.width), nn.LeakyReLU(0.2)]
        second = [nn.Linear(self.width, self.width), nn.LeakyReLU(0.2)]
        return nn.Sequential(*first, *second, nn.Linear(self.width, outward))

    def loss(self, model, batch):
        real, fake = batch["point"], self.generated(model, batch)
        judged = model["discriminator"](fake)
        if is_trained(model["generator"]):
            return F.softplus(-judged).sum(), len(fake)
        return (F.softplus(judged) + F.softplus(-model["discriminator"](real))).sum(), len(real)

    def after_step(self, model, step):
        """Change turns: what is frozen gets no gradient, and its optimizer leaves it alone."""
        for part in model.values():
            part.requires_grad_(not is_trained(part))

    def metrics(self, model, batch):
        """How far a generated point is from the nearest real one, and a real one from the nearest generated one."""
        apart = torch.cdist(self.generated(model, batch), batch["point"])
        return {
            "stray": (apart.min(1).values.sum(), len(apart)),
            "missed": (apart.min(0).values.sum(), len(apart)),
        }

    def generated(self, model, batch):
        return model["generator"](torch.randn(len(batch["point"]), self.noise, device=batch["point"].device))


def is_trained(part):
    return next(part.parameters()).requires_grad


samestep.main(
    Gan,
    global_batch_size=256,
    micro_batch_size=64,
    steps=4000,
    optimizer={
        "generator": {"name": "adam", "lr": 1e-3, "betas": [0.5, 0.9]},
        "discriminator": {"name": "adam", "lr": 2e-3, "betas": [0.5, 0.9]},
    },
    evaluate={"every": 1000},
)

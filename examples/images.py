"""Classify images: a folder of them for each class, augmented as they are read.

pip install 'samestep[images]'
python examples/images.py folder=photos classes=2           # photos/train/cat/1.png …, photos/eval/cat/7.png …
bash launch/local.sh examples/images.py folder=photos classes=2
"""

import datasets
import numpy as np
from torch import nn
from torch.nn import functional as F

import samestep


class Images(samestep.Task):
    folder: str = "photos"
    classes: int = 10
    size: int = 32
    channels: int = 32

    def data(self, split):
        rows = datasets.load_dataset("imagefolder", data_dir=f"{self.folder}/{split}", split="train")
        return rows.add_column("augment", [split == "train"] * len(rows))  # transform() sees the rows of both splits

    def transform(self, row, rng):
        image = np.asarray(row["image"].convert("RGB").resize((self.size, self.size)), np.float32) / 255
        if row["augment"]:  # a flip, and a crop of the padded image; rng depends on (seed, epoch, row) alone
            if rng.random() < 0.5:
                image = image[:, ::-1]
            top, left = rng.integers(0, 9, 2)
            padded = np.pad(image, [(4, 4), (4, 4), (0, 0)], mode="reflect")
            image = padded[top : top + self.size, left : left + self.size]
        return {"image": (image.transpose(2, 0, 1) - 0.5) / 0.25, "label": row["label"]}

    def model(self):
        width = self.channels
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            Block(width, width, stride=1),
            Block(width, 2 * width, stride=2),
            Block(2 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, self.classes),
        )

    def loss(self, model, batch):
        return samestep.mean(F.cross_entropy(model(batch["image"]), batch["label"], reduction="none"))

    def metrics(self, model, batch):
        scores, label = model(batch["image"]), batch["label"]
        loss = F.cross_entropy(scores, label, reduction="none")
        return {"loss": samestep.mean(loss), "accuracy": samestep.mean(scores.argmax(1) == label)}


class Block(nn.Module):
    """Norm, activation and convolution, twice, beside a shortcut (He et al., 2016, "Identity Mappings")."""

    def __init__(self, inward, outward, stride):
        super().__init__()
        self.shortcut = nn.Conv2d(inward, outward, 1, stride, bias=False)
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inward),
            nn.ReLU(),
            nn.Conv2d(inward, outward, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outward),
            nn.ReLU(),
            nn.Conv2d(outward, outward, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return self.shortcut(x) + self.branch(x)


samestep.main(
    Images,
    global_batch_size=128,
    micro_batch_size=32,
    epochs=30,
    optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
    schedule={"name": "cosine", "warmup": 100},
    evaluate={"every": 500},
    checkpoint={"best": "accuracy:max"},
    workers=2,  # processes that decode and augment ahead
)

"""A script with flags, a sampler, a schedule by epochs and callbacks. `flags_as_task.py` is the same with samestep."""

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler


class Images(Dataset):
    """Tuples of an image and its digit; of three digits there are few."""

    def __init__(self, is_held_out):
        images, digits = load_digits(return_X_y=True)
        chosen = [n for n in range(len(digits)) if (n % 5 == 0) == is_held_out and (is_held_out or digits[n] > 2 or n % 4 == 1)]
        self.images, self.digits = torch.tensor(images[chosen] / 16, dtype=torch.float32), torch.tensor(digits[chosen])

    def __len__(self):
        return len(self.digits)

    def __getitem__(self, number):
        return self.images[number], self.digits[number]


class KeepBest:
    """A callback, as they are usually written."""

    def __init__(self):
        self.loss, self.weights = float("inf"), None

    def on_evaluation(self, loss, model):
        if loss < self.loss:
            self.loss, self.weights = loss, copy.deepcopy(model.state_dict())


class Average:
    """Another one: a running average of the head's bias."""

    def __init__(self, model):
        self.bias = model[2].bias.detach().clone()

    def on_step(self, model):
        self.bias.lerp_(model[2].bias.detach(), 0.1)


if __name__ == "__main__":
    flags = argparse.ArgumentParser()
    flags.add_argument("--width", type=int, default=64)
    flags.add_argument("--lr", type=float, default=3e-3)
    flags.add_argument("--epochs", type=int, default=10)
    args = flags.parse_args()
    torch.manual_seed(0)
    train_set, eval_set = Images(False), Images(True)
    weights = 1 / torch.bincount(train_set.digits)[train_set.digits]
    loader = DataLoader(train_set, batch_size=64, sampler=WeightedRandomSampler(weights, len(train_set)))
    model = nn.Sequential(nn.Linear(64, args.width), nn.ReLU(), nn.Linear(args.width, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = StepLR(optimizer, step_size=4, gamma=0.3)
    best, average = KeepBest(), Average(model)
    for epoch in range(args.epochs):
        for image, digit in loader:
            loss = F.cross_entropy(model(image), digit)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.on_step(model)
        schedule.step()
        with torch.no_grad():
            scores = model(eval_set.images)
            best.on_evaluation(F.cross_entropy(scores, eval_set.digits).item(), model)
        print(f"epoch {epoch + 1}  eval_loss {F.cross_entropy(scores, eval_set.digits).item():.4f}")
    model.load_state_dict(best.weights)
    torch.save(model.state_dict(), "digits.pt")

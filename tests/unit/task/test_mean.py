"""A mean by its name, and one by mistake."""

from __future__ import annotations

import pytest
import torch

import samestep
from conftest import Workplace
from samestep.errors import UsageError


def test_a_mean_is_a_sum_and_what_counts() -> None:
    losses = torch.tensor([[1.0, 2.0], [4.0, float("nan")]], requires_grad=True)
    total, weight = samestep.mean(losses[:1])
    assert (total.item(), weight) == (3.0, 2)
    for mask in (torch.tensor([[True, True], [True, False]]), torch.tensor([[1, 1], [1, 0]])):
        total, weight = samestep.mean(losses, mask)
        assert (total.item(), float(weight)) == (7.0, 3.0)
        (gradient,) = torch.autograd.grad(total, losses)
        assert gradient.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    total, weight = samestep.mean(losses, torch.tensor([[0.5, 2.0], [0.25, 0.0]]))
    assert (total.item(), float(weight)) == (5.5, 2.75)


def test_a_mean_of_means_is_refused() -> None:
    with pytest.raises(UsageError, match=r"samestep\.mean: found a loss that is reduced already; write reduction='none'"):
        samestep.mean(torch.tensor(1.0))
    with pytest.raises(UsageError, match=r"found a mask of shape \(2,\) for losses of shape \(2, 3\); write one of the same"):
        samestep.mean(torch.ones(2, 3), torch.ones(2))


TASK = """
import samestep, torch

class Mine(samestep.Task):
    kind: str = "sum"
    def data(self, split):
        return {"x": torch.arange(16.0)[:, None]} if split == "train" else None
    def model(self):
        return torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))
    def loss(self, model, batch):
        each = model(batch["x"])[:, 0].square() + 1
        rows = len(batch["x"])
        return {"sum": samestep.mean(each), "mean": (each.mean(), rows), "one": (each.sum(), 1.0)}[self.kind]
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 8
micro_batch_size: 4
steps: 2
optimizer: {name: sgd, lr: 1e-4}
track: {wandb: 'off'}
"""


@pytest.mark.timeout(300)
def test_a_mean_by_mistake_is_one_line_of_train(workplace: Workplace) -> None:
    workplace.write("mine.py", TASK)
    workplace.write("mine.yaml", CONFIG)
    said = {kind: workplace.train("mine.yaml", "--run", kind, f"with.kind={kind}") for kind in ("sum", "mean", "one")}
    warned = {kind: [line for line in done.out.splitlines() if "WARNING" in line] for kind, done in said.items()}
    assert {done.code for done in said.values()} == {0}, said
    assert warned["sum"] == []
    assert [line.partition("; ")[0] for line in warned["mean"]] == [
        "WARNING: loss is the same over each row twice: a mean, where the sum belongs"
    ]
    assert [line.partition("; ")[0] for line in warned["one"]] == ["WARNING: loss has the same weight over each row twice"]

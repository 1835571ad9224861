"""Rows drawn by weight: what `weights()` may return, and that a run goes on with the same ones alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from conftest import Workplace
from samestep.errors import UsageError
from samestep.session.data import read_weights
from samestep.task import Task


class Weighted(Task):
    given: Any = None

    def weights(self, split: str) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1.0, 2.0], "weights() returned shape (2,); return a number for each of the 3 rows"),
        ([1.0, -2.0, 0.0], "weights() returned -2.0; return numbers from 0 on"),
        ([1.0, float("nan"), 0.0], "weights() returned nan; return numbers from 0 on"),
        ([0, 0, 0], "weights() returned only zeros; return numbers from 0 on"),
        (["a", "b", "c"], "weights() returned list; return a number for each row"),
    ],
)
def test_weights_that_are_none_are_told(given: object, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        read_weights(Weighted(given=given), 0, 3)
    assert read_weights(Weighted(), 0, 3) is None
    assert read_weights(Weighted(given=[1, 0, 2]), 0, 3).tolist() == np.array([1.0, 0.0, 2.0]).tolist()  # type: ignore[union-attr]


TASK = """
import datasets
import torch

from samestep import Task


class Mine(Task):
    def data(self, split):
        return datasets.Dataset.from_dict({"x": [[float(n)] for n in range(16)]}) if split == "train" else None

    def weights(self, split):
        return [1.0] * 15 + [LAST]

    def model(self):
        return torch.nn.Linear(1, 1)

    def loss(self, model, batch):
        names = "abs" if 15.0 not in batch["x"] else "NAME"
        out = model(batch["x"])
        return out.square().sum(), len(out), {names: (out.abs().sum(), len(out))}
"""
CONFIG = "{task: mine.py:Mine, global_batch_size: 8, micro_batch_size: 4, steps: 4, optimizer: {name: sgd, lr: 1e-4}}"


def test_a_run_goes_on_with_its_own_weights_alone_and_every_rank_has_the_same_numbers(workplace: Workplace) -> None:
    file = workplace.path / "mine.py"
    (workplace.path / "mine.yaml").write_text(CONFIG)
    words = ("mine.yaml", "--run", "one", "track={every: 1, wandb: off}")
    file.write_text(TASK.replace("LAST", "0.5").replace("NAME", "abs"))
    assert workplace.train(*words).code == 0
    assert all(row["abs"] > 0 for row in workplace.metrics("one"))
    file.write_text(TASK.replace("LAST", "2.0").replace("NAME", "abs"))
    done = workplace.train(*words, "steps=5")
    assert done.code == 2
    assert "data: weights() returns others than when the run began; write the same, or another --run NAME" in done.err
    file.write_text(TASK.replace("LAST", "1e9").replace("NAME", "other"))  # the last row in every micro-batch but by chance
    done = workplace.train("mine.yaml", "--run", "two", "steps=9", 'task="mine.py:Mine"', processes=2)
    assert done.code == 0
    file.write_text(TASK.replace("LAST", "2.0").replace("NAME", "other"))  # in some alone
    done = workplace.train("mine.yaml", "--run", "three", "steps=99", processes=2)
    assert done.code in (1, 2)
    assert "return the same for each" in done.err

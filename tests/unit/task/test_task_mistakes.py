"""What a task's methods take and give back is told in one paragraph: the method, what it gave, and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import forked

TASK = """
import datasets, torch, numpy as np
from torch.nn import functional as F
from samestep import Task

class Mine(Task):
    def data(self, split):
        return datasets.Dataset.from_dict({"x": [[float(i)] * 3 for i in range(32)], "y": [i % 2 for i in range(32)]})
    def model(self):
        return torch.nn.Linear(3, 2)
    def loss(self, model, batch):
        return cross(model(batch["x"]), batch["y"]), len(batch["x"])
    METHOD

def cross(scores, labels):
    return F.cross_entropy(scores, labels, reduction="sum")
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 16
micro_batch_size: 8
steps: 2
optimizer: {name: sgd, lr: 1e-5}
track: {wandb: 'off'}
"""


def rows(x: str, y: str) -> str:
    return f'def data(self, split): return datasets.Dataset.from_dict({{"x": {x}, "y": {y}}})'


def loss(words: str) -> str:
    return f"def loss(self, model, batch): return {words}"


SUM = 'cross(model(batch["x"]), batch["y"])'
CASES = [  # the method, the exit code, the words
    (
        'def data(self, split): return {"x": [1.0]}',
        2,
        "returned dict; return its columns as tensors or NumPy arrays, or datasets.Dataset.from_dict(columns) (docs/data.md)",
    ),
    ("def data(self, split): return None", 2, 'data("train") returned None; return a datasets.Dataset'),
    ("def data(self, split): return 'train.csv'", 2, "returned str; return datasets.load_dataset(...) or"),
    (
        'def data(self, split): return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1.0]})})',
        2,
        "returned DatasetDict; return one split of it, data_dict[split] (docs/data.md)",
    ),
    (
        'def data(self, split): return datasets.Dataset.from_dict({"x": [1.0]}).to_iterable_dataset()',
        2,
        "returned IterableDataset; return a datasets.Dataset, loaded without streaming=True",
    ),
    ("def data(self): return None", 2, "mine.py:Mine has data(self); write def data(self, split)"),
    (
        "def data(self, split): return open('none.csv')",
        1,
        "FileNotFoundError: [Errno 2] No such file or directory: 'none.csv', at",
    ),
    (rows("['a'] * 32", "[0] * 32"), 2, "column x holds str, not numbers; remove it in data(), or write a transform()"),
    (rows("[[1.0] * 3] * 32", "[0.0] * 32"), 1, "class labels are integers: give them as such in data(), or write .long()"),
    (rows("[[1] * 3] * 32", "[0] * 32"), 1, "the batch has x int64 (8, 3), y int64 (8,)"),
    (rows("[[1.0] * 4] * 32", "[0] * 32"), 1, "(8x4 and 3x2), at"),
    (rows("[[1.0] * 3] * 32", "[7] * 32"), 1, "class labels go from 0 to one less than the model has outputs"),
    (
        "def collate(self, rows): return torch.zeros(8, 3), 1",
        2,
        "collate returned tuple; write a dict of column name to tensor",
    ),
    ('def collate(self, rows): return {"x": [[1.0]]}', 2, "collate returned list for x; write a tensor"),
    ("def collate(self, rows): pass", 2, "collate returned NoneType; write a dict"),
    ("def collate(self, rows): return {}", 2, "the batch has no column 'x'; data() gives none"),
    (
        'def collate(self, rows): return {"x": torch.zeros(8, 3), "y": torch.zeros(9).long()}',
        1,
        "; the batch has x float32 (8, 3), y int64 (9,)",
    ),
    ("def transform(self, row, rng): pass", 2, "transform returned NoneType for row 0; write return row, a dict"),
    ("def transform(self, row): return row", 2, "has transform(self, row); write def transform(self, row, rng)"),
    ("def model(self): pass", 2, "model() returned NoneType; return a torch.nn.Module"),
    ("def model(self): return torch.nn.Linear", 2, "model() returned type; return a torch.nn.Module"),
    ("def model(self): return torch.nn.Linear(3)", 1, "missing 1 required positional argument: 'out_features', at "),
    (loss(f"float({SUM}.detach()), 8"), 2, "loss returned a float; write the SUM of the losses, a scalar tensor"),
    (loss(f"{SUM}.detach(), 8"), 2, "does not depend on any trainable parameter; write it from model(...)'s output, without"),
    (loss("None"), 2, "loss returned nothing; write return loss_sum, weight"),
    (loss(SUM), 2, "loss returned a tensor of shape (); write return loss_sum, weight"),
    (loss("1, 2, 3, 4"), 2, "loss returned 4 values; write return loss_sum, weight"),
    (loss(f"{SUM} * 1j, 8"), 2, "loss returned a tensor of shape () and dtype complex64; write the SUM"),
    (loss(f"{SUM}, '8'"), 2, "loss returned a str as its weight; write a scalar, the rows or tokens"),
    (loss(f"{SUM}, -1"), 2, "loss returned -1 as its weight; write the number of rows or tokens, 0 or more"),
    (loss('cross(model(batch.x), batch["y"]), 8'), 2, "the batch is a dict; write batch['x'], at "),
    (loss(f"{SUM}.backward(), 8"), 2, "a backward is called in it; leave that and the optimizer's step out"),
    ("def loss(self, batch): return 1, 2", 2, "has loss(self, batch); write def loss(self, model, batch)"),
    (
        f"def loss(self, model, batch):\n        self.seen = 1; return {SUM}, 8",
        2,
        "write self._seen, and in the class _seen: Any",
    ),
    (
        f"def loss(self, model, batch):\n        import wandb; wandb.log({{'a': 1}}); return {SUM}, 8",
        2,
        "found wandb's own log in it; return numbers from loss as a third value, {name: (sum, weight)}",
    ),
    (
        'def metrics(self, model, batch): return {"a": torch.ones(())}',
        2,
        "metrics returned a tensor of shape () as 'a'; write (",
    ),
    ('def metrics(self, model, batch): return {"a": ("b", 3)}', 2, "metrics returned a str as a sum of 'a'; write a scalar"),
    ('def metrics(self, model, batch): return {"a": (torch.ones(3), 3)}', 2, "a tensor of shape (3,) as a sum of 'a'; write"),
    ("def metrics(self, model, batch): return [1]", 2, "metrics returned a list; write {'name': (sum, weight)}"),
    ("def metrics(self, model, batch): pass", 2, "metrics returned nothing; write {'name': (sum, weight)}"),
    ('def metrics(self, model, batch): return {"a": (batch["x"] @ batch["x"], 1)}', 1, "in metrics; "),
    ("def optimizer(self, model, config): return [1]", 2, "optimizer() returned list; return a torch.optim.Optimizer"),
    ("def optimizer(self, model): return None", 2, "has optimizer(self, model); write def optimizer(self, model, config)"),
    ("def __init__(self): self.width = 3", 2, "cannot be made (ValueError:"),
    ("width = 3", 2, "the field width = 3 has no type; write width: TYPE = 3"),
    ('def show(self, model): raise ValueError("oh")', 0, "WARNING: show() failed (ValueError: oh, at "),
]


def cases() -> list[object]:
    """Every second one is left to the long tests."""
    marks = [(), (pytest.mark.long,)]
    return [
        pytest.param(*case, marks=marks[number % 2], id=case[0].replace("\n", " ")[:60]) for number, case in enumerate(CASES)
    ]


@pytest.mark.parametrize(("method", "code", "words"), cases())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside torch's threads
def test_what_a_task_gives_back_is_told_in_one_line(tmp_path: Path, method: str, code: int, words: str) -> None:
    (tmp_path / "mine.py").write_text(TASK.replace("METHOD", method))
    (tmp_path / "mine.yaml").write_text(CONFIG)
    found, said = forked(tmp_path, "train", "mine.yaml", "--run", "r")
    lines = [line for line in said if not line.startswith(("fresh ", "step ", "weights ", 'note: "eval" begins'))]
    told = [line for line in lines if words in line]
    assert (found, len(told)) == (code, 1), lines
    if code:
        assert lines == told
        assert told[0].startswith("samestep: ")
        assert ", at " not in told[0] or "mine.py:" in told[0]
        assert (tmp_path / "runs/r/state.json").exists() == ("(log: " in told[0])

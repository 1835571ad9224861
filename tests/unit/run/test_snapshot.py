"""What has changed in the code since a run last began is said when it goes on."""

from __future__ import annotations

from conftest import Workplace

TASK = """
import datasets, torch
from samestep import Task
from helper import width

class Mine(Task):
    def data(self, split):
        return datasets.Dataset.from_dict({"x": torch.arange(12.0).reshape(12, 1).numpy()})

    def model(self):
        return torch.nn.Linear(1, width)

    def loss(self, model, batch):
        return model(batch["x"]).square().sum(), len(batch["x"])
"""


def test_a_changed_file_is_said_with_its_lines(workplace: Workplace) -> None:
    workplace.write("mine.py", TASK)
    workplace.write("helper.py", "width = 2\n")
    workplace.write(
        "mine.yaml",
        "task: mine.py:Mine\nglobal_batch_size: 4\nmicro_batch_size: 4\nsteps: 3\noptimizer: {name: sgd, lr: 1e-3}\n"
        "track: {wandb: 'off'}\n",
    )
    first = workplace.train("mine.yaml", "--run", "first")
    assert "has changed" not in first.out
    same = workplace.train("mine.yaml", "--run", "first", "steps=5")
    assert "has changed" not in same.out
    workplace.write("helper.py", "width = 2  # wide\n# enough\n")
    changed = workplace.train("mine.yaml", "--run", "first", "steps=7")
    assert "WARNING: the code has changed since the last start (helper.py +2 -1); the bits may part" in changed.out
    again = workplace.train("mine.yaml", "--run", "first", "steps=9")
    assert "has changed" not in again.out
    parted = workplace.samestep("diff", "first", "first")
    assert "code" not in parted.out

"""`samestep new`: a task and its config to begin with, which train at once."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from samestep.errors import UsageError, shortened

_TASK = '''"""Which of three spiral arms does a point belong to? Put your own data, model and loss in their places."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from samestep import Task


class {name}(Task):
    # The fields are the hyperparameters: with.width=64 on the command line, `with: {{width: 64}}` in the config.
    width: int = 32
    dropout: float = 0.0

    def data(self, split):
        """Columns of numbers, for "train" and "eval"; None for a split that there is none of.

        A datasets.Dataset will do as well, and much else (docs/data.md). All random numbers are seeded for you.
        """
        rng = np.random.default_rng(0 if split == "train" else 1)
        rows = 3000 if split == "train" else 600
        arm, along = rng.integers(0, 3, rows), rng.uniform(0.1, 1.0, rows)
        angle = 2.1 * arm + 4 * along + rng.normal(0, 0.1, rows)
        x = np.stack([along * np.cos(angle), along * np.sin(angle)], 1).astype(np.float32)
        return {{"x": x, "arm": arm}}

    # def transform(self, row, rng):  # of one row, in training and evaluation; rng depends on (seed, epoch, row) alone
    #     return {{**row, "x": row["x"] + rng.normal(0, 0.01, 2).astype(np.float32)}}

    def model(self):
        return nn.Sequential(
            nn.Linear(2, self.width), nn.ReLU(), nn.Dropout(self.dropout),
            nn.Linear(self.width, self.width), nn.ReLU(), nn.Linear(self.width, 3),
        )

    def loss(self, model, batch):
        """The SUM of the losses, and what to divide it by: rows here, tokens for text."""
        return F.cross_entropy(model(batch["x"]), batch["arm"], reduction="sum"), len(batch["x"])

    def metrics(self, model, batch):
        """What an evaluation measures: for each name a sum and what to divide it by."""
        scores = model(batch["x"])
        right = (scores.argmax(1) == batch["arm"]).sum()
        loss = F.cross_entropy(scores, batch["arm"], reduction="sum")
        return {{"loss": (loss, len(scores)), "accuracy": (right, len(scores))}}
'''
_CONFIG = """# samestep launch {config}, on one process samestep train {config}; any key can be laid over it: optimizer.lr=3e-3
task: {file}:{name}
with: {{width: 32}}
seed: 0
global_batch_size: 64     # rows of one optimizer step, over all processes
micro_batch_size: 16      # rows of one forward: what fits into a device; a process takes as many as it needs for its share
epochs: 20                # or steps: 1000
optimizer: {{name: adamw, lr: 1e-2}}
schedule: {{name: cosine, warmup: 20}}
clip: 1.0
evaluate: {{every: 200}}
checkpoint: {{minutes: 10, keep: 2, best: "accuracy:max"}}
# precision: bf16
# workers: 2              # processes that read ahead, for a costly transform
"""


def new(path: str) -> str:
    """Write PATH.py and PATH.yaml. Returns what to type next. Raises UsageError if either is there already."""
    if not Path(path).stem.strip(".") or "\0" in path:
        raise UsageError(f"PATH: found {path!r}; write a name, mine say")
    task = Path(path).with_suffix(".py")
    config = task.with_suffix(".yaml")
    if task.stem.isidentifier() and not task.exists() and _is_module(task.stem):
        raise UsageError(
            f"{task}: found a module called {task.stem}, and one of the two would hide the other; write another name"
        )
    words = "".join(word[:1].upper() + word[1:] for word in re.split(r"[\W_]+", task.stem))
    name = words if words.isidentifier() else f"My{words}"
    try:
        for file in (task, config):
            if file.exists():
                raise UsageError(f"{file}: it is there already; write another name")
        task.parent.mkdir(parents=True, exist_ok=True)
        task.write_text(_TASK.format(name=name))
        config.write_text(_CONFIG.format(name=name, file=task, config=config))
    except OSError as error:
        raise UsageError(f"PATH: {shortened(str(task))} can't be written ({error.strerror}); write another path") from None
    return f"wrote {task} and {config}; next: samestep train {config}"


def _is_module(name: str) -> bool:
    """Whether `import name` finds a module; a folder that only happens to be called so is none."""
    if name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None

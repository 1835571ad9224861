"""What a user writes: a model, its data and its loss. Everything else is samestep's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from samestep.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

Batch = dict[str, "torch.Tensor"]
Ratio = tuple["torch.Tensor", "torch.Tensor | float"]
Numbers = dict[str, Ratio]
Loss = tuple["torch.Tensor", "torch.Tensor | float", Numbers]

_TAKEN = {
    *("step", "epoch", "time", "loss", "lr", "grad_norm", "fingerprint", "fingerprints"),
    *("step_s", "data_wait_s", "peak_memory_bytes", "mfu"),
}


class Task(BaseModel):
    """A model, its data and its loss. Fields are hyperparameters, set under `with` in the config and kept with the run.

    What is not a hyperparameter (a tokenizer, say) belongs in names that begin with an underscore.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    unit: ClassVar[str] = "samples"
    """What `loss` counts as its weight, as "tokens": the name of the rate on the progress bar and in the rows."""

    def data(self, split: str) -> Any:
        """The rows of a split, "train" or "eval"; None when there is no such split. Called first by one process.

        Tensors or NumPy arrays by their columns' names, a `datasets.Dataset`, `samestep.Parquet`, `Tokens` or `Mix`, or
        anything with `__len__` and `__getitem__` that gives a row by its number.
        """
        raise NotImplementedError

    def model(self) -> torch.nn.Module:
        """A new model, on the CPU; the generators are seeded from the config's seed before the call."""
        raise NotImplementedError

    def loss(self, model: torch.nn.Module, batch: Batch) -> Ratio | Loss:
        """The SUM of the losses of a micro-batch (a scalar), and what to divide by (rows or tokens, say).

        A third value may follow, numbers of your own by name, each as (sum, weight): they are tracked as the loss is, Σ sums /
        Σ weights over the step. Return the same names for each micro-batch, (0, 0) where there is nothing to say.

        The step's loss is Σ sums / Σ weights over the global batch. `model` is what model() returned, at every world size:
        parts of it may be called, or none. What a forward changes, but for running statistics, is refused by name.
        """
        raise NotImplementedError

    def metrics(self, model: torch.nn.Module, batch: Batch) -> Numbers:
        """Evaluation: each metric's sum and weight over a micro-batch. The default is the loss, with its numbers."""
        loss, weight, numbers = checked_loss(self.loss(model, batch), trains=False)
        return {"loss": (loss, weight), **numbers}

    def weights(self, split: str) -> Sequence[float] | np.ndarray | None:
        """How often each row of "train" is drawn, with replacement: (rows,) of numbers from 0 on; None for each row once.

        An epoch is still as many draws as there are rows. Which row is drawn where depends on (seed, epoch, position) alone.
        """
        return None

    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Change one row before it joins a micro-batch; draw from `rng`, which is that of (seed, epoch, row)."""
        return row

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Turn rows into tensors whose first dimension is the rows; needed for columns of uneven length or text."""
        raise NotImplementedError

    def optimizer(self, model: torch.nn.Module, config: Any) -> torch.optim.Optimizer:
        """An optimizer of your own, with parameter groups, say; `config` is the run's. The default is the config's."""
        raise NotImplementedError

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        """Change the model after optimizer step `step` (from 1): an average of the weights, a teacher, what is frozen.

        It runs once a step, without gradients, on every rank alike. A checkpoint holds what it changes in parameters, in
        persistent buffers, in `requires_grad` and in train() or eval(); anything else that it changes is refused by name.
        """

    def show(self, model: torch.nn.Module) -> str:
        """What to print when training is done: generated text, say."""
        return ""

    def export(self, folder: Path) -> None:
        """Write into `folder` what belongs with the exported weights of a model of transformers: a tokenizer, a processor.

        Such as `AutoTokenizer.from_pretrained(self.base).save_pretrained(folder)`; from_pretrained then reads the folder whole.
        """

    def overrides(self, name: str) -> bool:
        """Whether this task's class brings its own version of an optional method, or names its `unit`."""
        kinds = type(self).__mro__
        return any(name in vars(kind) for kind in kinds[: kinds.index(Task)])


class Columns(dict[str, "torch.Tensor"]):
    """A micro-batch, by column; asking for one that the data set lacks says which there are."""

    def __missing__(self, name: str) -> torch.Tensor:
        raise UsageError(f"task: the batch has no column {name!r}; data() gives {', '.join(map(str, self)) or 'none'}")

    def __str__(self) -> str:
        return ", ".join(f"{name} {str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in self.items())


def batch_behind(error: BaseException) -> str:
    """The columns of the micro-batch at which the task's code has raised, in words that follow the error's; else nothing."""
    trace = error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            if isinstance(value, Columns):
                return f"; the batch has {value}"
        trace = trace.tb_next
    return ""


def checked_loss(result: object, trains: bool = True) -> Loss:
    """What `loss` returned, if it is a scalar sum, a scalar weight and maybe numbers by name; UsageError says what it is."""
    if not (isinstance(result, tuple) and 2 <= len(result) <= 3):
        raise UsageError(f"task: loss returned {_described(result)}; write return loss_sum, weight")
    loss, weight = result[:2]
    if not hasattr(loss, "requires_grad") or loss.shape != () or not loss.is_floating_point():
        raise UsageError(
            f"task: loss returned {_described(loss)}; write the SUM of the losses, a scalar tensor, and what to divide by"
        )
    if not _is_scalar(weight):
        raise UsageError(f"task: loss returned {_described(weight)} as its weight; write a scalar, the rows or tokens")
    if isinstance(weight, (int, float)) and weight < 0:
        raise UsageError(f"task: loss returned {weight} as its weight; write the number of rows or tokens, 0 or more")
    if trains and not loss.requires_grad:
        raise UsageError(
            "task: the loss does not depend on any trainable parameter; write it from model(...)'s output, without detach()"
        )
    return loss, weight, _checked_pairs(result[2], "loss") if len(result) == 3 else {}


def checked_metrics(result: object) -> Numbers:
    """What `metrics` returned, if it is names with a scalar sum and a scalar weight; UsageError says what it is instead."""
    if result == {}:
        raise UsageError("task: metrics returned no metric; write return {'name': (sum, weight)}")
    return _checked_pairs(result, "metrics")


def _checked_pairs(result: object, method: str) -> Numbers:
    if not isinstance(result, dict):
        raise UsageError(f"task: {method} returned {_described(result)}; write {{'name': (sum, weight)}}")
    for name, pair in result.items():
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise UsageError(f"task: {method} returned {_described(pair)} as {name!r}; write (sum, weight)")
        for what, part in zip(("a sum", "a weight"), pair, strict=True):
            if not _is_scalar(part):
                raise UsageError(f"task: {method} returned {_described(part)} as {what} of {name!r}; write a scalar")
    return result


def refuse_taken(names: Iterable[object]) -> None:
    """Raise UsageError for numbers of a loss that would be called as the columns that a tracked row has anyway."""
    for name in names:
        if not isinstance(name, str) or name in _TAKEN or name.startswith("eval_") or name.endswith("_per_s"):
            raise UsageError(f"task: loss returned {name!r} as the name of a number, which is taken; write another name")


def _is_scalar(value: object) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "shape", None) == ()


def _described(value: object) -> str:
    if hasattr(value, "shape"):
        kind = "" if getattr(value, "is_floating_point", lambda: True)() else f" and dtype {getattr(value, 'dtype', '')}"
        return f"a tensor of shape {tuple(value.shape)}{kind.replace('torch.', '')}"
    if isinstance(value, tuple):
        return f"{len(value)} values"
    return "nothing" if value is None else f"a {type(value).__name__}"

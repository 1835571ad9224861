"""What a user writes: a model, its data and its loss. Everything else is samestep's."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from samestep.errors import UsageError, nearest, validation_lines
from samestep.snapshot import as_kept, kept_code

if TYPE_CHECKING:
    import numpy as np
    import torch

Batch = dict[str, "torch.Tensor"]
Ratio = tuple["torch.Tensor", "torch.Tensor | float"]
Numbers = dict[str, Ratio]
Loss = tuple["torch.Tensor", "torch.Tensor | float", Numbers]

TASK_MODULE = "samestep_task_"  # what the module of a task's own file is called, before the file's name
_loaded: dict[tuple[str, int, int], ModuleType] = {}
_TAKEN = {
    *("step", "epoch", "time", "loss", "lr", "grad_norm", "fingerprint", "fingerprints"),
    *("step_s", "data_wait_s", "peak_memory_bytes", "mfu"),
}
BUILT_IN = {"regression": "Regression", "text": "Text", "digits": "Digits"}


class Task(BaseModel):
    """A model, its data and its loss. Fields are hyperparameters, set under `with` in the config and kept with the run.

    What is not a hyperparameter (a tokenizer, say) belongs in names that begin with an underscore.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    unit: ClassVar[str] = "samples"
    """What `loss` counts as its weight: the name of the rate on the progress bar."""

    def data(self, split: str) -> Any:
        """The rows of a split, "train" or "eval"; None when there is no such split. Called first by one process.

        A `datasets.Dataset`, `samestep.Tokens`, or anything with `__len__` and `__getitem__` that gives a row by its number.
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

    def overrides(self, method: str) -> bool:
        """Whether this task's class brings its own version of an optional method."""
        return getattr(type(self), method) is not getattr(Task, method)


class Columns(dict[str, "torch.Tensor"]):
    """A micro-batch, by column; asking for one that the data set lacks says which there are."""

    def __missing__(self, name: str) -> torch.Tensor:
        raise UsageError(f"task: the batch has no column {name!r}; data() gives {', '.join(self)}")


def load_task(spec: str, fields: dict[str, Any]) -> Task:
    """The task named by a config, made with its `with` fields; UsageError says what is wrong with either."""
    task_class = _task_class(spec)
    try:
        return task_class(**fields)
    except ValidationError as error:
        raise UsageError(*validation_lines(error, task_class, prefix="with.")) from None


def _task_class(spec: str) -> type[Task]:
    if spec in BUILT_IN:
        spec = f"samestep.tasks.{spec}:{BUILT_IN[spec]}"
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(f"task: found {spec!r}; write module:Class, path/to/file.py:Class, or one of {', '.join(BUILT_IN)}")
    module = load_module(place)
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if _is_task(value)]
        close = nearest(name, classes) or (classes[0] if classes else None)
        hint = f"did you mean {place}:{close}?" if close else "it defines no subclass of samestep.Task"
        raise UsageError(f"task: {place} has no class {name}; {hint}")
    if not _is_task(found):
        raise UsageError(f"task: {spec} is not a task; write a class derived from samestep.Task")
    task_class: type[Task] = found
    if hidden := [name for name in task_class.model_fields if callable(getattr(Task, name, None))]:
        raise UsageError(f"task: {spec} has a field {hidden[0]}, which hides the method of that name; give it another name")
    needed = [method for method in ("data", "model", "loss") if getattr(task_class, method) is getattr(Task, method)]
    if needed:
        raise UsageError(f"task: {spec} lacks {', '.join(needed)}; write each as a method of the class")
    return task_class


def _is_task(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Task) and value is not Task


def load_module(place: str, key: str = "task") -> ModuleType:
    """The module that a place under `key` names: `module`, or `path/to/file.py`, read once as long as it stays as it is."""
    what = "Class" if key == "task" else "function"
    if not place.endswith(".py"):
        for folder in filter(None, (Path.cwd(), kept_code())):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(error.name + ".")):
                raise UsageError(f"{key}: found no module {place}; write module:{what} or path/to/file.py:{what}") from None
            raise UsageError(f"{key}: {place} imports {error.name}, which is not installed here") from None
    path = as_kept(place)
    if not path.is_file():
        raise UsageError(f"{key}: found no file {place}; write path/to/file.py:{what}")
    if str(path.parent.resolve()) not in sys.path:  # the file's neighbours are importable, as when it is run itself
        sys.path.insert(0, str(path.parent.resolve()))
    status = path.stat()
    stamp = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if stamp in _loaded:
        return _loaded[stamp]
    name = f"{TASK_MODULE}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves a class's annotations through it
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{key}: {place} line {error.lineno}: {error.msg}") from None
    except ModuleNotFoundError as error:
        raise UsageError(f"{key}: {place} imports {error.name}, which is not installed here") from None
    _loaded[stamp] = module
    return module


def checked_loss(result: object, trains: bool = True) -> Loss:
    """What `loss` returned, if it is a scalar sum, a scalar weight and maybe numbers by name; UsageError says what it is."""
    if not (isinstance(result, tuple) and 2 <= len(result) <= 3):
        raise UsageError(f"task: loss returned {type(result).__name__}; write return loss_sum, weight")
    loss, weight = result[:2]
    if not hasattr(loss, "requires_grad") or loss.shape != ():
        raise UsageError(
            f"task: loss returned {_described(loss)}; write the SUM of the losses, a scalar tensor, and what to divide by"
        )
    if not _is_scalar(weight):
        raise UsageError(f"task: loss returned {_described(weight)} as its weight; write a scalar, the rows or tokens")
    if trains and not loss.requires_grad:
        raise UsageError("task: the loss does not depend on any trainable parameter; write it from model(...)'s output")
    return loss, weight, _checked_pairs(result[2], "loss") if len(result) == 3 else {}


def checked_metrics(result: object) -> Numbers:
    """What `metrics` returned, if it is names with a scalar sum and a scalar weight; UsageError says what it is instead."""
    if result == {}:
        raise UsageError("task: metrics returned no metric; write return {'name': (sum, weight)}")
    return _checked_pairs(result, "metrics")


def _checked_pairs(result: object, method: str) -> Numbers:
    if not isinstance(result, dict):
        raise UsageError(f"task: {method} returned {type(result).__name__}; write {{'name': (sum, weight)}}")
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
    return f"a tensor of shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__

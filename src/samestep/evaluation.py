"""Evaluation: each metric's Σ sums / Σ weights over a split, in float64 and in the tree's order at every world size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator

from samestep.batches import Rows, on_device
from samestep.config import Config, Converge
from samestep.control import Watchdog
from samestep.errors import UsageError
from samestep.exact import cuts, gather, ordered_total
from samestep.seeding import seed_all
from samestep.task import Task

_EVALUATING = 2  # sets evaluation's random numbers apart from training's


class Evaluator:
    """The "eval" split of a task, in its own order, in micro-batches that the ranks share.

    Args:
        batches: only the first so many micro-batches; None for all.
    """

    def __init__(
        self, task: Task, rows: Rows, micro_batch_size: int, batches: int | None, accelerator: Accelerator, seed: int
    ) -> None:
        self._task, self._rows, self._size = task, rows, micro_batch_size
        self._accelerator, self._seed = accelerator, seed
        whole = -(-rows.num_rows // micro_batch_size)
        self._num_batches = min(whole, batches) if batches else whole
        share = cuts(self._num_batches, accelerator.num_processes)
        rank = accelerator.process_index
        self._share = range(share[rank], share[rank + 1])

    def __call__(self, model: torch.nn.Module, flag: Callable[[], int], watch: Watchdog) -> dict[str, float] | None:
        """The metrics, by name, of a model as it stands; the model is left in training mode.

        Args:
            flag: asked on every rank before each of its micro-batches; if it is set on any, all leave together with None.
        """
        model.eval()
        names: list[str] = []
        sums: list[torch.Tensor] = []
        with torch.no_grad():
            for turn in range(-(-self._num_batches // self._accelerator.num_processes)):
                watch.meeting()
                if int(gather(torch.tensor([flag()], dtype=torch.uint8)).max()):
                    model.train()
                    return None
                watch.at("evaluating")
                if turn < len(self._share):
                    names, values = self._measure(model, self._share[turn])
                    sums.append(values)
        model.train()
        names = names or self.names(model)
        device = self._accelerator.device
        watch.meeting()
        mine = torch.stack(sums) if sums else torch.zeros(0, len(names), 2, dtype=torch.float64, device=device)
        totals = ordered_total(mine, self._num_batches)
        return {name: float(total / weight) for name, (total, weight) in zip(names, totals, strict=True)}

    def _measure(self, model: torch.nn.Module, index: int) -> tuple[list[str], torch.Tensor]:
        """The sums and weights of a micro-batch: (metrics, 2), float64, in the order of the names."""
        rows = np.arange(index * self._size, min((index + 1) * self._size, self._rows.num_rows))
        device = self._accelerator.device
        seed_all(self._seed, index, _EVALUATING, device=device)
        batch = on_device(self._rows.read(rows, epoch=0), device)
        with self._accelerator.autocast():
            found = sorted(self._task.metrics(model, batch).items())
        pairs = [[torch.as_tensor(part).detach().to(device, torch.float64) for part in pair] for _, pair in found]
        return [name for name, _ in found], torch.stack([torch.stack(pair) for pair in pairs])

    def names(self, model: torch.nn.Module) -> list[str]:
        """What the task's metrics are called: a rank without a share still has to know how many numbers the others send."""
        model.eval()
        with torch.no_grad():
            names, _ = self._measure(model, 0)
        model.train()
        return names


class Convergence:
    """Says when `patience` evaluations in a row have brought nothing better."""

    def __init__(self, settings: Converge | None, best: float | None = None, waited: int = 0) -> None:
        self._settings = settings
        self.best, self.waited = best, waited

    def reached(self, metrics: dict[str, float]) -> bool:
        """Count one evaluation; `metrics` has names with `eval_` before them."""
        if self._settings is None:
            return False
        found = _metric(metrics, self._settings.metric, "converge.metric")
        value = found if self._settings.goal == "min" else -found
        if self.best is None or value < self.best - self._settings.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.is_reached

    @property
    def is_reached(self) -> bool:
        return self._settings is not None and self.waited >= self._settings.patience


class Best:
    """Says when an evaluation is the best so far by one metric.

    Args:
        setting: `METRIC`, of which less is better, or `METRIC:max`.
        value, step: the best so far, of an earlier start.
    """

    def __init__(self, setting: str | None, value: float | None = None, step: int | None = None) -> None:
        self._metric, _, self._goal = (setting or "").partition(":")
        self.value, self.step = value, step
        self.saved_step = step  # of the best that is on disk: a better one may find no room there

    def improved(self, step: int, metrics: dict[str, float]) -> bool:
        """Count the evaluation after `step` steps; `metrics` has names with `eval_` before them."""
        if not self._metric:
            return False
        value = _metric(metrics, self._metric, "checkpoint.best") * (-1 if self._goal == "max" else 1)
        if self.value is not None and value >= self.value:
            return False
        self.value, self.step = value, step
        return True


def refuse_unknown_metrics(config: Config, evaluator: Evaluator | None, model: torch.nn.Module) -> None:
    """Raise UsageError if the config goes by a metric that evaluation will not give: the end would be late for that."""
    wanted = {"checkpoint.best": (config.checkpoint.best or "").partition(":")[0]}
    wanted["converge.metric"] = config.converge.metric if config.converge else ""
    asked = {key: metric for key, metric in wanted.items() if metric}
    if asked and evaluator is None:
        raise UsageError(
            *(f'{key}: found {metric!r}, and data("eval") is None; return a split' for key, metric in asked.items())
        )
    if asked and evaluator is not None:
        metrics = {f"eval_{name}": 0.0 for name in evaluator.names(model)}
        for key, metric in asked.items():
            _metric(metrics, metric, key)


def _metric(metrics: dict[str, float], wanted: str, key: str) -> float:
    name = "eval_" + wanted.removeprefix("eval_")
    if name not in metrics:
        known = ", ".join(known.removeprefix("eval_") for known in metrics)
        raise UsageError(f"{key}: found {wanted!r}; evaluation gives {known}")
    return metrics[name]

"""Evaluation: each metric's Σ sums / Σ weights over a split, in float64 and in the tree's order at every world size."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from samestep.batches import on_device
from samestep.config import Config, Converge
from samestep.control import Watchdog, everyones, gate
from samestep.errors import UsageError
from samestep.exact import ShardedModel, as_bits, cuts, fingerprint, gather, ordered_total
from samestep.optimizer import Plateau
from samestep.randomness.seeding import seed_all
from samestep.sources import Rows
from samestep.task import Task, at_step, checked_metrics

_LOOKED_AT = 100  # micro-batches, for the name of a metric that only some of them have
_EVALUATING = 2  # sets evaluation's random numbers apart from training's


class Evaluator:
    """The "eval" split of a task, in its own order, in micro-batches that the ranks share.

    Args:
        batches: only the first so many micro-batches; None for all.
        sharded: the model, where no rank runs a forward alone, so that each runs as many.
        is_audited: in the first evaluations, then ever rarer ones, and the last, each rank computes its first micro-batch
            once more, and its neighbour's.
    """

    def __init__(
        self, task: Task, rows: Rows, micro_batch_size: int, batches: int | None, accelerator: Accelerator, seed: int,
        sharded: ShardedModel | None = None, is_audited: bool = False,
    ) -> None:  # fmt: skip
        self._task, self._rows, self._size = task, rows, micro_batch_size
        self._accelerator, self._seed, self._sharded = accelerator, seed, sharded
        whole = -(-rows.num_rows // micro_batch_size)
        self.num_batches = min(whole, batches) if batches else whole
        share = cuts(self.num_batches, accelerator.num_processes)
        rank = accelerator.process_index
        self._share = range(share[rank], share[rank + 1])
        self._firsts = [start for start, stop in itertools.pairwise(share) if start < stop]  # of each share that has any
        self._is_audited, self._number = is_audited, 0  # of evaluations
        self.is_tried = False  # whether a micro-batch has been evaluated

    def __call__(
        self, model: torch.nn.Module, flag: Callable[[], int], watch: Watchdog, is_last: bool = False
    ) -> dict[str, float] | None:
        """The metrics, by name, of a model as it stands; its modes are left as they were.

        A metric is summed over those micro-batches that have it; one whose weights come to nothing is NaN.

        Args:
            flag: asked on every rank before each of its micro-batches; if it is set on any, all leave together with None.
        """
        measured: list[dict[str, torch.Tensor]] = []
        with evaluating(model, self._sharded):
            for turn in range(-(-self.num_batches // self._accelerator.num_processes)):
                watch.meeting()
                if int(gather(torch.tensor([flag()], dtype=torch.uint8)).max()):
                    return None
                watch.at("evaluating")
                if turn < len(self._share):
                    measured.append(self._measure(model, self._share[turn]))
                elif self._sharded is not None:
                    self._measure(model, 0)
                if self._sharded is not None:
                    watch.meeting()
                    self._sharded.refuse_another_way()
            self._number += 1
            if self._is_audited and (is_last or self._number & (self._number - 1) == 0):
                self._refuse_another(model, measured)
        watch.meeting()
        names = sorted({name for found in everyones(sorted({name for found in measured for name in found})) for name in found})
        nothing = torch.zeros(2, dtype=torch.float64, device=self._accelerator.device)
        rows = [torch.stack([found.get(name, nothing) for name in names]) for found in measured]
        mine = torch.stack(rows) if rows else nothing.new_zeros(0, len(names), 2)
        totals = ordered_total(mine, self.num_batches)
        return {name: float(total / weight) for name, (total, weight) in zip(names, totals, strict=True)}

    def _refuse_another(self, model: torch.nn.Module, measured: list[dict[str, torch.Tensor]]) -> None:
        """Raise UsageError on every rank if any share's first micro-batch comes to something else by now, or on a neighbour."""
        beside = self._firsts[(self._firsts.index(self._share[0]) + 1) % len(self._firsts)] if measured else 0
        found = {"first": _bits(measured[0]) if measured else {}}
        found["again"] = _bits(self._measure(model, self._share[0] if measured else 0)) if measured or self._sharded else {}
        found["beside"] = _bits(self._measure(model, beside)) if len(self._firsts) > 1 else {}
        ranks = [each for each in everyones(found) if each["first"]]
        for number, one in enumerate(ranks):
            other = [one["again"], *([ranks[number - 1]["beside"]] if len(ranks) > 1 else [])]
            for name in sorted({name for each in [one["first"], *other] for name in each}):
                if any(each.get(name) != one["first"].get(name) for each in other):
                    raise UsageError(
                        f"task: an evaluation computed a micro-batch once more, and {name} came out otherwise: data(), metrics "
                        "or the model remembers something from one call to the next. Draw numbers from torch, numpy or random, "
                        "which are seeded, and keep state in a buffer that after_step changes (docs/tasks.md)"
                    )

    def _measure(self, model: torch.nn.Module, index: int) -> dict[str, torch.Tensor]:
        """Each metric's sum and weight over a micro-batch, float64, by name."""
        rows = np.arange(index * self._size, min((index + 1) * self._size, self._rows.num_rows))
        device = self._accelerator.device
        seed_all(self._seed, index, _EVALUATING, device=device)
        batch = on_device(self._rows.read(rows, epoch=0), device)
        with self._accelerator.autocast():
            found = checked_metrics(self._task.metrics(model, batch))
        return {
            name: torch.stack([torch.as_tensor(part).detach().to(device, torch.float64) for part in pair])
            for name, pair in found.items()
        }

    def prints(self, model: torch.nn.Module) -> torch.Tensor:
        """The fingerprint of all that the first micro-batch comes to: (1,) of int64."""
        with evaluating(model, self._sharded):
            found = self._measure(model, 0)
        return fingerprint([torch.stack([found[name] for name in sorted(found)])])

    def names(self, model: torch.nn.Module, wanted: set[str]) -> set[str]:
        """What the task's metrics are called, as far as the first micro-batches tell: until all that are wanted are found."""
        self.is_tried = True
        found: set[str] = set()
        with evaluating(model, self._sharded), at_step(1):
            for index in range(min(self.num_batches, _LOOKED_AT)):
                found |= self._measure(model, index).keys()
                if self._sharded is not None:
                    self._sharded.refuse_another_way()
                if wanted <= found:
                    break
        return found


def _bits(found: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: as_bits(pair).tolist() for name, pair in found.items()}


@contextlib.contextmanager
def evaluating(model: torch.nn.Module, sharded: ShardedModel | None = None) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if sharded is not None:
            sharded.reshard()
        for module, training in modes:
            module.training = training


@dataclass
class Evaluation:
    """When a run looks at its "eval" split, and what follows from that."""

    evaluator: Evaluator | None
    convergence: Convergence
    best: Best
    plateau: Plateau | None  # the rate, where it goes by evaluations
    every: int | None  # steps from one to the next
    is_owed: bool  # a stop came in the middle of the one that belongs to the first step

    def measure(
        self, model: torch.nn.Module, flag: Callable[[], int], watch: Watchdog, is_last: bool
    ) -> dict[str, float] | None:
        """The metrics as `eval_NAME`, or None where a flag was set: then the evaluation is still owed."""
        assert self.evaluator is not None
        self.is_owed = True
        found = self.evaluator(model, flag, watch, is_last)
        gate.refuse()
        if found is None:
            return None
        return {f"eval_{name}": value for name, value in found.items()}

    def count(self, step: int, metrics: dict[str, float]) -> tuple[bool, bool]:
        """Count the evaluation after `step` steps. Returns whether the run has converged, and whether this is its best."""
        self.is_owed = False
        if self.plateau is not None and self.every and step % self.every == 0:  # at the end where a longer run has one too
            self.plateau.count(step, _metric(metrics, self.plateau.metric, "schedule.metric"))
        return self.convergence.reached(metrics), self.best.improved(step, metrics)


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
        if not math.isnan(value) and (self.best is None or value < self.best - self._settings.min_delta):
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
        if math.isnan(value) or (self.value is not None and value >= self.value):
            return False
        self.value, self.step = value, step
        return True


def refuse_unknown_metrics(config: Config, evaluator: Evaluator | None, model: torch.nn.Module) -> None:
    """Raise UsageError if the config goes by a metric that evaluation will not give: the end would be late for that."""
    wanted = {"checkpoint.best": (config.checkpoint.best or "").partition(":")[0]}
    wanted["converge.metric"] = config.converge.metric if config.converge else ""
    wanted["schedule.metric"] = config.schedule.judged_by or ""
    asked = {key: metric for key, metric in wanted.items() if metric}
    if asked and evaluator is None:
        raise UsageError(
            *(f'{key}: found {metric!r}, and data("eval") is None; return a split' for key, metric in asked.items())
        )
    if asked and evaluator is not None:
        names = evaluator.names(model, {metric.removeprefix("eval_") for metric in asked.values()})
        metrics = {f"eval_{name}": 0.0 for name in sorted(names)}
        for key, metric in asked.items():
            _metric(metrics, metric, key)


def _metric(metrics: dict[str, float], wanted: str, key: str) -> float:
    name = "eval_" + wanted.removeprefix("eval_")
    if name not in metrics:
        known = ", ".join(known.removeprefix("eval_") for known in metrics)
        raise UsageError(f"{key}: found {wanted!r}; evaluation gives {known}")
    return metrics[name]

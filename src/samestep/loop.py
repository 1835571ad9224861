"""The training sequence. Read this file first: zero_grad, forward, loss, backward, optimizer step, and when to evaluate.

Nothing here asks how many processes there are. Each has its share of the step's micro-batches, one fixed tree adds up what
they computed, and so the weights are the same bits on any number of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from samestep.audit import NoAudit
from samestep.batches import Batches, MicroBatch, Plan
from samestep.config import Config
from samestep.control import StopFlag, decided_by_main
from samestep.errors import Stopped
from samestep.evaluation import Convergence, Evaluator
from samestep.exact import OrderedSum, Statistics, StepExchange
from samestep.optim import GatedOptimizer, divide_and_clip
from samestep.seeding import seed_all
from samestep.task import Ratio, Task, checked_ratio
from samestep.tracking import NullTracker, Reports, Tracker


@dataclass
class Training:
    """Everything that a run is made of; `session` builds it from a config. Steps count from 0 in code, from 1 in print."""

    config: Config
    task: Task
    model: torch.nn.Module  # as Accelerate wrapped it
    bare_model: torch.nn.Module
    accelerator: Accelerator
    optimizer: GatedOptimizer
    plan: Plan
    batches: Batches
    gradients: OrderedSum
    statistics: Statistics
    exchange: StepExchange
    audit: NoAudit
    evaluator: Evaluator | None
    convergence: Convergence
    reports: Reports
    tracker: Tracker | NullTracker
    stop: StopFlag
    save: Callable[[int], None]
    first_step: int
    num_steps: int
    saved_at: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def micro_batch(self, step: int, micro: MicroBatch) -> Iterator[None]:
        """A forward and backward whose random numbers and buffers depend on (seed, step, micro-batch) and no more."""
        seed_all(self.config.seed, step, micro.index, device=self.accelerator.device)
        with self.gradients.micro_batch(micro.index), self.statistics.micro_batch(micro.index, micro.num_rows > 0):
            yield

    def first_scale(self, weight: torch.Tensor | float) -> None:
        """Before a run's first backward in fp16: fit the scale to sums over a step, of which micro-batch 0 shows the size."""
        if self.optimizer.needs_scale:
            self.optimizer.fit_scale(decided_by_main(lambda: float(weight)) * self.config.micro_batches)

    def evaluate(self, step: int) -> bool:
        """Evaluate after `step` finished steps; True if the run has converged."""
        if self.evaluator is None:
            return False
        metrics = {f"eval_{name}": value for name, value in self.evaluator(self.bare_model).items()}
        epoch = (step - 1) // self.plan.steps_per_epoch + 1
        self.tracker.evaluated({"step": step, "epoch": epoch, "time": time.time(), **metrics})
        return self.convergence.reached(metrics)

    def save_is_due(self, step: int) -> bool:
        settings = self.config.checkpoint
        by_clock = settings.minutes is not None and time.monotonic() - self.saved_at > settings.minutes * 60
        return by_clock or (settings.every is not None and step % settings.every == 0)


def train(run: Training) -> int:
    """Train to the end, or until the run has converged; returns the steps finished. Raises Stopped when asked to stop."""
    every = run.config.evaluate.every
    run.model.train()
    for step in range(run.first_step, run.num_steps):
        run.optimizer.zero_grad()
        run.audit.begin(step)
        run.statistics.begin()
        sums: list[Ratio] = []
        for micro in run.batches.step(step):
            with run.micro_batch(step, micro):
                with run.accelerator.autocast():
                    loss, weight = checked_ratio(run.task.loss(run.model, micro.batch))
                run.first_scale(weight)
                counts = micro.num_rows > 0
                run.accelerator.backward(run.gradients.connect(loss, counts))
            sums.append((loss, weight) if counts else (torch.zeros_like(loss), weight * 0))

        total = run.exchange.total(sums, run.gradients.used, run.stop.signal)
        run.audit.compare(step, sums)
        grads = run.gradients.finish(total.used)
        run.optimizer.unscale()
        norm = divide_and_clip(grads, total.weight, run.config.clip)
        rate = run.optimizer.step(step, finite=torch.isfinite(total.loss + norm))
        run.statistics.finish(run.plan.counted(step))
        run.reports.post(step, total.loss, total.weight, norm, rate, grads)

        finished = step + 1
        if every and finished % every == 0 and finished < run.num_steps:
            run.reports.flush()
            if run.evaluate(finished):
                run.tracker.line(f"converged at step {finished}")
                return finished
        if total.flag and finished < run.num_steps:
            run.reports.flush()
            run.save(finished)
            raise Stopped(f"stopped at step {finished} of {run.num_steps}, saved")
        if run.save_is_due(finished):
            run.reports.flush()
            run.save(finished)
            run.saved_at = time.monotonic()
    run.reports.flush()
    run.evaluate(run.num_steps)
    return run.num_steps

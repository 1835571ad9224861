"""The training sequence. Read this file first: zero_grad, forward, loss, backward, optimizer step, and when to evaluate.

Nothing here asks how many processes there are. Each has its share of the step's micro-batches, one fixed tree adds up what
they computed, and so the weights are the same bits on any number of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from samestep.batches import Batches, MicroBatch, Plan
from samestep.checkpoint import NullSaver, Saver
from samestep.checks import NoAudit, NoPurity
from samestep.config import Config
from samestep.control import StopFlag, Watchdog, agreed
from samestep.errors import Stopped
from samestep.evaluation import Best, Convergence, Evaluator
from samestep.exact import OrderedSum, ShardedModel, Statistics, StepExchange, is_finite
from samestep.optimizer.step import GatedOptimizer, divide_and_clip
from samestep.randomness.seeding import seed_all
from samestep.task import Task, checked_loss
from samestep.tracking import NullTracker, Reports, Tracker


@dataclass
class Training:
    """Everything that a run is made of; `session` builds it from a config. Steps count from 0 in code, from 1 in print."""

    config: Config
    task: Task
    model: torch.nn.Module  # the task's own: nothing wraps it, at any number of processes
    accelerator: Accelerator
    autocast: Callable[[], contextlib.AbstractContextManager[object]]  # Accelerate's, where it casts
    backward: Callable[[torch.Tensor], object]  # Accelerate's, where it scales
    optimizer: GatedOptimizer
    after_step: Callable[[int], None]  # the task's own change of the model, once the optimizer has stepped
    plan: Plan
    batches: Batches
    gradients: OrderedSum
    statistics: Statistics
    exchange: StepExchange
    audit: NoAudit
    purity: NoPurity
    evaluator: Evaluator | None
    convergence: Convergence
    best: Best
    reports: Reports
    tracker: Tracker | NullTracker
    stop: StopFlag
    saver: Saver | NullSaver
    watch: Watchdog
    first_step: int
    num_steps: int
    owes_evaluation: bool  # a stop came in the middle of the one that belongs to `first_step`
    data: dict[str, Any]  # by which the rows are known again
    sharded: ShardedModel | None = None  # the model, where no process has all of it

    @property
    def finished(self) -> int:
        """The steps whose weights the model holds; on a GPU this waits for all that is queued there."""
        return self.first_step + self.optimizer.counted

    @contextlib.contextmanager
    def micro_batch(self, step: int, micro: MicroBatch) -> Iterator[None]:
        """A forward and backward whose random numbers and buffers depend on (seed, step, micro-batch) and no more."""
        self.watch.at("computing")
        seed_all(self.config.seed, step, micro.index, device=self.optimizer.device)
        self.gradients.begin_micro_batch(micro.index)
        self.statistics.begin_micro_batch()
        self.purity.begin_micro_batch(step, micro)
        yield
        self.purity.end_micro_batch(step, micro)
        self.statistics.end_micro_batch(micro.index, micro.num_rows > 0)
        self.gradients.end_micro_batch(micro.index)
        self.watch.at("reading data")

    def asked_to_stop(self) -> int:
        """A signal that asks for a stop, on this rank, or the time limit's being near; 0 otherwise."""
        return self.stop.asked(lambda: 2 * (self.saver.longest_s + self.watch.slow_step_s))

    def evaluate(self, step: int) -> bool:
        """Evaluate after `step` finished steps; True if the run has converged. Raises Stopped when asked to stop."""
        if self.evaluator is None:
            return False
        self.owes_evaluation = True
        with self.purity.evaluation(agreed):
            found = self.evaluator(self.model, self.asked_to_stop, self.watch)
        if found is None:
            self.save_and_stop(step)
        self.owes_evaluation = False
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.tracker.evaluated({"step": step, "epoch": self.plan.epoch(step - 1) + 1, "time": time.time(), **metrics})
        converged = self.convergence.reached(metrics)
        if self.best.improved(step, metrics):
            self.watch.saving()
            self.saver.save(step)
        return converged

    def save_for_all(self, step: int, patience_s: float) -> None:
        """Save, and go on everywhere once it is on disk."""
        self.watch.saving()
        self.saver.save_for_all(step, patience_s)

    def save_and_stop(self, step: int) -> NoReturn:
        self.save_for_all(step, patience_s=20.0)
        raise Stopped(f"stopped at step {step} of {self.num_steps}, saved")


def train(run: Training) -> int:
    """Train to the end, or until the run has converged; returns the steps finished. Raises Stopped when asked to stop."""
    every = run.config.evaluate.every
    if run.owes_evaluation and run.first_step < run.num_steps:
        run.evaluate(run.first_step)
    if run.convergence.is_reached and run.first_step < run.num_steps:  # maybe by a start that died after its last save
        return run.first_step
    for step in range(run.first_step, run.num_steps):
        run.watch.step(step)
        run.optimizer.zero_grad()
        run.statistics.begin()
        run.audit.begin(step)
        run.watch.at("reading data")
        for micro in run.batches.step(step):
            with run.micro_batch(step, micro):
                with run.autocast():
                    loss, weight, numbers = checked_loss(run.task.loss(run.model, micro.batch))
                run.optimizer.fit_scale(weight, run.config.micro_batches)
                counts = micro.num_rows > 0
                run.exchange.add(loss, weight, numbers, counts)
                run.backward(run.gradients.connect(loss, counts))

        run.watch.meeting()
        run.statistics.average(run.plan.counted(step))
        total = run.exchange.total(run.gradients.used, run.asked_to_stop)
        run.audit.compare(step)
        grads = run.gradients.finish(total.used)
        run.optimizer.unscale()
        norm = divide_and_clip(grads, total.weight, run.config.clip, run.gradients.combine)
        run.statistics.finish(arrived=is_finite(total.loss))
        rate = run.optimizer.step(step, total.loss, norm)
        run.after_step(step)
        finished = step + 1
        run.reports.post(step, total, norm, rate, grads)

        if every and finished % every == 0 and finished < run.num_steps:
            run.reports.flush()
            if run.evaluate(finished):
                run.tracker.line(f"converged at step {finished}")
                return finished
        if total.flag and finished < run.num_steps:
            run.reports.flush()
            run.save_and_stop(finished)
        if finished < run.num_steps and run.saver.is_due(finished):
            run.reports.flush()
            run.watch.saving()
            run.saver.save(finished)
    run.reports.flush()
    run.evaluate(run.num_steps)
    return run.num_steps

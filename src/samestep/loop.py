"""The training sequence. Read this file first: zero_grad, forward, loss, backward, optimizer step, and when to evaluate.

Nothing here asks how many processes there are. Each has its share of the step's micro-batches, one fixed tree adds up what
they computed, and so the weights are the same bits on any number of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from samestep.batches import Batches, MicroBatch
from samestep.checkpoint import DUE, Ending
from samestep.checks import Checks
from samestep.config import Config
from samestep.control import Watchdog, agreed
from samestep.evaluation import Evaluation
from samestep.exact import StepSums
from samestep.optimizer import GatedOptimizer, divide_and_clip
from samestep.randomness.seeding import seed_all
from samestep.task import NOW, Task, at_step, checked_loss
from samestep.tracking import Reports


@dataclass
class Training:
    """Everything that a run is made of; `session` builds it from a config. Steps count from 0 in code, from 1 in print."""

    config: Config
    task: Task
    model: torch.nn.Module  # the task's own: nothing wraps it, at any number of processes
    autocast: Callable[[], contextlib.AbstractContextManager[object]]  # Accelerate's, where it casts
    backward: Callable[[torch.Tensor], object]  # Accelerate's, where it scales
    optimizer: GatedOptimizer
    after_step: Callable[[int], None]  # the task's own change of the model, once the optimizer has stepped
    batches: Batches
    sums: StepSums  # of gradients, losses and running statistics
    checks: Checks  # of what a step did beside its numbers
    evaluation: Evaluation
    reports: Reports  # to people: rows, bar, trackers
    ending: Ending  # stop flag and saver
    watch: Watchdog  # over a step that hangs
    first_step: int
    num_steps: int

    @property
    def finished(self) -> int:
        """The steps whose weights the model holds; on a GPU this waits for all that is queued there."""
        return self.first_step + self.optimizer.counted

    @contextlib.contextmanager
    def micro_batch(self, step: int, micro: MicroBatch) -> Iterator[None]:
        """A forward and backward whose random numbers and buffers depend on (seed, step, micro-batch) and no more."""
        self.watch.at("computing")
        seed_all(self.config.seed, step, micro.index, device=self.optimizer.device)
        self.sums.gradients.begin_micro_batch(micro.index)
        self.sums.statistics.begin_micro_batch()
        self.checks.begin_micro_batch(step, micro)
        NOW.step = step + 1
        yield
        NOW.step = None
        self.checks.end_micro_batch(step, micro)
        self.sums.statistics.end_micro_batch(micro.index, micro.num_rows > 0)
        self.sums.gradients.end_micro_batch(micro.index)
        self.watch.at("reading data")

    def evaluate(self, step: int) -> bool:
        """Evaluate after `step` finished steps; True if the run has converged. Raises Stopped when asked to stop."""
        if self.evaluation.evaluator is None:
            return False
        with self.checks.evaluation(agreed), at_step(step):
            metrics = self.evaluation.measure(self.model, self.ending.asked, self.watch, step == self.num_steps)
        if metrics is None:
            self.ending.save_and_stop(step, self.num_steps)
        self.reports.evaluated(step, metrics)
        has_converged, is_best = self.evaluation.count(step, metrics)
        if is_best:
            self.ending.save(step)
        return has_converged


def train(run: Training) -> int:
    """Train to the end, or until the run has converged; returns the steps finished. Raises Stopped when asked to stop."""
    every = run.config.evaluate.every
    if run.evaluation.is_owed and run.first_step < run.num_steps:
        run.evaluate(run.first_step)
    if run.evaluation.convergence.is_reached and run.first_step < run.num_steps:  # by a start that died after its last save
        return run.first_step
    for step in range(run.first_step, run.num_steps):
        run.watch.step(step)
        run.optimizer.zero_grad()
        run.sums.statistics.begin()
        run.checks.begin(step)
        run.watch.at("reading data")
        for micro in run.batches.step(step):
            with run.micro_batch(step, micro):
                with run.autocast():
                    loss, weight, numbers = checked_loss(run.task.loss(run.model, micro.batch))
                run.optimizer.fit_scale(weight, run.config.micro_batches)
                counts = micro.num_rows > 0
                run.sums.exchange.add(loss, weight, numbers, counts)
                run.backward(run.sums.gradients.connect(loss, counts))
        run.watch.meeting()
        total, grads = run.sums.finish(step)
        run.checks.compare(step)
        run.optimizer.unscale()
        norm = divide_and_clip(grads, total.weight, run.config.clip, run.sums.gradients.combine, run.optimizer.fused)
        run.sums.statistics.finish(total.loss)
        rate = run.optimizer.step(step, total.loss, norm)
        run.after_step(step)
        finished = step + 1
        run.reports.post(step, total, norm, rate, grads)

        if every and finished % every == 0 and finished < run.num_steps:
            run.reports.flush("evaluating")
            if run.evaluate(finished):
                run.reports.tracker.line(f"converged at step {finished}")
                return finished
        if total.flag > DUE and finished < run.num_steps:
            run.reports.flush("stopping")
            run.ending.save_and_stop(finished, run.num_steps)
        if finished < run.num_steps and (total.flag == DUE or run.ending.saver.is_due(finished)):
            run.reports.flush("saving")
            run.ending.save(finished)
    run.reports.flush("evaluating")
    run.evaluate(run.num_steps)
    return run.num_steps

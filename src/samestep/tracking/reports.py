"""From the device to people: each step's loss and norm reach the host without the device waiting, and are recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from samestep.batches import Plan
from samestep.config import Config
from samestep.errors import TrainingError
from samestep.exact import Scalar, Totals, fingerprint
from samestep.run.metric_rows import Row
from samestep.tracking.pace import Pace
from samestep.tracking.tracker import NullTracker, Tracker


@dataclass
class _Posted:
    step: int
    rate: float
    values: list[float] | torch.Tensor  # loss, weight, norm, and the task's own numbers
    names: list[str]  # of these
    prints: torch.Tensor | None
    arrived: torch.cuda.Event | None


class Reports:
    """A step's numbers, read at once on a CPU and one step later on a GPU, so that no step waits for the host.

    Args:
        plan: for the epoch of a row, the line at an epoch's end, and the rows of a step.
        fingerprints: of gradients, of which this rank may have its rows alone.
        pace: what the steps take, which a row has beside their numbers.
        names_weight: the task has a `unit` of its own, so that nobody takes its weights for rows.
    """

    def __init__(
        self,
        tracker: Tracker | NullTracker,
        config: Config,
        plan: Plan,
        num_steps: int,
        pace: Pace,
        fingerprints: Callable[[list[torch.Tensor]], torch.Tensor] = fingerprint,
        names_weight: bool = False,
    ) -> None:
        self.tracker, self._every, self._fingerprint = tracker, config.track.every, config.track.fingerprint
        self._epochs, self._steps_per_epoch, self._num_steps = config.epochs, plan.steps_per_epoch, num_steps
        self._plan, self.pace, self._fingerprints = plan, pace, fingerprints
        self._skips_overflows = config.precision == "fp16"
        self._posted: list[_Posted] = []
        self.read_steps = 0  # the steps whose numbers the host has read, and found finite
        self._epoch_loss = self._epoch_weight = 0.0
        self._weight = 0.0
        self._is_weight_clear = names_weight

    def post(self, step: int, total: Totals, norm: Scalar, rate: float, grads: list[torch.Tensor]) -> None:
        """Take the numbers of a step (from 0), and the gradients that it stepped with.

        Raises TrainingError on a loss or norm that is not finite.
        """
        if self.pace.is_paused:
            self.pace.go_on()
            self.tracker.doing("running")
        prints = self._fingerprints(grads) if self._fingerprint and self._is_tracked(step + 1) else None
        values, names = [total.loss, total.weight, norm, *total.numbers.values()], list(total.numbers)
        if not isinstance(total.loss, torch.Tensor):
            self._read(_Posted(step, rate, [float(value) for value in values], names, prints, None))
            return
        host = _to_host(torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values]))
        host_prints = _to_host(prints) if prints is not None else None
        arrived = torch.cuda.Event()
        arrived.record()
        self._posted.append(_Posted(step, rate, host, names, host_prints, arrived))
        if len(self._posted) > 1:
            self._read(self._posted.pop(0))

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Take an evaluation's metrics, after `step` finished steps."""
        self.tracker.evaluated({"step": step, "epoch": self._plan.epoch(step - 1) + 1, "time": time.time(), **metrics})

    def flush(self, state: str, finished: int | None = None) -> None:
        """Read what is on its way, before the run goes on to what `state` says: evaluating, saving or stopping.

        After a fault read only what belongs to the first `finished` steps, for the rest never came.
        """
        while self._posted:
            posted = self._posted.pop(0)
            if finished is None or posted.step < finished:
                self._read(posted)
        self.pace.pause()
        self.tracker.doing(state)

    def _read(self, posted: _Posted) -> None:
        if posted.arrived is not None:
            posted.arrived.synchronize()
        loss, weight, norm, *numbers = posted.values if isinstance(posted.values, list) else posted.values.tolist()
        step = posted.step + 1
        if weight == 0:
            raise TrainingError(
                f"step {step}: none of its rows counts: the weights of {self._rows(posted.step)} add up to 0. No step was "
                "taken. Leave such rows out in data(), or write a larger global_batch_size"
            )
        if not math.isfinite(loss) or not (math.isfinite(norm) or self._skips_overflows):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
            masked = ": a micro-batch of which nothing counts comes to the sum 0 and the weight 0, not to a mean of nothing"
            raise TrainingError(
                f"step {step}: {what}. No step was taken with it, and the weights are those after step {step - 1}. "
                f"Try a smaller lr or clip=1.0, or look at the data of step {step}{masked if math.isnan(loss) else ''}."
            )
        self.read_steps = step
        self._weight += weight
        if self._is_tracked(step):
            if not self._is_weight_clear:
                self._explain(posted.step, weight)
            row: Row = {"step": step, "epoch": posted.step // self._steps_per_epoch + 1, "time": time.time()}
            row |= {"loss": loss, "lr": posted.rate, "grad_norm": norm}
            row |= zip(posted.names, numbers, strict=True)
            if posted.prints is not None:
                prints = posted.prints.tolist()
                row["fingerprint"] = sum(prints) & 0xFFFFFFFFFFFFFFFF
                if self._fingerprint == "parameters":
                    row["fingerprints"] = prints
            row |= self.pace.columns(step, self._weight)
            self.tracker.step(row, self._weight)
            self._weight = 0.0
        if self._epochs:
            self._count_epoch(step, loss * weight, weight)

    def _explain(self, step: int, weight: float) -> None:
        """Say once what a rate counts that is called one of samples and is none."""
        rows = self._plan.counted_rows(step)
        if weight != rows:
            self._is_weight_clear = True
            self.tracker.line(
                f"note: samples/s counts the weight that loss returns, which came to {weight:,.6g} in step {step + 1} of "
                f'{rows:,} rows; name what it counts in the task, such as unit = "tokens"'
            )

    def _rows(self, step: int) -> str:
        counted = range(self._plan.counted(step))
        rows = sorted(row for index in counted for row in self._plan.rows(step, index).tolist())
        return "rows " + ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")

    def _is_tracked(self, step: int) -> bool:
        return step % self._every == 0 or step == self._num_steps

    def _count_epoch(self, step: int, loss_sum: float, weight: float) -> None:
        self._epoch_loss, self._epoch_weight = self._epoch_loss + loss_sum, self._epoch_weight + weight
        if step % self._steps_per_epoch == 0:
            epoch = step // self._steps_per_epoch
            self.tracker.line(f"Epoch [{epoch}/{self._epochs}], Loss: {self._epoch_loss / self._epoch_weight:.8g}")
            self._epoch_loss = self._epoch_weight = 0.0


def _to_host(values: torch.Tensor) -> torch.Tensor:
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)

"""`samestep replay`: a recorded run again, here, to one step: checked against the record, and laid open at that step."""

from __future__ import annotations

import math
import pdb
from typing import Any

import torch

from samestep.checkpoint import Checkpoints, Saved, read, verify, weights_hash
from samestep.commands.again import build_again
from samestep.config import Config
from samestep.errors import TrainingError, UsageError
from samestep.loop import Training, train
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import parsed
from samestep.runtime import prepare_environment, read_runtime
from samestep.runtime.device_kind import beside_a_difference, differences
from samestep.session import make_accelerator
from samestep.session.kind import kind_of
from samestep.task import Batch, Loss, Ratio
from samestep.task.loading import load_task
from samestep.tracking import NullTracker

_CHECKED = ("loss", "grad_norm", "fingerprint")


class _Checker(NullTracker):
    """Compares each tracked row with the recorded one."""

    def __init__(self, recorded: dict[int, dict[str, Any]], comparable: bool, device: torch.device) -> None:
        super().__init__()
        self._recorded, self._comparable, self._device = recorded, comparable, device
        self.checked = 0

    def step(self, row: dict[str, Any], weight: float) -> None:
        super().step(row, weight)
        expected = self._recorded.get(row["step"])
        if expected is None or not self._comparable:
            return
        for key in _CHECKED:
            if key in expected and key in row and expected[key] != row[key]:
                raise TrainingError(
                    f"step {row['step']}: {key} was recorded as {expected[key]} and is {row[key]} here. The record and this "
                    "machine part at this step or since the tracked step before it: a device computed wrongly, or the task "
                    "draws numbers that are not seeded (samestep verify tells)." + beside_a_difference(self._device)
                )
        self.checked += 1


def replay(folder: RunFolder, config: Config, step: int, stop_before: bool) -> None:
    """Replay a run to the end of `step` on whatever is here, and print what that step computed.

    Raises TrainingError at the first tracked step whose loss or fingerprint is not the recorded one.
    """
    prepare_environment(read_runtime(), config.threads)
    state, recorded = folder.read_state(), _recorded(folder)
    if not 1 <= step <= state["step"] and step not in recorded:
        raise UsageError(f"--step: found {step}; the run has finished steps 1 to {max([state['step'], *recorded])}")

    if step <= (origin := state.get("parent", {"step": 0}))["step"]:
        raise UsageError(
            f"--step: found {step}; up to step {origin['step']} it is {origin['run']} that was trained: replay that"
        )

    accelerator = make_accelerator(config)
    parted = differences(state["kind"], kind_of(accelerator.device))
    for line in parted:
        print(f"not comparable: {line}; the record is shown beside what is computed here, and nothing is checked")
    checker = _Checker(recorded, not parted, accelerator.device)
    earlier = [path for path in Checkpoints(folder, config.checkpoint.keep).all() if _step_of(path) < step]
    saved = next((read(path) for path in earlier if _is_whole(path)), None)
    print(f"replaying from {'step ' + str(saved.step) if saved else 'the start'} to step {step}", flush=True)

    training = build_again(config, load_task(config.task, config.fields), accelerator, saved, step, checker)
    if (plateau := training.evaluation.plateau) is not None:  # what the run's own evaluations came to decides its rate
        for evaluated, value in _evaluations(folder, plateau.metric, saved):
            if evaluated % (training.evaluation.every or 1) == 0:
                plateau.count(evaluated, value)
    training.evaluation.evaluator = None
    seen = _Seen(training, step, stop_before)
    train(training)
    print("\n".join(_shown(training, config, step, seen, recorded.get(step), checker)), flush=True)


class _Seen:
    """Watches the task's loss: keeps what the replayed step's micro-batches came to, and stops before the first of them."""

    def __init__(self, training: Training, step: int, stop_before: bool) -> None:
        self._loss, self._stop_before = training.task.loss, stop_before
        self._skipped = (step - 1 - training.first_step) * training.config.micro_batches
        self._calls = 0
        self.ratios: list[Ratio | Loss] = []
        object.__setattr__(training.task, "loss", self.watch)  # a pydantic model takes no other way

    def watch(self, model: torch.nn.Module, batch: Batch) -> Ratio | Loss:
        self._calls += 1
        if self._calls > self._skipped:
            if self._stop_before and not self.ratios:
                pdb.set_trace()
            result = self._loss(model, batch)
            self.ratios.append(result)
            return result
        return self._loss(model, batch)


def _recorded(folder: RunFolder) -> dict[int, dict[str, Any]]:
    lines = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    return {row["step"]: row for line in lines if (row := parsed(line)) is not None and "loss" in row}


def _evaluations(folder: RunFolder, metric: str, saved: Saved | None) -> list[tuple[int, float]]:
    """What the run's evaluations from a checkpoint on came to, by the steps finished before each."""
    first = saved.step + (not saved.values["owes_evaluation"]) if saved else 0
    lines = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    rows = [row for line in lines if (row := parsed(line)) is not None and row["step"] >= first]
    found = {row["step"]: row[key] for row in rows if (key := f"eval_{metric.removeprefix('eval_')}") in row}
    return [(step, math.nan if value is None else value) for step, value in sorted(found.items())]


def _step_of(path: Any) -> int:
    return int(path.name.removeprefix("step-"))


def _is_whole(path: Any) -> bool:
    try:
        verify(path)
    except TrainingError:
        return False
    return True


def _shown(
    training: Training, config: Config, step: int, seen: _Seen, recorded: dict[str, Any] | None, checker: _Checker
) -> list[str]:
    lines = [f"step {step}, epoch {training.batches.plan.epoch(step - 1) + 1}"]
    for index, (loss, weight, *_) in enumerate(seen.ratios):
        rows = training.batches.plan.rows(step - 1, index).tolist()
        count = training.batches.plan.num_rows(step - 1, index)
        share = f"rows {rows}" if count else "no rows of its own"
        lines.append(f"  micro-batch {index}: loss sum {float(loss.detach()):.9g}, weight {float(weight):g}, {share}")
    for name, parameter in training.model.named_parameters():
        if parameter.grad is not None:
            norms = f"gradient norm {float(parameter.grad.norm()):.9g}, weight norm {float(parameter.detach().norm()):.9g}"
            lines.append(f"  {name}: {norms}")
    last = training.reports.tracker.last
    lines.append(f"  loss {last['loss']!r}  grad_norm {last['grad_norm']!r}")
    if recorded is not None:
        lines.append(f"  recorded: loss {recorded['loss']!r}  grad_norm {recorded['grad_norm']!r}")
    lines.append(f"{checker.checked} tracked steps were checked against the record, and all are the same bits")
    lines.append(f"weights {weights_hash(training.model)}")
    return lines

"""How long a run will take here: its start, its steps, its evaluations and its saves."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from samestep.config import Config
from samestep.config.preflight import nearest_folder
from samestep.evaluation import Evaluator
from samestep.loop import Training, train

_TRIED_S = 1.0  # for steps besides the first
_STRETCHES = ((1, 2), (2, 3), (3, 4), (4, 7))  # of steps, each timed as one; of the second and the fourth none is audited
_SAMPLE_BYTES = 16_000_000  # written and hashed to see how fast that is


@dataclass(frozen=True)
class Times:
    """What was measured on one process, in seconds.

    Args:
        imports, building: from this process's beginning to the task's own part of a start, and that part.
        micro: of a micro-batch, forward and backward.
        step: of a whole one.
        evaluated: of a micro-batch of an evaluation; None where there is none.
        saving: of a checkpoint.
    """

    imports: float
    building: float
    micro: float
    step: float
    evaluated: float | None
    saving: float


def whole_steps(run: Training, expected_s: float) -> float:
    """Take a step, and a few more where they are short; returns what the shortest took: it has no audit, where that can be had.

    Args:
        expected_s: what a step may take; the first one's own time says little, for things are made ready in it.
    """
    last_step, run.evaluation.evaluator = run.num_steps, None
    found = [_taken(run, 0, 1)]
    until = time.perf_counter() + _TRIED_S
    for first, last in _STRETCHES:
        if last > last_step or time.perf_counter() + expected_s * (last - first) > until:
            break
        found.append(_taken(run, first, last))
    run.num_steps = last_step
    return min(found)


def _taken(run: Training, first: int, last: int) -> float:
    """Seconds a step of this stretch takes."""
    run.first_step, run.num_steps = first, last
    begun = time.perf_counter()
    train(run)
    return (time.perf_counter() - begun) / (last - first)


def timed(run: Training, work: Callable[[], object]) -> float:
    """Seconds of what is done for the second time."""
    work()
    begun = time.perf_counter()
    work()
    if run.optimizer.device.type == "cuda":
        torch.cuda.synchronize(run.optimizer.device)
    return time.perf_counter() - begun


def saving_s(config: Config, size: float) -> float:
    """Seconds to write and hash a checkpoint of so many bytes, by a sample that is gone at once; 0 if none can be written."""
    sample = bytes(max(1, min(int(size), _SAMPLE_BYTES)))
    begun = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=nearest_folder(config.runs)) as file:
            file.write(sample)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return 0.0
    hashlib.sha256(sample)
    return (time.perf_counter() - begun) * max(1.0, size / len(sample))


def words(run: Training, times: Times, here: int, evaluator: Evaluator | None) -> str:
    """The time in all, and what of it goes where.

    Args:
        here: the processes; of several, those of a launcher, which imports before them what they import.
    """
    config, steps = run.config, run.num_steps
    start = times.imports + times.building + (times.imports + times.building if here > 1 else 0.0)
    micro = min(times.micro, times.step / config.micro_batches)
    step = times.step - micro * (config.micro_batches - math.ceil(config.micro_batches / here))
    parts = {"to start": start, f"{steps:,} steps of {short(step)}": step * steps}
    if evaluator is not None and times.evaluated is not None:
        count = (steps - 1) // config.evaluate.every + 1 if config.evaluate.every else 1
        each = times.evaluated * math.ceil(evaluator.num_batches / here)
        parts[f"{count:,} evaluations" if count > 1 else "an evaluation"] = each * count
    beside = 0 if config.checkpoint.background else _saves(config, steps, sum(parts.values()))
    parts["saves"] = times.saving * (1 + beside)
    kept = [
        f"{short(seconds)} {name}" if name == "to start" else f"{name}, {short(seconds)}" for name, seconds in parts.items()
    ]
    return f"about {short(sum(parts.values()))} on {here} process{'es' * (here > 1)}: {'; '.join(kept)}"


def _saves(config: Config, steps: int, seconds: float) -> int:
    """How many saves there are before the last one."""
    by_number = steps // config.checkpoint.every if config.checkpoint.every else 0
    return by_number + (int(seconds / 60 / config.checkpoint.minutes) if config.checkpoint.minutes else 0)


def short(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds > 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"

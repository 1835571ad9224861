"""The rate as a function of the step alone: a resumed run reads it off, and nothing of it is kept."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable

from samestep.config import Schedule
from samestep.errors import UsageError, nearest, place_in_user_code
from samestep.randomness.seeding import seed_all
from samestep.task.loading import load_module

_ONECYCLE_BEGINS = 1 / 25  # as in torch.optim.lr_scheduler.OneCycleLR, as is the part of the run that goes up
_ONECYCLE_UP = 0.3
_WSD_DOWN = 0.1
_RATING = 6  # sets its random numbers apart from the forward's


def make_rate(schedule: Schedule, num_steps: int, seed: int = 0) -> Callable[[int], float]:
    """The part of `lr` in force at each step, which counts from 0. Raises UsageError for a function that does not do.

    Args:
        seed: for random numbers that a function of one's own may draw.
    """
    if ":" in schedule.name:
        return _own(schedule.name, num_steps, seed)
    return functools.partial(rate_factor, schedule, num_steps=num_steps)


def rate_factor(schedule: Schedule, step: int, num_steps: int) -> float:
    """The part of `lr` in force at a step, counted from 0: up over `warmup` steps, then by name down to `floor`.

    wsd stays up until its last `decay` steps, a tenth of all by default (Hu et al., "MiniCPM", 2024, section 4.1). onecycle
    goes up by a cosine over 0.3 of the run, if `warmup` says nothing else (Smith and Topin, "Super-convergence", 2018).
    """
    warmup = schedule.warmup
    if schedule.name == "onecycle":
        warmup = warmup or max(1, round(_ONECYCLE_UP * num_steps))
        if step < warmup:
            return _ONECYCLE_BEGINS + (1 - _ONECYCLE_BEGINS) * (1 - math.cos(math.pi * step / warmup)) / 2
    elif step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    begin = warmup
    if schedule.name == "wsd":
        begin = max(warmup, num_steps - (schedule.decay or max(1, round(_WSD_DOWN * num_steps))))
        if step < begin:
            return 1.0
    done = (step - begin) / max(1, num_steps - begin)
    shape = 1 - done if schedule.name in ("linear", "wsd") else (1 + math.cos(math.pi * done)) / 2
    return schedule.floor + (1 - schedule.floor) * shape


def _own(name: str, num_steps: int, seed: int) -> Callable[[int], float]:
    """`file.py:function` or `module:function`, called with the step, from 1, and the number of steps if it asks."""
    place, _, attribute = name.rpartition(":")
    module = load_module(place, key="schedule")
    function = getattr(module, attribute, None)
    if not callable(function):
        close = nearest(attribute, [key for key, value in vars(module).items() if inspect.isfunction(value)])
        hint = f"did you mean {place}:{close}?" if close else "write a function of the step there"
        raise UsageError(f"schedule: {place} has no function {attribute}; {hint}")
    needed = [key for key, each in inspect.signature(function).parameters.items() if each.default is each.empty]
    more = (num_steps,) if len(needed) > 1 else ()

    def rate(step: int) -> float:
        seed_all(seed, step, 0, _RATING)
        try:
            found = float(function(step + 1, *more))
        except Exception as error:
            words = f"{type(error).__name__}: {error}{place_in_user_code(error)}"
            raise UsageError(f"schedule: {name} failed at step {step + 1} ({words})") from None
        if not (math.isfinite(found) and found >= 0):
            raise UsageError(f"schedule: {name} gives {found} at step {step + 1}; return the part of lr, 1.0 for all of it")
        return found

    for step in sorted({0, num_steps // 2, num_steps - 1}):
        rate(step)
    return rate

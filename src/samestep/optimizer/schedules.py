"""The rate as a function of the step: a resumed run reads it off, and but for the evaluations before it nothing is kept."""

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
_FACTOR = 0.1  # as torch.optim.lr_scheduler's StepLR, MultiStepLR and ReduceLROnPlateau have it
_RATING = 6  # sets its random numbers apart from the forward's


def make_rate(schedule: Schedule, num_steps: int, seed: int = 0) -> Callable[[int], float]:
    """The part of `lr` in force at each step, which counts from 0. Raises UsageError for a function that does not do.

    Args:
        schedule: with numbers of steps for lengths (`Config.in_steps`).
        seed: for random numbers that a function of one's own may draw.
    """
    if ":" in schedule.name:
        return _own(schedule.name, num_steps, seed)
    if schedule.judged_by:
        return Plateau(schedule)
    return functools.partial(rate_factor, schedule, num_steps=num_steps)


def rate_factor(schedule: Schedule, step: int, num_steps: int) -> float:
    """The part of `lr` in force at a step, counted from 0: up over `warmup` steps, then by name down to `floor`.

    wsd stays up until its last `decay` steps, a tenth of all by default (Hu et al., "MiniCPM", 2024, section 4.1). onecycle
    goes up by a cosine over 0.3 of the run, if `warmup` says nothing else (Smith and Topin, "Super-convergence", 2018).
    inverse_sqrt falls from the end of its warm-up with the square root of the steps (Vaswani et al., "Attention is all you
    need", 2017, section 5.3). restarts is a cosine that begins anew (Loshchilov and Hutter, "SGDR", 2017, section 3).
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
    if schedule.name in ("step", "exponential", "inverse_sqrt"):
        return max(schedule.floor, _fallen(schedule, step))
    begin, end = warmup, num_steps
    if schedule.name == "wsd":
        begin = max(warmup, num_steps - (schedule.decay or max(1, round(_WSD_DOWN * num_steps))))
        if step < begin:
            return 1.0
    if schedule.name == "restarts":
        begin, end = _cycle(schedule, step)
    done = (step - begin) / max(1, end - begin)
    shape = 1 - done if schedule.name in ("linear", "wsd") else (1 + math.cos(math.pi * done)) / 2
    return schedule.floor + (1 - schedule.floor) * shape


def _fallen(schedule: Schedule, step: int) -> float:
    """What is left by now of the rate at its highest, where that does not depend on the run's end."""
    if schedule.name == "inverse_sqrt":
        return math.sqrt(max(schedule.warmup, 1) / (step + 1))
    factor = schedule.factor or _FACTOR
    if schedule.name == "exponential":
        return math.pow(factor, step / (schedule.every or 1))
    return factor ** (step // schedule.every if schedule.every else sum(step >= place for place in schedule.at or ()))


def _cycle(schedule: Schedule, step: int) -> tuple[int, int]:
    """The first step of the cycle that a step is in, and that of the next."""
    begin, length, growth = schedule.warmup, schedule.every or 1, schedule.growth or 1
    if growth == 1:
        begin += (step - begin) // length * length
    while step >= begin + length:
        begin, length = begin + length, length * growth
    return begin, begin + length


class Plateau:
    """A rate that falls by `factor` where more than `patience` evaluations in a row have brought nothing better.

    It depends on the step and on the evaluations before it, and on nothing else: a checkpoint keeps these, and a start that
    counts them again has the same rate. It is `torch.optim.lr_scheduler.ReduceLROnPlateau` with an absolute threshold.

    Attributes:
        metric: what it goes by.
        counted: each evaluation, by the steps finished before it, in order, with the metric's value.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.metric = schedule.judged_by or ""
        self.counted: list[tuple[int, float]] = []
        self._best = math.inf
        self._waited = 0
        self._falls: list[int] = []  # the steps finished before each

    def count(self, step: int, value: float) -> None:
        """Count the evaluation after `step` finished steps; one that a start makes again changes nothing."""
        if self.counted and step <= self.counted[-1][0]:
            return
        self.counted.append((step, value))
        lowest = -value if self._schedule.goal == "max" else value
        if lowest < self._best - (self._schedule.min_delta or 0.0):  # NaN is not
            self._best, self._waited = lowest, 0
            return
        self._waited += 1
        if self._waited > (self._schedule.patience or 0):
            self._waited = 0
            self._falls.append(step)

    def __call__(self, step: int) -> float:
        if step < self._schedule.warmup:
            return (step + 1) / self._schedule.warmup
        falls = sum(step >= finished for finished in self._falls)
        return max(self._schedule.floor, (self._schedule.factor or _FACTOR) ** falls)


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

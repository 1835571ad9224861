"""The rate is a function of the step alone, by name or of one's own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.optim import lr_scheduler

from samestep.config import Schedule
from samestep.config.schema import Config
from samestep.errors import UsageError
from samestep.optimizer.schedules import Plateau, make_rate, rate_factor

ROUNDING = 1e-14  # torch multiplies step by step where we take a power: after a hundred steps some ulps


def test_wsd_stays_up_until_its_last_steps() -> None:
    factors = [rate_factor(Schedule(name="wsd", warmup=2, decay=4, floor=0.2), step, 20) for step in range(21)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[15:] == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert [rate_factor(Schedule(name="wsd"), step, 100) for step in (89, 90, 95, 100)] == [1.0, 1.0, 0.5, 0.0]


def test_onecycle_is_torchs_but_for_where_its_phases_end() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001, pct_start=0.3)
    for step in range(1000):
        ours = rate_factor(Schedule(name="onecycle", warmup=300), step, 1000)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.006)
        optimizer.step()
        one_cycle.step()


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        ({"name": "step", "every": 7}, lambda optimizer: lr_scheduler.StepLR(optimizer, 7)),
        ({"name": "step", "at": [30, 10], "factor": 0.3}, lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [10, 30], 0.3)),
        ({"name": "exponential", "factor": 0.97}, lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.97)),
        (
            {"name": "restarts", "every": 9, "floor": 0.01},
            lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 9, eta_min=0.003),
        ),
        (
            {"name": "restarts", "every": 5, "growth": 3},
            lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5, T_mult=3),
        ),
        (
            {"name": "inverse_sqrt", "warmup": 20},
            lambda optimizer: lr_scheduler.LambdaLR(
                optimizer, lambda step: 20**0.5 * min((step + 1) ** -0.5, (step + 1) * 20**-1.5)
            ),
        ),
    ],
)
def test_a_schedule_is_torchs(schedule: object, make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    theirs, ours = make(optimizer), Schedule.model_validate(schedule)
    for step in range(100):
        assert 0.3 * rate_factor(ours, step, 100) == pytest.approx(optimizer.param_groups[0]["lr"], rel=ROUNDING)
        optimizer.step()
        theirs.step()


def test_an_exponential_over_several_steps_has_no_stairs_and_stops_at_the_floor() -> None:
    schedule = Schedule(name="exponential", every=4, factor=0.5, floor=0.2)
    assert [rate_factor(schedule, step, 9) for step in (0, 2, 4, 8, 12)] == [1.0, math.sqrt(0.5), 0.5, 0.25, 0.2]


def test_cycles_begin_where_the_warm_up_ends() -> None:
    found = [rate_factor(Schedule(name="restarts", every=2, warmup=3), step, 9) for step in range(8)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.5, 1, 0.5, 1])
    assert [rate_factor(Schedule(name="step", every=4, warmup=2), step, 9) for step in (0, 1, 3, 4)] == [0.5, 1.0, 1.0, 0.1]


@pytest.mark.parametrize("goal", ["min", "max"])
def test_a_plateau_is_torchs_with_an_absolute_threshold(goal: Literal["min", "max"]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, goal, factor=0.7, patience=2, threshold=0.2, threshold_mode="abs", min_lr=0.3 * 0.05, eps=0.0
    )
    told = {"name": "plateau", "goal": goal, "factor": 0.7, "patience": 2, "min_delta": 0.2, "floor": 0.05}
    ours, draw = Plateau(Schedule.model_validate(told)), random.Random(7)
    for step in range(1, 121):
        value = draw.choice([math.nan, math.inf, draw.uniform(0, 3), draw.uniform(0, 3)])
        if goal == "max":
            value = -value
        if step % 3 == 0:
            theirs.step(value)
            ours.count(step, value)
        assert 0.3 * ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=ROUNDING)
    assert ours(120) == 0.05


def test_the_rate_on_a_plateau_is_a_function_of_the_step_and_the_evaluations_before_it() -> None:
    schedule = Schedule(name="plateau", patience=1, factor=0.5, warmup=2)
    whole, draw = Plateau(schedule), random.Random(3)
    rates = []
    for step in range(40):
        rates.append(whole(step))
        if step % 4 == 3:
            whole.count(step + 1, draw.random())
    assert rates[:2] == [0.5, 1.0]
    assert len(set(rates)) > 3
    assert [whole(step) for step in range(40)] == rates  # those after a step change nothing at it
    resumed = Plateau(schedule)
    for step, value in whole.counted:
        resumed.count(step, value)
        resumed.count(step, value + 1)  # once more, by a start that died before it could save
    assert [resumed(step) for step in range(40)] == rates
    assert resumed.counted == whole.counted


def test_a_function_of_ones_own_gets_the_step_from_1(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def one(step, warmup=7): return 1 / step\ndef two(step, num_steps): return step / num_steps\n"
        "def broken(step): return [][step]\ndef negative(step): return 1 - step\n"
    )
    assert [make_rate(Schedule(name=f"{file}:one"), 4)(step) for step in range(4)] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert [make_rate(Schedule(name=f"{file}:two"), 4)(step) for step in range(4)] == [1 / 4, 2 / 4, 3 / 4, 1]
    for name, words in (
        ("tow", r"has no function tow; did you mean .*mine\.py:two\?"),
        ("broken", r"failed at step 1 \(IndexError: list index out of range, at .*mine\.py:3 in broken\)"),
        ("negative", "gives -2.0 at step 3; return the part of lr"),
    ):
        with pytest.raises(UsageError, match=words):
            make_rate(Schedule(name=f"{file}:{name}"), 4)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("cosin", "found 'cosin'; did you mean cosine?"),
        ({"name": "cosine", "decay": 3}, "decay: found 3 under cosine; only wsd has one, leave it out"),
        ({"name": "linear", "every": "2 epochs"}, "every: found 2 epochs under linear; only step and exponential and restarts"),
        ({"name": "mine.py:rate", "warmup": 3}, "mine.py:rate says the whole rate; leave out warmup"),
        ({"name": "step"}, "found step with neither every nor at; write every: 30 epochs, or at"),
        ({"name": "step", "every": 3, "at": [3]}, "found step with both every and at"),
        ({"name": "exponential"}, "found exponential without factor; write factor=…, what is left of the rate after a step"),
        ({"name": "restarts"}, "found restarts without every; write every=…, the length of a cycle"),
        ({"name": "plateau"}, "found plateau without patience; write patience=…"),
        ({"name": "plateau", "patience": 2}, "found plateau, and evaluations at the end alone; write evaluate.every=STEPS"),
        ({"name": "step", "every": "soon"}, "found 'soon'; write an integer, or 2 epochs"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_told(schedule: object, words: str) -> None:
    tree = {"task": "text", "global_batch_size": 8, "micro_batch_size": 4, "steps": 3, "optimizer": {"name": "sgd", "lr": 1.0}}
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        Config.model_validate({**tree, "schedule": schedule})
    assert Config.model_validate({**tree, "schedule": "mine.py:rate"}).schedule.name == "mine.py:rate"

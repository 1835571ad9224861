"""`samestep check` forecasts a run's time: all of it, not its micro-batches alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from built_here import built

from samestep.commands.check import forecast
from samestep.commands.check.forecast import Times, saving_s, whole_steps, words
from samestep.loop import Training
from samestep.tracking import NullTracker

TIMES = Times(imports=3.0, building=1.0, micro=0.1, step=1.0, evaluated=0.5, saving=2.0)
FOUR = ["global_batch_size=32", "micro_batch_size=4", "steps=100", "evaluate={every: 40}"]


@pytest.mark.parametrize(
    ("here", "checkpoint", "told"),
    [
        (1, "{}", "about 114 seconds on 1 process: 4 seconds to start; 100 steps of 1 seconds, 100 seconds; 3 evaluations, "),
        (2, "{}", "about 74.5 seconds on 2 processes: 8 seconds to start; 100 steps of 600 ms, 60 seconds; 3 evaluations, "),
        (2, "{every: 10, background: false}", "about 94.5 seconds on 2 processes: 8 seconds to start; 100 steps of 600 ms, "),
        (2, "{minutes: 0.4, background: false}", "about 80.5 seconds on 2 processes: "),  # one each 24 s of 72.5
    ],
)
def test_the_whole_time_is_the_starts_the_steps_the_evaluations_and_the_saves(here: int, checkpoint: str, told: str) -> None:
    run = built(NullTracker(), *FOUR, f"checkpoint={checkpoint}")
    evaluator: Any = SimpleNamespace(num_batches=5)
    found = words(run, TIMES, here, evaluator)
    assert found.startswith(told)
    assert (", 7.5 seconds; saves, 2 seconds" in found) == (here == 1)


def test_a_run_that_is_evaluated_at_its_end_alone_or_not_at_all() -> None:
    run = built(NullTracker(), *FOUR[:3])
    evaluator: Any = SimpleNamespace(num_batches=5)
    assert "; an evaluation, 2.5 seconds; " in words(run, TIMES, 1, evaluator)
    assert "evaluation" not in words(run, TIMES, 1, None)


@pytest.mark.parametrize(("steps", "expected", "costs", "taken", "told"), [
    (100, 0.1, [9.0, 0.2, 0.1, 0.2, 0.1], [(0, 1), (1, 2), (2, 3), (3, 4), (4, 7)], 0.1),
    (100, 9.0, [9.0], [(0, 1)], 9.0),
    (100, 0.3, [9.0, 0.5, 0.3], [(0, 1), (1, 2), (2, 3)], 0.3),
    (3, 0.1, [0.5, 0.3, 0.1], [(0, 1), (1, 2), (2, 3)], 0.1),
    (2, 0.1, [0.5, 0.3], [(0, 1), (1, 2)], 0.3),
    (1, 0.1, [0.5], [(0, 1)], 0.5),
])  # fmt: skip
def test_steps_are_tried_while_they_are_short_and_an_audits_do_not_count(
    monkeypatch: pytest.MonkeyPatch, steps: int, expected: float, costs: list[float], taken: list[tuple[int, int]], told: float
) -> None:
    now, found = 0.0, []

    def train(run: Training) -> None:
        nonlocal now
        found.append((run.first_step, run.num_steps))
        now += costs[len(found) - 1] * (run.num_steps - run.first_step)

    monkeypatch.setattr(forecast, "train", train)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    run = built(NullTracker(), *FOUR[:2], f"steps={steps}")
    assert whole_steps(run, expected) == pytest.approx(told)
    assert found == taken
    assert run.num_steps == steps


def test_a_save_is_as_long_as_its_bytes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = built(NullTracker(), f"runs={tmp_path}/runs").config
    times = iter([0.0, 1.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert saving_s(config, 32_000_000) == pytest.approx(2.0)
    assert list(tmp_path.iterdir()) == []

"""The rate is a function of the step alone, by name or of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samestep.config import Schedule
from samestep.config.schema import Config
from samestep.errors import UsageError
from samestep.optimizer.schedules import make_rate, rate_factor


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
        ({"name": "cosine", "decay": 3}, "only wsd has a decay of its own"),
        ({"name": "mine.py:rate", "warmup": 3}, "mine.py:rate says the whole rate; leave out warmup, floor and decay"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_told(schedule: object, words: str) -> None:
    tree = {"task": "text", "global_batch_size": 8, "micro_batch_size": 4, "steps": 3, "optimizer": {"name": "sgd", "lr": 1.0}}
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        Config.model_validate({**tree, "schedule": schedule})
    assert Config.model_validate({**tree, "schedule": "mine.py:rate"}).schedule.name == "mine.py:rate"

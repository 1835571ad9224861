"""A length may be so many epochs, or a part of the run: a number of steps once it is known how many an epoch has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samestep.config import Config, changes_on_resume, load_config, to_text
from samestep.errors import UsageError

TREE = {"task": "text", "global_batch_size": 8, "micro_batch_size": 4, "optimizer": {"name": "sgd", "lr": 1.0}}


def config(**more: Any) -> Config:
    return Config.model_validate({**TREE, **more})


def test_each_length_becomes_a_number_of_steps() -> None:
    found, steps = config(
        steps="3 epochs",
        schedule={"name": "wsd", "warmup": 0.1, "decay": "1 epoch"},
        evaluate={"every": "0.5 epochs"},
        checkpoint={"every": "0.01 epoch", "milestones": 7},
        track={"every": "2 epochs"},
        audit={"every": "1 epoch"},
    ).in_steps(25)
    assert steps == found.steps == 75
    assert (found.schedule.warmup, found.schedule.decay) == (8, 25)
    assert found.evaluate.every == 12  # of a half the even one
    assert (found.checkpoint.every, found.checkpoint.milestones, found.track.every) == (1, 7, 50)
    assert found.audit
    assert found.audit.every == 25
    found, steps = config(epochs=2, schedule={"name": "step", "at": ["1 epoch", 40]}).in_steps(25)
    assert (found.steps, steps, found.schedule.at) == (None, 50, [25, 40])


def test_a_resolved_config_says_a_length_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "{task: text, global_batch_size: 8, micro_batch_size: 4, steps: 1.50 epochs, optimizer: {name: sgd, lr: 1.0}, "
        "schedule: {name: step, at: [1 epochs, 9], warmup: 0.25}}"
    )
    found, sources = load_config(file, ["evaluate.every= 2epochs"])
    text = to_text(found, sources)
    assert "steps: 1.5 epochs\n" in text
    assert "  every: 2 epochs\n" in text
    assert "at: [1 epoch, 9]" in text
    assert "  warmup: 0.25\n" in text
    file.write_text(text)
    assert load_config(file)[0] == found


@pytest.mark.parametrize(
    "word", ["0 epochs", "two epochs", "-1 epochs", "1e3 epochs", "3 steps", "epochs", "9" * 400 + " epochs"]
)
def test_what_is_no_length_is_one_line(tmp_path: Path, word: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{task: text, global_batch_size: 8, micro_batch_size: 4, steps: 3, optimizer: {name: sgd, lr: 1.0}}")
    with pytest.raises(UsageError) as refused:
        load_config(file, [f"evaluate.every={word}"])
    assert refused.value.lines == (f"evaluate.every: found {word!r}; write an integer, or 2 epochs",)


@pytest.mark.parametrize(
    ("before", "now", "may"),
    [
        ({"schedule": "constant"}, {"schedule": "constant"}, True),
        ({"schedule": {"name": "step", "every": 3}}, {"schedule": {"name": "step", "every": 3}}, True),
        ({"schedule": {"name": "constant", "warmup": 0.1}}, {"schedule": {"name": "constant", "warmup": 0.1}}, False),
        ({"schedule": "cosine"}, {"schedule": "cosine"}, False),
    ],
)
@pytest.mark.parametrize(("shorter", "longer"), [(5, 9), ("1 epoch", "2 epochs")])
def test_a_run_may_grow_where_its_rate_does_not_see_the_end(
    before: Any, now: Any, may: bool, shorter: Any, longer: Any
) -> None:
    refused, _ = changes_on_resume(config(steps=shorter, **before), config(steps=longer, **now))
    assert (refused == []) is may
    refused, _ = changes_on_resume(config(steps=longer, **before), config(steps=shorter, **now))
    assert len(refused) == 1


def test_evaluations_that_the_rate_goes_by_are_a_part_of_the_maths() -> None:
    falling = {"steps": 9, "schedule": {"name": "plateau", "patience": 1}}
    before, now = config(**falling, evaluate={"every": 2}), config(**falling, evaluate={"every": 3})
    assert changes_on_resume(before, now)[0] == [
        "evaluate: the run has {'every': 2, 'batches': None}, found {'every': 3, 'batches': None}; write the same, or another "
        "--run NAME"
    ]
    free = {"steps": 9, "schedule": "constant"}
    assert changes_on_resume(config(**free, evaluate={"every": 2}), config(**free, evaluate={"every": 3})) == ([], [])

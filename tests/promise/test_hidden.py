"""Tasks that remember, wherever they do and whatever it comes into: the same in every way a run can go, or refused."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hidden import Hunt, Silent, draw
from ranks import HERE, Ranks

CONFIG: dict[str, Any] = {
    "task": "hidden_task.py:Hidden",
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "steps": 12,
    "optimizer": {"name": "adamw", "lr": 0.01},
    "track": {"wandb": "off"},
}


@pytest.fixture(scope="module")
def hunt() -> Iterator[Hunt]:
    hunt = Hunt()
    yield hunt
    hunt.close()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


def start(
    ranks: Ranks, folder: Path, fields: dict[str, Any], *words: str, size: int = 1, env: dict[str, str] | None = None
) -> tuple[list[int], str, str]:
    shutil.copy(HERE / "hidden_task.py", folder)
    (folder / "hidden.yaml").write_text(yaml.safe_dump({**CONFIG, "with": fields}))
    job = {"folder": str(folder), "name": "first", "world_size": size, "words": ["hidden.yaml", "--run", "first", *words]}
    answer = ranks.ask({**job, "env": env or {}})
    assert not answer["stuck"], answer
    return answer["codes"], *("".join(said) for said in zip(*answer["said"], strict=True))


def _hunted(hunt: Hunt, number: int, seconds: float, count: int, pure: bool) -> list[str]:
    print(f"\nHIDDEN_SEED={number}", flush=True)
    found, ends_at, before = [], time.monotonic() + seconds, sum(hunt.ends())
    while time.monotonic() < ends_at and sum(hunt.ends()) - before < count:
        rng = random.Random(number)
        try:
            hunt.check(draw(rng, pure), rng, pure)
        except Silent as error:
            found.append(f"{number}: {error}")
        number += 1
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("pure", [False, True], ids=["remember", "are pure"])
def test_drawn_tasks_that(hunt: Hunt, pure: bool) -> None:
    number = int(os.environ.get("HIDDEN_SEED", random.SystemRandom().randrange(1 << 32)))
    assert not _hunted(hunt, number, float(os.environ.get("HIDDEN_SECONDS", "25")), 10_000, pure)
    assert sum(hunt.ends()) > 3


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("pure", [False, True], ids=["remember", "are pure"])
def test_many_drawn_tasks_that(hunt: Hunt, pure: bool) -> None:
    number = int(os.environ.get("HIDDEN_SEED", random.SystemRandom().randrange(1 << 32)))
    assert not _hunted(hunt, number, 7000.0, 500, pure)


def stopped(ranks: Ranks, folder: Path, what: str, size: int = 1) -> dict[str, Any]:
    """The fields of a task that has come to remember between two looks, whose run was stopped then."""
    for onset in range(5, 60):
        fields = {"place": "module", "what": what, "how": "flips", "onset": onset}
        codes, _, err = start(ranks, folder, fields, "evaluate.every=1", size=size, env={"HIDDEN_STOP": "25"})
        if set(codes) == {75} and is_remembered(folder, onset):
            return fields
        assert set(codes) <= {1, 2, 75}, err
        shutil.rmtree(folder / "runs", ignore_errors=True)
    raise AssertionError("every look has seen it")


def is_remembered(folder: Path, onset: int) -> bool:
    return any(int(path.read_text()) > onset for path in folder.glob("counted-*"))


TOLD = {
    "loss": "the loss of step",
    "rows": "the rows of step",
    "after_step": "after_step of step",
    "evaluation": "an evaluation of step",
    "evaluation of training": "an evaluation of step",
}


@pytest.mark.parametrize("what", list(TOLD))
@pytest.mark.parametrize("size", [1, 2])
def test_a_start_is_told_what_the_one_before_remembered(ranks: Ranks, tmp_path: Path, what: str, size: int) -> None:
    fields = stopped(ranks, tmp_path, what)
    codes, _, err = start(ranks, tmp_path, fields, size=size)
    assert set(codes) == {2}, err
    assert err.startswith(f"samestep: task: {TOLD[what]} ")
    assert "came out otherwise than in the process that saved step " in err
    assert "write audit=false" in err
    assert len(err.splitlines()) == 1
    codes, out, err = start(ranks, tmp_path, fields, "audit=false")
    assert codes == [0], err
    assert "resumed from step" in out


def test_where_the_device_is_another_the_parting_is_told_and_not_refused(ranks: Ranks, tmp_path: Path) -> None:
    fields = stopped(ranks, tmp_path, "loss")
    _, out, _ = start(ranks, tmp_path, fields, "threads=2")
    assert "came out otherwise than in the process that saved step" in out
    assert "; the bits part here" in out


@pytest.mark.parametrize(("size", "onset"), [(1, 14), (2, 19)])  # between two looks
def test_a_run_whose_task_has_come_to_remember_is_told_so_at_its_end(
    ranks: Ranks, tmp_path: Path, size: int, onset: int
) -> None:
    fields = {"place": "module", "what": "loss", "how": "flips", "onset": onset}
    codes, out, err = start(ranks, tmp_path, fields, size=size)
    assert codes[0] == 1, err
    assert "all steps are taken and saved, and another start of this run goes on otherwise: task: the loss of step 13 " in err
    assert "weights " not in out
    state = json.loads((tmp_path / "runs/first/state.json").read_text())
    assert (state["status"], state["step"]) == ("failed", 12)
    codes, out, err = start(ranks, tmp_path, fields, "audit=false", size=size)
    assert set(codes) == {0}, err
    assert "weights " in out


def test_an_evaluation_that_remembers_is_refused_when_it_is_made(ranks: Ranks, tmp_path: Path) -> None:
    fields = {"place": "closure", "what": "evaluation", "how": "counts", "onset": 0}
    codes, _, err = start(ranks, tmp_path, fields, "evaluate.every=4")
    assert codes == [1]
    assert "task: an evaluation computed a micro-batch once more, and error came out otherwise: " in err


def test_an_evaluation_that_keeps_what_its_rank_saw_first_shows_between_ranks(ranks: Ranks, tmp_path: Path) -> None:
    fields = {"place": "closure", "what": "evaluation", "how": "keeps", "onset": 1}
    codes, _, err = start(ranks, tmp_path, fields, "evaluate.every=4", size=2)
    assert 1 in codes
    assert "task: an evaluation computed a micro-batch once more, and error came out otherwise: " in err


SLOW = """
import time
from hidden_task import Hidden

class Slow(Hidden):
    def data(self, split):
        until = time.process_time() + 1.2
        while time.process_time() < until:
            pass
        return super().data(split)
"""


def test_where_no_second_start_is_looked_at_the_run_says_so(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "slow_task.py").write_text(SLOW)
    fields = {"place": "module", "what": "loss", "how": "flips", "onset": 14}
    codes, out, err = start(ranks, tmp_path, fields, "task=slow_task.py:Slow")
    assert (codes, err) == ([0], "")
    assert re.search(r"^note: no second start was made \(a start takes 2[.\d]* s, more than 0.5% of this run\)", out, re.M)


@pytest.mark.parametrize(("what", "how"), [("rows", "keeps"), ("evaluation of training", "flips")])
def test_what_a_row_of_training_brings_to_an_evaluations_mind(ranks: Ranks, tmp_path: Path, what: str, how: str) -> None:
    """A start that has no step left evaluates without having seen it, and the look at a run's end knows that."""
    fields = {"place": "file", "what": what, "how": how, "onset": 10_000, "row": 1.5}
    words = (
        ("global_batch_size=4", "steps=4")
        if what == "rows"
        else ("global_batch_size=2", "micro_batch_size=1", "evaluate.every=3")
    )
    codes, _, err = start(ranks, tmp_path, fields, *words)
    assert codes == [1], err
    assert "another start of this run goes on otherwise: task: " in err


def test_a_sound_run_leaves_no_second_start_behind(ranks: Ranks, tmp_path: Path) -> None:
    fields = {"place": "module", "what": "loss", "how": "nothing", "onset": 0}
    codes, out, err = start(ranks, tmp_path, fields)
    assert (codes, err) == ([0], "")
    assert "weights " in out

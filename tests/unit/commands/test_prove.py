"""Which stretches are drawn, what that leaves to chance, and what a proof's chain shows."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from samestep.commands.prove import prove
from samestep.commands.prove.record import Kept, Proof, broken_at, read_proof, record, write_proof
from samestep.commands.prove.stretches import Stretch, draw, in_the_draw, named, odds, stretches_between, unseen
from samestep.config import load_config
from samestep.errors import UsageError
from samestep.run.folder import RunFolder


@pytest.mark.parametrize(("total", "share", "wrong"), [(20, 0.05, 1), (12, 0.25, 4), (50, 0.1, 5), (6, 0.5, 3)])
def test_the_odds_are_those_of_drawn_forgeries(total: int, share: float, wrong: int) -> None:
    stretches = stretches_between(range(10, 10 * total + 1, 10))
    missed = 0
    for number in range(2000):
        forged = set(random.Random(number).sample(stretches, wrong))
        missed += not forged & set(draw(stretches, share, seed=number))
    chance = unseen(total, len(draw(stretches, share, 0)), wrong)
    assert abs(missed / 2000 - chance) < 4 * (chance * (1 - chance) / 2000) ** 0.5


def test_the_odds_at_their_ends() -> None:
    assert unseen(20, 3, 0) == 1.0
    assert unseen(20, 3, 1) == pytest.approx(17 / 20)
    assert unseen(20, 3, 2) == pytest.approx(17 * 16 / (20 * 19))
    assert unseen(20, 3, 18) == 0.0
    assert odds(4, 4) == "nothing is left to chance: all 4 that were drawn from were trained again"
    assert odds(20, 5) == (
        "left to chance: 1 wrong stretch of the 20 drawn from would have stayed unseen with 75.0%, 2 with 55.3%, 5 with 19.4%, "
        "10 with 1.6%, 20 with 0.0%; with 95% certainty no more than 8 of them are wrong"
    )
    assert unseen(20, 5, 8) >= 0.05 > unseen(20, 5, 9)


def test_a_draw_is_its_seeds_alone() -> None:
    stretches = stretches_between(range(10, 1001, 10))
    assert draw(stretches, 0.05, 7) == draw(list(reversed(stretches)), 0.05, 7) != draw(stretches, 0.05, 8)
    assert len(draw(stretches, 0.05, 7)) == 5
    assert len(draw(stretches[:3], 0.05, 7)) == 1
    assert draw(stretches, 1.0, 7) == stretches
    assert draw(stretches, 0.02, 1) == [Stretch(420, 430), Stretch(660, 670)]  # on any machine


def test_most_of_a_run_in_one_piece_is_not_drawn() -> None:
    stretches = stretches_between([900, 950, 1000])
    assert in_the_draw(stretches, 0.05) == stretches[1:]
    assert in_the_draw(stretches, 0.9) == stretches
    assert in_the_draw(stretches_between([400]), 0.05) == []
    assert in_the_draw(stretches_between([200, 400]), 0.05) == stretches_between([200, 400])


def test_named_stretches_are_those_between_two_kept_steps() -> None:
    stretches = stretches_between([2, 4, 8, 10], origin=4)
    assert stretches == [Stretch(4, 8), Stretch(8, 10)]
    assert named(["4-10", "8-10"], stretches) == stretches
    for word in ("8-4", "4-9", "0-4", "4", "4-", "x", "8-8", "9" * 5000):
        with pytest.raises(UsageError, match="write FIRST-LAST, two of the steps that are kept: 4, 8, 10"):
            named([word], stretches)


def proof(rows: list[dict[str, Any]] | None = None, **changes: Any) -> Proof:
    kept = [Kept(step, f"w{step}", f"s{step}", {"device": "cpu"}, {"train": {"rows": 5}, "eval": None}) for step in (4, 8)]
    for one in kept:
        for key in ("weights", "state"):
            setattr(one, key, changes.pop(f"{key}{one.step}", getattr(one, key)))
    made_of = {"run": "first", "parent": None, "code": {"mine.py": "1"}, "config": {"seed": 0}}
    return record({**made_of, **changes}, kept, rows or ROWS)


ROWS: list[dict[str, Any]] = [{"step": step, "loss": 1.0 / step, "time": 5.0, "step_s": 0.1} for step in range(1, 10)]


def with_row(number: int, **values: Any) -> list[dict[str, Any]]:
    return [{**row, **values} if place == number else row for place, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (proof(), []),
        (proof(with_row(2, time=6.0, step_s=0.2)), []),
        (proof(with_row(8, loss=0.0)), []),  # behind the last checkpoint
        (proof(with_row(7, loss=0.0)), ["the rows up to step 8, from the checkpoint before, are others"]),
        (proof(with_row(3, lr=0.1)), ["the rows up to step 4, from the checkpoint before, are others"]),
        (proof(weights4="x", state4="x"), ["the weights after step 4 are others"]),
        (proof(state8="x"), ["the optimizer's state after step 8 is another"]),
        (proof(config={"seed": 1}), ["config seed was 0 and is 1"]),
        (proof(code={"mine.py": "2"}), ["the code is another (mine.py)"]),
        (proof(parent={"run": "a", "step": 2}), ["its parent was None and is {'run': 'a', 'step': 2}"]),
    ],
)
def test_what_a_run_differs_in_from_its_proof_is_named_and_shows_in_the_chain(now: Proof, words: list[str]) -> None:
    assert proof().parted(now) == words
    assert (proof().chain != now.chain) == bool(words)


def test_a_proof_of_a_runs_beginning_is_held_against_that() -> None:
    beginning = proof().model_copy(update={"links": proof().links[:1]})
    assert beginning.parted(proof()) == []
    assert proof().parted(beginning) == ["the checkpoint of step 8 is not there any more"]


def test_an_edited_proof_breaks_where_it_was_edited(tmp_path: Path) -> None:
    path = tmp_path / "first.proof.json"
    write_proof(path, proof())
    assert read_proof(path).chain == proof().chain
    assert broken_at(read_proof(path)) is None
    for key, step in (("weights", 8), ("rows", 4)):
        content = json.loads(path.read_text())
        content["links"][step // 4 - 1][key] = "x"
        (tmp_path / "edited.json").write_text(json.dumps(content))
        assert broken_at(read_proof(tmp_path / "edited.json")) == step
    for text in ("{}", "[]", json.dumps({**json.loads(path.read_text()), "links": []}), "x", "\0"):
        (tmp_path / "edited.json").write_text(text)
        with pytest.raises(UsageError, match="restore the file, or prove anew"):
            read_proof(tmp_path / "edited.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "found no checkpoint to train to; let the run train on"),
        ({"config.yaml": "reduce: fast"}, "first: has reduce: fast, whose bits hang on the processes there were"),
        ({"metrics.jsonl": '{"step": 1}\n{"loss": 2.0}\n'}, "line 2 is no row of a run; restore the file"),
        ({"metrics.jsonl": '{"st\n{"step": 1}\n'}, "line 1 is no row of a run; restore the file"),
        ({"metrics.jsonl": None}, "found no rows of the run there; restore the file"),
        ({"checkpoint": "step-00000001"}, "but most of the run in one piece; --stretch 0-1 trains that again"),
        ({"WORLD_SIZE": "2"}, "prove: found 2 processes; it trains on one, start it without a launcher"),
    ],
)
def test_where_there_is_nothing_to_prove_a_line_says_so(
    content: dict[str, str | None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "first")
    folder.create()
    folder.state.write_text('{"status": "done", "step": 1}')
    base = "task: regression\nglobal_batch_size: 4\nmicro_batch_size: 4\nsteps: 1\noptimizer: {name: adam, lr: 1e-3}\n"
    folder.config.write_text(base + (content.get("config.yaml") or ""))
    rows = content.get("metrics.jsonl", '{"step": 1, "loss": 1.0}\n{"step"')  # half a row, of a killed process
    if rows is not None:
        folder.metrics.write_text(rows)
    if "checkpoint" in content:
        (folder.checkpoints / "step-00000001").mkdir(parents=True)
    if "WORLD_SIZE" in content:
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=re.escape(words)):
        prove(folder, load_config(folder.config)[0], 0.05, None, [])

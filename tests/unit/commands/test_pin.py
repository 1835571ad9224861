"""What of two runs' first steps is named first, and what a file of pinned bits may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samestep.commands import pin as command
from samestep.commands.pin import _too_far, first_difference
from samestep.commands.pinned import Pin, nearest_pin, read_pins, write_pins
from samestep.errors import TrainingError, UsageError


def pin(**changes: Any) -> Pin:
    rows = [
        {"step": step, "loss": 1.0 / step, "error": 2.0, "lr": 0.1, "grad_norm": 3.0, "gradients": "aa bb cc"}
        for step in (1, 2)
    ]
    whole: dict[str, Any] = {
        "kind": {"device": "cpu", "capability": "AVX2"}, "versions": ["torch 2"], "code": {"mine.py": "1"},
        "data": {"train": "1"},
        "config": {"precision": "no", "seed": 0}, "parameters": ["a", "b", "c"], "weights": "w",
        "rows": [*rows, {"step": 2, "eval_loss": 0.5}],
    }  # fmt: skip
    return Pin(**{**whole, **changes})


def changed(number: int, **values: Any) -> Pin:
    rows = [dict(row) for row in pin().rows]
    rows[number] |= values
    return pin(rows=rows)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (pin(), None),
        (changed(1, loss=0.25, grad_norm=4.0), "step 2 parts first, in loss, which was 0.5 and is 0.25"),
        (changed(0, error=2.5, gradients="a b c"), "step 1 parts first, in error, which was 2.0 and is 2.5"),
        (changed(0, gradients="ax bx cc", grad_norm=4.0), "the gradient of b, the first of 2 that backward comes to"),
        (changed(1, gradients="aa bb cx"), "step 2 parts first, in the gradient of c"),
        (changed(1, gradients="aa bb"), "its gradients, of which there are others"),
        (changed(0, lr=0.2), "step 1 parts first, in lr, which was 0.1 and is 0.2"),
        (changed(2, eval_loss=0.75), "the evaluation after step 2 parts first, in eval_loss, which was 0.5 and is 0.75"),
        (pin(weights="x"), "the weights part after step 2, whose numbers agree"),
        (pin(rows=pin().rows[:2]), "it was evaluated once and now is not so"),
    ],
)
def test_the_first_cause_is_named(now: Pin, words: str | None) -> None:
    found = first_difference(pin(), now)
    assert found is None if words is None else words in str(found)


def test_what_else_is_another_is_told() -> None:
    now = pin(config={"precision": "no", "seed": 1}, data={"train": "2"}, versions=["torch 3"], code={"mine.py": "2"})
    assert pin().others(now) == [
        "config seed was 0 and is 1",
        "the rows of 'train' are others",
        "the code is another (mine.py)",
        "torch 3 is here",
    ]
    assert pin().others(pin()) == []


def test_the_tolerance_is_a_part_of_a_numbers_largest() -> None:
    assert _too_far(pin(), changed(1, loss=0.5009), 1e-3) is None
    assert _too_far(pin(), changed(1, loss=0.5011), 1e-3) == "loss of step 2 was 0.5 and is 0.5011"
    assert _too_far(pin(), changed(1, loss=None), 1e-3) == "loss of step 2 was 0.5 and is nan"


def test_a_file_holds_several_kinds_and_comes_back_as_it_was(tmp_path: Path) -> None:
    other = pin(kind={"device": "cuda", "name": "H"}, weights="v")
    write_pins(tmp_path / "m.bits.json", [pin(), other])
    assert read_pins(tmp_path / "m.bits.json") == [pin(), other]
    assert nearest_pin([pin(), other], other.kind) == (other, [])
    assert nearest_pin([pin(), other], {"device": "cpu", "capability": "AVX512"})[0] == pin()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "pins": []}', '{"format": 1, "pins": []}', "\N{BULLET}", None])
def test_what_is_no_pin_is_refused_in_a_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "m.bits.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_pins(path)
    assert len(caught.value.lines) == 1
    assert str(caught.value).startswith(f"{path}: ")


def test_pins_of_several_lengths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bits.json"
    write_pins(path, [pin(), pin(rows=pin().rows[:1])])
    assert len(json.loads(path.read_text())["pins"]) == 2
    with pytest.raises(UsageError, match="several lengths"):
        read_pins(path)


def test_pins_of_other_kinds_stay_as_long_as_they_are_of_the_same_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "m.yaml"
    config.write_text("task: regression\nglobal_batch_size: 2\nmicro_batch_size: 2\nsteps: 9\noptimizer: {name: sgd, lr: 1}\n")
    other, another = pin(kind={"device": "cuda", "name": "H"}), {"precision": "no", "seed": 1}
    told = []
    for found in (pin(), other, pin(weights="v"), pin(config=another)):
        monkeypatch.setattr(command, "_trained", lambda *words, found=found: [found, found])
        told.append(command.pin(str(config), 2, ()).partition(" in ")[2].removeprefix(f"{tmp_path}/m.bits.json "))
    assert told == [
        "(cpu, AVX2)",
        "(H), beside 1 of other kinds of device",
        "(cpu, AVX2), beside 1 of other kinds of device",
        "(cpu, AVX2); left out: 1 of another config or length",
    ]
    assert read_pins(tmp_path / "m.bits.json") == [pin(config=another)]


def test_what_does_not_agree_with_itself_is_not_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "m.yaml"
    config.write_text("task: regression\nglobal_batch_size: 2\nmicro_batch_size: 2\nsteps: 9\noptimizer: {name: sgd, lr: 1}\n")
    monkeypatch.setattr(command, "_trained", lambda *words: [pin(), changed(1, loss=0.25)])
    with pytest.raises(TrainingError, match="two runs of it part, and nothing is pinned: step 2 parts first, in loss"):
        command.pin(str(config), 2, ())
    assert not (tmp_path / "m.bits.json").exists()

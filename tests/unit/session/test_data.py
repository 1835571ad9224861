"""How a task's data() is called."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest

from samestep import Task
from samestep.errors import UsageError
from samestep.session import read_split
from samestep.session.data import notes_on_data
from samestep.sources import identity
from samestep.task.loading import load_task


class Split(Task):
    def data(self, split: str) -> Any:
        parts = datasets.Dataset.from_dict({"number": list(range(100))}).train_test_split(0.3)
        return parts["train" if split == "train" else "test"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_parts_of_a_random_split_without_a_seed_have_no_row_in_common(seed: int) -> None:
    train, held_out = (set(read_split(Split(), seed, split)["number"]) for split in ("train", "eval"))
    assert train | held_out == set(range(100))
    assert not train & held_out


def test_another_seed_is_another_split() -> None:
    assert set(read_split(Split(), 0, "eval")["number"]) != set(read_split(Split(), 1, "eval")["number"])


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")  # pydantic's, before our line
def test_a_field_that_hides_a_method_is_named(tmp_path: Any) -> None:
    methods = "".join(f"    def {name}(self, *args): ...\n" for name in ("data", "loss", "model"))
    file = tmp_path / "mine.py"
    file.write_text(f"from samestep import Task\nclass Mine(Task):\n    model: str = 'gpt2'\n{methods}")
    with pytest.raises(
        UsageError, match=r"mine.py:Mine has a field model, which hides the method of that name; give it another"
    ):
        load_task(f"{file}:Mine", {})


class Made(Task):
    own: bool = False

    def data(self, split: str) -> Any:
        rng = np.random.default_rng([0, split == "train"]) if self.own else np.random
        return datasets.Dataset.from_dict({"x": rng.normal(size=(30 if split == "train" else 9, 2))})


@pytest.mark.parametrize("own", [False, True])
def test_an_evaluation_on_the_rows_that_train_is_told(own: bool) -> None:
    facts: dict[str, Any] = {split: identity(read_split(Made(own=own), 0, split)) for split in ("train", "eval")}
    notes = notes_on_data(facts, facts)
    assert len(notes) == (0 if own else 1)
    assert own or notes[0].startswith('note: "eval" begins with the rows of "train"')

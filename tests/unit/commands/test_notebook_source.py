"""What a notebook's class needs is written into a file, or refused by name."""

from __future__ import annotations

import linecache
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import samestep
from samestep.commands.notebook_source import source_of
from samestep.errors import UsageError
from samestep.task.loading import load_task

CELLS = """
import math as maths
import os.path
import samestep
import torch
from samestep import Task
from torch.nn import Linear

ROWS = {"train": 64, "eval": (8, 1.5)}
model = tokenizer = object()
# cell
def odd(n):
    return n > 0 and not even(n - 1)
def even(n):
    return n == 0 or not odd(n - 1)
class Base(Task):
    @staticmethod
    def size(rows):
        return os.path.sep, maths.pi, rows
# cell
class Mine(Base):
    width: int = 8

    def data(self, split):
        return even(ROWS[split]), [tokenizer for tokenizer in ROWS]

    def model(self):
        return Linear(1, self.width)

    def loss(self, model, batch):
        return model(batch["x"]).sum(), 1
"""
LATER = """
from __future__ import annotations
from samestep import Task
class Later:
    def hello(self): ...
class Mine(Task):
    def data(self, split) -> Later: ...
"""
SIZES: dict[str, Any] = {"global_batch_size": 8, "micro_batch_size": 8, "optimizer": {"name": "sgd", "lr": 1e-3}}


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a text's cells as a notebook does, and return their names."""
    monkeypatch.chdir(tmp_path)

    def run(text: str) -> types.SimpleNamespace:
        main = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", main)
        for number, cell in enumerate(text.split("# cell\n")):
            name = f"<cell {number} of {id(main)}>"
            monkeypatch.setitem(linecache.cache, name, (len(cell), None, cell.splitlines(True), name))
            exec(compile(cell, name, "exec", dont_inherit=True), vars(main))
        return types.SimpleNamespace(**vars(main))

    return run


def test_the_file_has_all_that_the_class_uses_and_nothing_else(cells: Any) -> None:
    text = source_of(cells(CELLS).Mine)
    found: dict[str, Any] = {"__name__": "elsewhere"}
    exec(compile(text, "cell.py", "exec", dont_inherit=True), found)
    assert found["Mine"](width=3).model().out_features == 3
    assert found["Mine"]().data("train") == (True, ["train", "eval"])
    assert found["Base"].size(2) == (os.sep, pytest.approx(3.14159, abs=1e-5), 2)
    assert {"samestep", "model", "tokenizer"}.isdisjoint(found)


def test_annotations_that_wait_do_so_in_the_file_too(cells: Any) -> None:
    text = source_of(cells(LATER).Mine)
    assert text.startswith("from __future__ import annotations\n")
    assert "class Later:" in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("self.width)", "len(tokenizer))", r"Mine uses tokenizer, which was made in this notebook \(object\); make it inside"),
        ("not odd(", "tokenizer or odd(", "even uses tokenizer, which was made"),
        (
            "class Base(Task):",
            "exec('class Base(Task):\\n  def data(self): ...')\nclass Other:",
            "found no source of Base; put",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(cells: Any, old: str, new: str, said: str) -> None:
    mine = cells(CELLS.replace(old, new)).Mine
    with pytest.raises(UsageError, match=said):
        samestep.train(mine, steps=1, **SIZES)
    assert not list(Path("runs").iterdir())


def test_a_script_that_lacks_its_guard_is_told_so_where_its_class_is_imported(tmp_path: Path) -> None:
    script = tmp_path / "line.py"
    script.write_text("import samestep\nclass Line(samestep.Task): ...\nsamestep.train(Line, steps=1)\n")
    with pytest.raises(UsageError, match='would train again; write if __name__ == "__main__": above it'):
        load_task(f"{script}:Line", {})


def test_a_class_within_a_function_is_refused(cells: Any) -> None:
    class Mine(samestep.Task): ...

    with pytest.raises(UsageError, match="Mine stands within something else; write the class at the top level"):
        samestep.train(Mine, steps=1, **SIZES)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"steps": 0}, "steps: found 0; write a number greater than 0"),
        ({"steps": 1, "sede": 1}, "sede: unknown key; did you mean seed?"),
        ({"steps": 1, "run": "a/b"}, "--run: found 'a/b'; write a name without a slash"),
    ],
)
def test_a_wrong_key_is_told_before_anything_starts(cells: Any, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        samestep.train(cells(CELLS).Mine, **config, **SIZES)
    assert raised.value.lines == (said,)
    assert not Path("runs").exists()


def test_a_value_that_no_file_can_hold_is_named(cells: Any) -> None:
    mine = cells(CELLS.replace("width: int = 8", "width: object = 8")).Mine
    with pytest.raises(UsageError, match=r"samestep.train: with: found {'width': <object .*>}; write text, numbers"):
        samestep.train(mine(width=object()), steps=1, **SIZES)

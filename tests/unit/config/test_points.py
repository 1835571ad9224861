"""Which runs a sweep has, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from samestep.config.sweep import names, point, points
from samestep.errors import UsageError

RANGES = (
    "optimizer.lr: {min: 1e-4, max: 1e-1, log: true}\nwith.width: {min: 8, max: 64}\nclip: {min: 0.5, max: 2}\nseed: [0, 1]\n"
)


def file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "grid.yaml").write_text(text)
    return tmp_path / "grid.yaml"


def test_every_combination_of_the_lists_is_a_run_in_order(tmp_path: Path) -> None:
    found = points(file(tmp_path, "optimizer.lr: [1e-3, 3e-3]\nreduce: [exact, fast]\n"))
    assert found == [[f"optimizer.lr={lr}", f"reduce={how}"] for lr in ("0.001", "0.003") for how in ("exact", "fast")]


def test_drawn_runs_are_a_function_of_the_seed_and_more_begin_with_the_same(tmp_path: Path) -> None:
    grid = file(tmp_path, RANGES)
    twenty = points(grid, 20, 1)
    assert len({*map(tuple, twenty)}) == 20
    assert points(grid, 30, 1)[:20] == twenty
    assert points(grid, 20, 2) != twenty
    assert points(file(tmp_path, f"{RANGES}random: {{runs: 20, seed: 1}}\n")) == twenty
    assert point(grid, 7) == twenty[7]  # as a job of the array sees it


def test_a_range_is_drawn_from_end_to_end_as_integers_or_evenly_in_its_logarithm(tmp_path: Path) -> None:
    drawn = [dict(word.split("=") for word in words) for words in points(file(tmp_path, RANGES), 400)]
    rates = sorted(float(values["optimizer.lr"]) for values in drawn)
    assert 1e-4 <= rates[0] < 2e-4
    assert 5e-2 < rates[-1] <= 1e-1
    assert 1e-3 < rates[200] < 1e-2  # evenly in itself the middle would be at 5e-2
    assert {int(values["with.width"]) for values in drawn} == {*range(8, 65)}
    assert {values["seed"] for values in drawn} == {"0", "1"}


def test_as_many_draws_as_there_are_points_find_them_all(tmp_path: Path) -> None:
    grid = file(tmp_path, "seed: {min: 1, max: 3}\nclip: [1, 2]\n")
    assert sorted(points(grid, 6)) == [[f"seed={seed}", f"clip={clip}"] for seed in (1, 2, 3) for clip in (1, 2)]
    with pytest.raises(UsageError, match="found 7 runs to draw, and it has 6; write --random 6 or fewer"):
        points(grid, 7)


def test_a_run_is_called_by_its_values_so_that_a_grid_may_grow(tmp_path: Path) -> None:
    before = names("mine", points(file(tmp_path, "optimizer.lr: [1e-3, 3e-3]\nwith.width: [8, 16]\n")))
    assert before == [f"mine-lr={lr},width={width}" for lr in ("0.001", "0.003") for width in (8, 16)]
    after = names("mine", points(file(tmp_path, "optimizer.lr: [1e-3, 2e-3, 3e-3]\nwith.width: [4, 8, 16]\n")))
    assert {*before} < {*after}
    assert names("mine", [["optimizer.a.lr=1", "optimizer.b.lr=2"]]) == ["mine-optimizer.a.lr=1,optimizer.b.lr=2"]


def test_what_no_file_is_called_by_is_not_in_a_name_and_names_differ_all_the_same() -> None:
    found = names("mine", [["init=runs/a"], ["init=runs:a"], ["with.text=" + "x" * 300], ["with.text=" + "x" * 301]])
    assert len({*found}) == 4
    assert all("/" not in name and ":" not in name and len(name) < 200 for name in found)
    assert found[0].startswith("mine-init=runs_a,")

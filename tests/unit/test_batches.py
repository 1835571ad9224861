"""Rows become tensors: which rows, in which order, whatever kind of column they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from samestep.batches import Batches, Plan, Rows
from samestep.errors import UsageError
from samestep.order import Order
from samestep.task import Batch, Task

CPU = torch.device("cpu")


class Plain(Task):
    def data(self, split: str) -> datasets.Dataset | None:
        return None


class Noisy(Plain):
    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"x": row["x"] + rng.standard_normal(3), "global": np.random.rand()}


class Padding(Plain):
    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        longest = max(len(row["x"]) for row in rows)
        return {"x": torch.tensor([[*row["x"], *[0] * (longest - len(row["x"]))] for row in rows])}


def read(dataset: datasets.Dataset, rows: list[int], task: Task | None = None, epoch: int = 0) -> Batch:
    return Rows(dataset, task or Plain(), 0, torch.float32).read(np.array(rows), epoch)


def test_numbers_come_straight_from_arrow(tmp_path: Path) -> None:
    values = np.arange(5000 * 6, dtype=np.float32).reshape(5000, 2, 3)
    made = datasets.Dataset.from_dict({"x": values, "n": np.arange(5000, dtype=np.uint8)})
    made.save_to_disk(str(tmp_path / "saved"))
    saved = datasets.load_from_disk(str(tmp_path / "saved"))  # in chunks of 1,000 rows
    rows = [4999, 0, 1000, 999]
    for dataset in (made, saved):
        batch = read(dataset, rows)
        assert torch.equal(batch["x"], torch.from_numpy(values[rows]))
        assert batch["n"].dtype == torch.uint8
        assert batch["x"].data_ptr() % 64 == 0


def test_a_selection_reads_the_rows_it_selected() -> None:
    dataset = datasets.Dataset.from_dict({"x": np.arange(100)}).shuffle(seed=1).select(range(50))
    assert read(dataset, [3, 7])["x"].tolist() == [dataset[3]["x"], dataset[7]["x"]]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_local_files_load_through_datasets(kind: str, tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"a": [0.5, 1.5, 2.5], "b": [1, 2, 3]})
    path = str(tmp_path / f"rows.{kind}")
    getattr(made, f"to_{kind}")(path)
    dataset = datasets.load_dataset(kind, data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    batch = read(dataset, [2, 0])
    assert batch["a"].tolist() == [2.5, 0.5]
    assert batch["a"].dtype == torch.float32  # the model's own type, not CSV's float64
    assert batch["b"].tolist() == [3, 1]


def test_text_needs_a_collate_and_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    dataset = datasets.load_dataset(
        "text", data_files=str(tmp_path / "lines.txt"), split="train", cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(UsageError, match="column text holds str, not numbers"):
        read(dataset, [0, 1])


def test_uneven_lists_need_a_collate_and_even_ones_do_not() -> None:
    uneven = datasets.Dataset.from_dict({"x": [[1], [2, 3], [4, 5]]})
    assert read(uneven, [1, 2])["x"].tolist() == [[2, 3], [4, 5]]
    with pytest.raises(UsageError, match="column x has rows of shapes"):
        read(uneven, [0, 1])
    assert read(uneven, [0, 1], Padding())["x"].tolist() == [[1, 0], [2, 3]]
    assert read(datasets.Dataset.from_dict({"x": [[1, 2], [3, 4]]}), [1])["x"].tolist() == [[3, 4]]


def test_a_missing_column_is_named() -> None:
    batch = read(datasets.Dataset.from_dict({"x": [1.0], "z": [1.0]}), [0])
    with pytest.raises(UsageError, match="no column 'y'; data\\(\\) gives x, z"):
        batch["y"]


def test_transform_draws_from_seed_epoch_and_row_alone() -> None:
    dataset = datasets.Dataset.from_dict({"x": np.zeros((10, 3))})
    together, alone = read(dataset, [4, 5], Noisy())["x"], read(dataset, [5], Noisy())["x"]
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(alone, read(dataset, [5], Noisy(), epoch=1)["x"])
    assert not torch.equal(together[0], together[1])


def plan(num_rows: int, drop_last: bool = False) -> Plan:
    return Plan(Order(num_rows, 0), global_batch_size=8, micro_batch_size=2, drop_last=drop_last)


def steps(num_rows: int, share: range, first: int = 0, last: int = 4, workers: int = 0, task: Task | None = None) -> list[Any]:
    rows = Rows(
        datasets.Dataset.from_dict({"x": np.zeros((num_rows, 3)), "n": np.arange(num_rows)}),
        task or Plain(),
        0,
        torch.float32,
    )
    batches = Batches(rows, plan(num_rows), share, CPU, 0, first, last, workers)
    return [
        [(m.index, m.num_rows, {k: t.tolist() for k, t in m.batch.items()}) for m in batches.step(s)]
        for s in range(first, last)
    ]


def test_an_epoch_gives_every_row_once_and_its_last_step_is_short() -> None:
    found = steps(19, range(4), last=3)
    real = [row for step in found for _, num, batch in step for row in batch["n"][:num]]
    assert sorted(real) == list(range(19))
    assert [num for _, num, _ in found[2]] == [2, 1, 0, 0]
    assert [len(batch["n"]) for _, _, batch in found[2]] == [2, 1, 2, 2]  # empty ones run on full-size rows
    assert plan(19).counted(2) == 2
    assert plan(19, drop_last=True).steps_per_epoch == 2


def test_ranks_share_the_same_micro_batches_and_resuming_is_seeking() -> None:
    whole = steps(19, range(4), last=6)
    parts = [a + b for a, b in zip(steps(19, range(3), last=6), steps(19, range(3, 4), last=6), strict=True)]
    assert parts == whole
    assert steps(19, range(4), first=4, last=6) == whole[4:]


def test_loader_processes_give_the_same_bits() -> None:
    noisy = Noisy()
    assert steps(19, range(4), task=noisy, workers=2) == steps(19, range(4), task=noisy)

"""Rows become tensors: which rows, in which order, whatever kind of column they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from samestep.batches import Batches, Plan
from samestep.errors import UsageError
from samestep.randomness.order import Order
from samestep.sources import Rows, make_rows
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


def rows_of(dataset: datasets.Dataset) -> Rows:
    return make_rows(dataset, Plain(), 0, torch.float32)


def read(dataset: datasets.Dataset, rows: list[int], task: Task | None = None, epoch: int = 0) -> Batch:
    return make_rows(dataset, task or Plain(), 0, torch.float32).read(np.array(rows), epoch)


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
        rows_of(dataset)


def test_uneven_lists_need_a_collate_and_even_ones_do_not() -> None:
    uneven = datasets.Dataset.from_dict({"x": [[1], [2, 3], [4, 5]]})
    with pytest.raises(UsageError, match="column x has lists of uneven length, the first in row 1; write a collate"):
        rows_of(uneven)
    assert read(uneven, [0, 1], Padding())["x"].tolist() == [[1, 0], [2, 3]]
    assert read(uneven.select([1, 2]), [0, 1])["x"].tolist() == [[2, 3], [4, 5]]
    assert read(datasets.Dataset.from_dict({"x": [[1, 2], [3, 4]]}), [1])["x"].tolist() == [[3, 4]]


def bad_columns() -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "good": [0.5] * 6,
            "age": [1, 2, 3, 4, None, 6],
            "inside": [[1.0, 2.0]] * 3 + [[1.0, None]] * 3,
            "gone": [[1], [2], None, [3], [4], [5]],
            "uneven": [[1, 2]] * 5 + [[1, 2, 3]],
            "nested": [[[1, 2], [3, 4]]] * 3 + [[[1, 2], [3]]] * 3,
            "struct": [{"a": 1}] * 6,
            "words": [["a", "b"]] * 6,
            "blob": [b"x"] * 6,
            "all": [None] * 6,
        }
    )


LINES = [
    "data: column age is null in row 4; fill it or drop the row in data()",
    "data: column inside is null in row 3; fill it or drop the row in data()",
    "data: column gone is null in row 2; fill it or drop the row in data()",
    "data: column uneven has lists of uneven length, the first in row 5; write a collate() that pads them",
    "data: column nested has lists of uneven length, the first in row 3; write a collate() that pads them",
    "data: column struct holds dict, not numbers; ",
    "data: column words holds str, not numbers; ",
    "data: column blob holds bytes, not numbers; ",
    "data: column all is null in row 0; fill it or drop the row in data()",
]


def shortened(lines: tuple[str, ...]) -> list[str]:
    return [
        line.removesuffix("remove it in data(), or write a transform() or collate() that turns it into numbers")
        for line in lines
    ]


def test_every_column_that_cannot_be_stacked_has_its_line_before_a_row_is_read(tmp_path: Path) -> None:
    bad_columns().save_to_disk(str(tmp_path / "saved"), num_shards=3)
    for dataset in (bad_columns(), datasets.load_from_disk(str(tmp_path / "saved"))):  # whatever the chunks
        with pytest.raises(UsageError) as caught:
            rows_of(dataset)
        assert shortened(caught.value.lines) == LINES
    make_rows(bad_columns(), Padding(), 0, torch.float32)  # a collate sees them first


def test_a_bad_row_has_the_number_that_the_user_sees() -> None:
    numbers = datasets.Dataset.from_dict({"age": [None if k == 40 else k for k in range(64)]})
    shuffled = numbers.shuffle(seed=3)
    seen = [row["age"] for row in shuffled].index(None)
    with pytest.raises(UsageError, match=f"column age is null in row {seen};"):
        rows_of(shuffled)
    kept = numbers.filter(lambda row: row["age"] is not None)  # the table still holds the null, behind the row numbers
    assert read(kept, [39, 40])["age"].tolist() == [39, 41]
    lists = datasets.Dataset.from_dict({"x": [[1, 2], [3], [4], [5, 6], [7]]}).select([4, 1, 3, 2])
    with pytest.raises(UsageError, match="column x has lists of uneven length, the first in row 2;"):
        rows_of(lists)


class Varied(Plain):
    _made: list[Any]

    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        made = self._made[int(row["x"])]
        return made if isinstance(made, (dict, Broken)) else {"v": made}  # type: ignore[return-value]


class Broken:
    """What a transform should not return."""


def varied(*made: Any) -> torch.Tensor:
    task = Varied()
    task._made = list(made)
    return read(datasets.Dataset.from_dict({"x": list(range(len(made)))}), list(range(len(made))), task)["v"]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ((1, 2.5), torch.tensor([1.0, 2.5])),
        ((np.int64(1), np.float32(0.5)), torch.tensor([1.0, 0.5])),
        ((True, 2), torch.tensor([1, 2])),
        (([1, 2], [0.5, 1.5]), torch.tensor([[1.0, 2.0], [0.5, 1.5]])),
        ((torch.tensor([1.5]).bfloat16(), torch.tensor([2.5]).bfloat16()), torch.tensor([[1.5], [2.5]]).bfloat16()),
        ((torch.tensor(1.5).bfloat16(), torch.tensor(2.5)), torch.tensor([1.5, 2.5])),
        ((torch.tensor(1), 2.5, np.float32(3)), torch.tensor([1.0, 2.5, 3.0])),
        (([torch.tensor(1.5).bfloat16()], [torch.tensor(2.5).bfloat16()]), torch.tensor([[1.5], [2.5]]).bfloat16()),
        ((torch.ones(2, requires_grad=True), torch.zeros(2)), torch.tensor([[1.0, 1.0], [0.0, 0.0]])),
        ((1 + 2j, np.complex64(3)), torch.tensor([1 + 2j, 3], dtype=torch.complex128)),
        ((np.array([1.5], ">f4"), np.array([2.5], ">f4")), torch.tensor([[1.5], [2.5]])),
        ((np.array([1.5], ">f4"), torch.tensor([2.5])), torch.tensor([[1.5], [2.5]])),
        ((np.uint16(7), np.uint16(8)), torch.tensor([7, 8], dtype=torch.uint16)),
    ],
)
def test_rows_stack_to_their_common_dtype(made: tuple[Any, ...], expected: torch.Tensor) -> None:
    for values, wanted in ((made, expected), (made[::-1], expected.flip(0) if expected.dtype != torch.uint16 else None)):
        stacked = varied(*values)
        assert stacked.dtype == expected.dtype
        assert wanted is None or torch.equal(stacked, wanted)


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ((1.5, None), "data: column v is null in row 1; fill it or drop the row in data()"),
        (([1.5], [None]), "data: column v is null in row 1; fill it or drop the row in data()"),
        ((1, "a"), "data: column v holds str in row 1, not numbers; "),
        ((1, {"v": {"a": 1}}), "data: column v holds dict in row 1, not numbers; "),
        (
            (np.zeros(2), np.zeros(3)),
            "data: column v has rows of shapes (2,) (row 0) and (3,) (row 1); write a collate() that pads them",
        ),
        (
            (torch.zeros(2), 1.0),
            "data: column v has rows of shapes (2,) (row 0) and () (row 1); write a collate() that pads them",
        ),
        (([1, 2], [[1], [2, 3]]), "data: column v has lists of uneven length in row 1; write a collate() that pads them"),
        (
            (np.uint16(1), np.int64(2)),
            "data: column v is uint16 in row 0 and int64 in row 1, which have no common dtype; write one dtype for all rows in "
            "transform()",
        ),
        (({"v": 1, "w": 2}, {"v": 1}), "data: row 0 has the columns v, w, and row 1 has v; write the same for every row"),
        (({"v": 1}, Broken()), "task: transform returned Broken for row 1; write return row, a dict"),
    ],
)  # fmt: skip
def test_rows_that_do_not_stack_are_refused_in_one_line(made: tuple[Any, ...], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        varied(*made)
    assert shortened(caught.value.lines) == [line]


class Collating(Plain):
    _made: Any

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        return self._made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ((1, 2), "task: collate returned tuple; write a dict of column name to tensor"),
        ({"x": np.zeros(2)}, "task: collate returned ndarray for x; write a tensor"),
    ],
)
def test_a_collate_returns_tensors_by_name(made: Any, line: str) -> None:
    task = Collating()
    task._made = made
    with pytest.raises(UsageError) as caught:
        read(datasets.Dataset.from_dict({"x": [1]}), [0], task)
    assert caught.value.lines == (line,)


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
    rows = make_rows(
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


@pytest.mark.parametrize(
    ("width", "task", "ahead"),
    [(3, Plain(), 4), (80_000, Plain(), 1), (32_000, Plain(), 2), (3, Noisy(), 1)],
    ids=["small", "large", "some", "somebody's code"],
)
def test_small_micro_batches_are_read_several_at_a_time(width: int, task: Task, ahead: int) -> None:
    rows = make_rows(datasets.Dataset.from_dict({"x": np.zeros((64, width), np.float64)}), task, 0, torch.float64)
    asked: list[int] = []
    read_rows = rows.read
    rows.read = lambda numbers, epoch: (asked.append(len(numbers)), read_rows(numbers, epoch))[1]  # type: ignore[method-assign,assignment,func-returns-value]
    batches, seen = Batches(rows, plan(64), range(4), CPU, 0, 0, 6), []
    for step in range(6):
        for _ in batches.step(step):
            seen.append(len(asked))
    assert len(asked) == 24
    assert max(read - used for used, read in enumerate(seen)) == ahead

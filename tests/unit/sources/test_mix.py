"""Mixtures: exact proportions, each source's epochs counted apart, any position by arithmetic."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from built_here import Noting, built
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep import Mix, Parquet, Tokens
from samestep.batches import Plan
from samestep.errors import UsageError
from samestep.sources import differences, doubt, identity, make_rows, order_of
from samestep.task import Task
from samestep.tasks.regression import Regression


class Plain(Task):
    pass


class Changed(Task):
    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**row, "noise": rng.random()}


class Padded(Task):
    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"n": torch.tensor([len(row["x"]) for row in rows])}


def named(name: str, rows: int) -> list[dict[str, Any]]:
    return [{"n": number, "source": ord(name)} for number in range(rows)]


MIXTURES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=5)


@settings(max_examples=30)
@given(parts=MIXTURES, rows=st.one_of(st.none(), st.integers(1, 80)), seed=st.integers(0, 99))
def test_each_source_has_its_share_and_gives_all_its_rows_before_any_again(
    parts: list[tuple[int, int]], rows: int | None, seed: int
) -> None:
    mixture = Mix([(named(chr(97 + place), length), weight) for place, (weight, length) in enumerate(parts)], rows)
    order, total = order_of(mixture, seed), sum(weight for weight, _ in parts)
    assert len(mixture) == order.num_rows == (rows or sum(length for _, length in parts))
    epochs = -(-total * 30 // len(mixture)) + 1
    numbers = np.concatenate([order.rows(epoch, 0, len(mixture)) for epoch in range(epochs)])
    assert len(set(numbers.tolist())) == len(numbers)
    found = [mixture.at(int(number)) for number in numbers]
    for place, (weight, length) in enumerate(parts):
        mine = [row["n"] for row in found if row["source"] == 97 + place]
        for begin in range(0, len(mine) - length + 1, length):
            assert sorted(mine[begin : begin + length]) == list(range(length))
        seen = np.cumsum([row["source"] == 97 + place for row in found])
        assert (abs(seen - np.arange(1, len(found) + 1) * weight / total) <= 1 + len(parts) / 2).all()
        ends = np.arange(total, len(found) + 1, total)
        assert (seen[ends - 1] == ends // total * (weight * total // total)).all()


def test_what_a_mixture_gives_is_what_counting_gives() -> None:
    weights, counts = [5, 1, 3], [0, 0, 0]
    mixture = Mix([(range(100), weight) for weight in weights])
    for number in range(40):
        source = min(range(3), key=lambda one: (Fraction(2 * counts[one] + 1, weights[one]), one))
        owners, before = mixture.counts(np.array([number]))
        assert (int(owners[0]), int(before[0])) == (source, counts[source])
        assert mixture.numbers(source, before).tolist() == [number]
        counts[source] += 1


def test_epochs_of_a_source_have_orders_of_their_own_and_entering_anywhere_gives_the_same() -> None:
    mixture = Mix({(1, 2, 3): 1, tuple(range(50)): 2}, rows=40)
    order = order_of(mixture, 3)
    whole = np.concatenate([order.rows(epoch, 0, 40) for epoch in range(9)])
    for start in range(0, 353, 7):
        epoch, place = divmod(start, 40)
        assert (
            order_of(mixture, 3).rows(epoch, place, place + 7).tolist()
            == whole[start : epoch * 40 + min(place + 7, 40)].tolist()
        )
    owners, counts = mixture.counts(whole)
    few, many = ((counts[owners == place] % length).tolist() for place, length in ((0, 3), (1, 50)))
    assert len({tuple(few[begin : begin + 3]) for begin in range(0, 117, 3)}) > 3
    assert many[:50] != many[50:100]
    assert many[:50] != order_of(range(50), 3).rows(0, 0, 50).tolist()


def test_of_a_billion_rows_any_is_found_at_once() -> None:
    mixture = Mix([(range(10**9), 0.999), (range(7), 0.001)])
    rows = order_of(mixture, 0).rows(10**6, 123_456_789, 123_456_797)
    assert len({mixture.at(int(row)) for row in rows}) > 1
    with pytest.raises(IndexError):
        mixture[len(mixture)]
    assert [mixture[row] for row in range(4)] == [0, 1, 2, 3]


def test_weights_are_what_they_are_written_as() -> None:
    for weights in ((0.7, 0.3), (7, 3), (70, 30), (np.float64(0.7), 0.3)):
        rows = [row["source"] for row in Mix([(named("a", 9), weights[0]), (named("b", 9), weights[1])], rows=20)]  # type: ignore[attr-defined]
        assert rows[:10] == rows[10:]
        assert collections.Counter(rows) == {97: 14, 98: 6}


def test_rows_of_tables_parquet_files_and_anything_else_are_put_together(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [100, 101, 102], "x": [[1.0, 2.0]] * 3}), tmp_path / "a.parquet")
    table = datasets.Dataset.from_dict({"x": [[3.0, 4.0]] * 4, "n": [200, 201, 202, 203]})
    plain = [{"n": 300 + n, "x": torch.tensor([5.0, 6.0], dtype=torch.float64)} for n in range(2)]
    for task in (Plain(), Changed()):
        mixture = Mix([(Parquet(tmp_path / "a.parquet"), 1), (table, 2), (plain, 1)])
        order, rows = order_of(mixture, 1), make_rows(mixture, task, 1, torch.float32)
        numbers = np.concatenate([order.rows(epoch, 0, 9) for epoch in range(4)])
        batch = rows.read(numbers, 0)
        assert batch["n"].tolist() == [int(mixture.at(int(number))["n"]) for number in numbers]
        assert batch["x"].tolist() == [[2.0 * (n // 100) - 1, 2.0 * (n // 100)] for n in batch["n"].tolist()]
        assert batch["x"].dtype == torch.float32
        if task.overrides("transform"):
            assert len(set(batch["noise"].tolist())) == len(numbers)  # another each time that a row comes again


def test_formats_and_collate_see_what_they_would_see_alone() -> None:
    numbers = datasets.Dataset.from_dict(
        {"x": [[1, 2]] * 3}, features=datasets.Features({"x": datasets.List(datasets.Value("int32"))})
    )
    for one in (numbers.with_format("torch"), numbers.with_format("numpy"), numbers.with_transform(lambda rows: rows)):
        assert make_rows(Mix([(one, 1), (one, 1)]), Plain(), 0, torch.float32).read(np.arange(5), 0)["x"].dtype == torch.int64
    uneven = datasets.Dataset.from_dict({"x": [[1], [1, 2]]})
    assert make_rows(Mix([(uneven, 1), (numbers, 1)]), Padded(), 0, torch.float32).read(np.arange(4), 0)["n"].tolist() == [
        1,
        2,
        2,
        2,
    ]


def test_what_is_no_mixture_is_one_line(tmp_path: Path) -> None:
    rows = named("a", 3)
    np.arange(50, dtype=np.uint16).tofile(tmp_path / "t.bin")
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("found no source; write one at least", lambda: Mix({})),
        ("found rows=0; write one at least", lambda: Mix([(rows, 1)], rows=0)),
        ("found a Mix in a Mix", lambda: Mix([(Mix([(rows, 1)]), 1)])),
        ("found str; write a datasets.Dataset", lambda: Mix({"train.parquet": 1})),
        ("found a source without rows; leave it out", lambda: Mix([([], 1)])),
        ("found the weights [0, 1]; write a number above 0 for each", lambda: Mix([(rows, 0), (rows, 1)])),
        ("found the weights ['much']; write", lambda: Mix([(rows, "much")])),  # type: ignore[list-item]
        ("found the weights [nan]; write", lambda: Mix([(rows, float("nan"))])),
        (
            "have no ratio of small whole numbers; write such, like 1 and 2 for thirds",
            lambda: Mix([(rows, 1 / 3), (rows, 1)]),
        ),
        (
            "source 1 has the columns n, source, and source 2 has tokens; write the same",
            lambda: read([rows, Tokens(tmp_path / "t.bin", context=4)]),
        ),
        (
            "column x has the shape (1,) in source 1 and (2,) in source 2; write a collate",
            lambda: read([[{"x": [1]}], [{"x": [1, 2]}]]),
        ),
    ]

    def read(sources: list[Any]) -> Any:
        return make_rows(Mix([(source, 1) for source in sources]), Plain(), 0, torch.float32).read(np.arange(2), 0)

    for words, make in cases:
        with pytest.raises(UsageError, match=re.escape(words)) as refused:
            make()
        assert len(refused.value.lines) == 1
        assert str(refused.value).startswith("data: samestep.Mix: ")


class Weighted(Regression):
    def data(self, split: str) -> Any:
        return Mix([(super().data("train"), 1)]) if split == "train" else None

    def weights(self, split: str) -> Any:
        return np.ones(100)


def test_weights_go_with_no_order_of_a_sources_own() -> None:
    with pytest.raises(UsageError, match=r"found weights\(\), and rows of samestep.Mix, which has an order of its own; write"):
        built(Noting(), task=Weighted())


def test_the_source_that_changed_is_named() -> None:
    def mixture(rows: int = 9, weight: float = 0.5, value: int = 0) -> dict[str, Any]:
        return identity(Mix([(named("a", 9), 1), ([{"n": value, "source": 0}] * rows, weight)]))

    before = mixture()
    assert differences(before, mixture(), "train") == []
    assert doubt(before, mixture(), "train") is None
    cases = [
        (mixture(rows=8), 'data: "train" had 18 rows and has 17; give data() the rows'),
        (mixture(weight=0.25), 'data: "train" had the format samestep.Mix of 2 : 1 and has samestep.Mix of 4 : 1; give'),
        (mixture(value=1), 'data: source 2 of "train" had 9 rows with the checksum '),
    ]
    for now, words in cases:
        assert differences(before, now, "train")[0].startswith(words)


def test_the_plan_of_a_mixture_is_the_same_however_it_is_shared_out() -> None:
    order = order_of(Mix([(named("a", 20), 2), (named("b", 7), 1)]), 5)
    whole, parts = Plan(order, 8, 2, False), Plan(order_of(Mix([(named("a", 20), 2), (named("b", 7), 1)]), 5), 8, 2, False)
    for step in (11, 3, 7, 0):
        for index in (3, 0, 2, 1):
            assert whole.rows(step, index).tolist() == parts.rows(step, index).tolist()

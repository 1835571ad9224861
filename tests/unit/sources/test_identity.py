"""A data set is known again by its rows, however they are kept, and a change in them is named."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from samestep.sources import differences, doubt, identity

module = sys.modules[identity.__module__]
NUM_ROWS = 37  # no multiple of 8: the last bytes of bit maps and buffers are shared with other rows
NUMBERS = list(range(NUM_ROWS))
COLUMNS: dict[str, list[Any]] = {
    "float": [k / 7 for k in NUMBERS],
    "int": NUMBERS,
    "flag": [k % 3 == 0 for k in NUMBERS],
    "text": ["é" * (k % 4) for k in NUMBERS],
    "blob": [bytes([k]) * (k % 3) for k in NUMBERS],
    "list": [[k, 1] for k in NUMBERS],
    "ragged": [[[True] * (k % 3)] * (k % 2) for k in NUMBERS],
    "struct": [{"a": k, "b": str(k)} for k in NUMBERS],
    "when": [datetime.datetime(2020, 1, 1 + k % 28) for k in NUMBERS],
    "price": [decimal.Decimal(k) / 4 for k in NUMBERS],
    "nothing": [None] * NUM_ROWS,
    "empty": [[]] * NUM_ROWS,
    "nullable int": [None if k % 5 == 2 else k for k in NUMBERS],
    "nullable flag": [None if k % 5 == 2 else k % 2 == 0 for k in NUMBERS],
    "nullable text": [None if k % 5 == 2 else str(k) for k in NUMBERS],
    "nullable view": [None if k % 5 == 2 else f"longer than the twelve letters of a view {k}" for k in NUMBERS],
    "nullable list": [None if k % 5 == 2 else [k, None] for k in NUMBERS],
    "nullable struct": [None if k % 5 == 2 else {"a": k} for k in NUMBERS],
}
FEATURES = datasets.Features(
    {
        **datasets.Dataset.from_dict(COLUMNS).features,
        "int": datasets.Value("int8"),
        "list": datasets.List(datasets.Value("int16"), length=2),
        "nullable view": datasets.Value("string_view"),
        "price": datasets.Value("decimal128(10, 2)"),
    }
)


def made() -> datasets.Dataset:
    dataset = datasets.Dataset.from_dict(COLUMNS, features=FEATURES)
    images = [[[k, 2.5], [0.5, 1.5]] for k in NUMBERS]
    return dataset.add_column("image", images, feature=datasets.Array2D((2, 2), "float32"))


def twice() -> datasets.Dataset:
    return datasets.concatenate_datasets([made(), made()])


def saved(dataset: datasets.Dataset, path: Path, **options: Any) -> datasets.Dataset:
    dataset.save_to_disk(str(path), **options)
    return datasets.load_from_disk(str(path))


def same(one: datasets.Dataset, other: datasets.Dataset) -> bool:
    return not differences(json.loads(json.dumps(identity(one))), identity(other), "train")


@pytest.fixture(params=["whole", "sampled"])
def extent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sampled":
        monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    return str(request.param)


WAYS: dict[str, Callable[[Path], datasets.Dataset]] = {
    "made again": lambda path: made(),
    "mapped from a file": lambda path: saved(made(), path),
    "mapped in shards": lambda path: saved(made(), path, num_shards=5),
    "in chunks": lambda path: datasets.concatenate_datasets([made().shard(13, k, contiguous=True) for k in range(13)]),
    "the end of a larger table": lambda path: twice().select(range(NUM_ROWS, 2 * NUM_ROWS)),
    "the beginning of a larger file": lambda path: saved(twice(), path).select(range(NUM_ROWS)),
    "the end of a larger file": lambda path: saved(twice(), path).select(range(NUM_ROWS, 2 * NUM_ROWS)),
    "behind row numbers": lambda path: twice().select([*range(NUM_ROWS, NUM_ROWS + 9), *range(9, NUM_ROWS)]),
    "turned and back": lambda path: made().select(NUMBERS[::-1]).select(NUMBERS[::-1]),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_the_same_rows_are_the_same_data_however_they_are_kept(way: str, extent: str, tmp_path: Path) -> None:
    other = WAYS[way](tmp_path / "saved")
    assert other.to_dict() == made().to_dict()
    assert differences(identity(made()), identity(other), "train") == []


def test_a_shuffle_is_the_same_data_when_written_out(extent: str, tmp_path: Path) -> None:
    shuffled = made().shuffle(seed=1)
    assert same(shuffled, made().shuffle(seed=1))
    assert same(shuffled, saved(shuffled, tmp_path / "saved"))
    assert not same(shuffled, made().shuffle(seed=2))
    assert not same(shuffled, made())


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in ("nothing", "empty")])
def test_one_changed_value_is_another_data_set(name: str, extent: str) -> None:
    def column(values: list[Any]) -> dict[str, Any]:
        return identity(datasets.Dataset.from_dict({name: values}, features=datasets.Features({name: FEATURES[name]})))

    values = COLUMNS[name]
    for place in (0, 20, NUM_ROWS - 1):
        other = next(value for value in values[3:] if value != values[place] and value is not None)
        before, now = column(values), column([*values[:place], other, *values[place + 1 :]])
        assert differences(before, now, "eval") == [
            f'data: "eval" had 37 rows with the checksum {before["checksum"][:12]} and has as many with '
            f"{now['checksum'][:12]}, other values or another order; give data() the rows that the run began with, or start a "
            "new run"
        ]


def test_a_null_is_no_zero_and_moves_no_value(extent: str) -> None:
    def numbers(values: list[Any]) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"x": values}, features=datasets.Features({"x": datasets.Value("int64")}))

    seen = {identity(numbers(values))["checksum"] for values in ([1, None, 2], [1, 0, 2], [None, 1, 2], [1, 2, None])}
    assert len(seen) == 4
    texts = {identity(datasets.Dataset.from_dict({"x": v}))["checksum"] for v in (["ab", "c"], ["a", "bc"], ["abc", ""])}
    assert len(texts) == 3
    lists = {
        identity(datasets.Dataset.from_dict({"x": v}))["checksum"] for v in ([[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3], []])
    }
    assert len(lists) == 3


def test_what_lies_under_a_null_does_not_count(extent: str) -> None:
    def numbers(under: int) -> datasets.Dataset:
        values = pa.py_buffer(np.array([1, under, 3], np.int64).tobytes())
        return datasets.Dataset(pa.table({"x": pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\x05"), values])}))

    assert numbers(0)[:] == numbers(99)[:] == {"x": [1, None, 3]}
    assert same(numbers(0), numbers(99))


def test_rows_columns_and_format_are_named_with_both_values() -> None:
    numbers = datasets.Dataset.from_dict({"x": [1.5] * 64, "y": [1] * 64})
    advice = "; give data() the rows that the run began with, or start a new run"

    def lines(other: datasets.Dataset) -> list[str]:
        return [line.removesuffix(advice) for line in differences(identity(numbers), identity(other), "train")]

    assert lines(numbers.select(range(24))) == ['data: "train" had 64 rows and has 24']
    assert lines(numbers.cast_column("y", datasets.Value("int32"))) == [
        "data: \"train\" had y: Value('int64') and has y: Value('int32')"
    ]
    assert lines(numbers.remove_columns("y")) == ["data: \"train\" had y: Value('int64') and has no other column"]
    assert lines(numbers.select_columns(["y", "x"])) == [
        "data: \"train\" had x: Value('float64'), y: Value('int64') and has y: Value('int64'), x: Value('float64')"
    ]
    formatted = numbers.with_format("torch", columns=["x"], output_all_columns=True, dtype=torch.float64)
    assert lines(formatted) == ['data: "train" had the format none and has torch of x beside the others dtype=torch.float64']
    assert lines(numbers.with_transform(lambda batch: batch)) == ['data: "train" had the format none and has custom']


def test_ranks_are_compared_in_their_own_words() -> None:
    one, other = (identity(datasets.Dataset.from_dict({"x": [1] * size})) for size in (64, 56))
    assert differences(one, other, "train", "on rank 0 has", "on rank 1 has", "seed what data() draws") == [
        'data: "train" on rank 0 has 64 rows and on rank 1 has 56; seed what data() draws'
    ]


def test_another_fingerprint_alone_is_no_difference_and_a_note_where_only_a_sample_was_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = datasets.Dataset.from_dict({"x": NUMBERS})
    other = datasets.Dataset.from_dict({"x": NUMBERS})
    other._fingerprint = "0123456789abcdef"
    assert same(one, other)
    assert doubt(identity(one), identity(other), "train") is None
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    assert same(one, other)
    note = doubt(identity(one), identity(other), "train")
    assert note is not None
    assert "the fingerprint 0123456789abcdef where it had" in note
    assert doubt(identity(one), identity(one), "train") is None


def test_a_sample_reaches_from_the_first_row_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", 1000)
    values = np.arange(20_000)
    known = identity(datasets.Dataset.from_dict({"x": values}))
    assert not known["whole"]
    for place in (0, 63, 19_999):
        changed = values.copy()
        changed[place] += 1
        assert differences(known, identity(datasets.Dataset.from_dict({"x": changed})), "train")
    dropped = np.delete(np.append(values, 20_000), 7000)  # every later row moves up by one
    assert differences(known, identity(datasets.Dataset.from_dict({"x": dropped})), "train")


def test_an_order_taken_from_a_set_is_found_between_processes() -> None:
    code = (
        "import datasets\n"
        "from samestep.sources import identity\n"
        "words = [f'w{i}' for i in range(40)]; number = {w: i for i, w in enumerate(set(words))}\n"
        "print(identity(datasets.Dataset.from_dict({'x': [float(number[w]) for w in words]}))['checksum'])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 2

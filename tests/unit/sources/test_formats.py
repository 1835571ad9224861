"""What hangs on a data set, a transform or a format, is applied as `dataset[i]` applies it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from samestep.errors import UsageError
from samestep.sources import make_rows
from samestep.task import Task

ROWS = [4, 0, 3]


class Plain(Task):
    def data(self, split: str) -> datasets.Dataset | None:
        return None


class Seen(Plain):
    """Keeps the rows that its transform was given."""

    _rows: list[dict[str, Any]]

    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        self._rows.append(row)
        return {"n": 0}


def made() -> datasets.Dataset:
    numbers = np.arange(6)
    features = datasets.Features(
        {
            "double": datasets.Value("float64"),
            "single": datasets.Value("float32"),
            "half": datasets.Value("float16"),
            "small": datasets.Value("int32"),
            "byte": datasets.Value("uint8"),
            "flag": datasets.Value("bool"),
            "doubles": datasets.List(datasets.Value("float64")),
            "smalls": datasets.List(datasets.Value("int16"), length=2),
            "image": datasets.Array2D((2, 3), "float64"),
            "flags": datasets.List(datasets.List(datasets.Value("bool"))),
        }
    )
    return datasets.Dataset.from_dict(
        {
            "double": numbers / 7,
            "single": numbers / 7,
            "half": (numbers / 2).astype(np.float16),
            "small": numbers,
            "byte": numbers,
            "flag": numbers % 2 == 0,
            "doubles": [[k / 7, k / 3] for k in numbers],
            "smalls": [[k, -k] for k in numbers],
            "image": [np.full((2, 3), k / 7) for k in numbers],
            "flags": [[[True, False], [False, k % 2 == 0]] for k in numbers],
        },
        features=features,
    )


def expected(dataset: datasets.Dataset, float_dtype: torch.dtype, keep: bool) -> dict[str, torch.Tensor]:
    """The rows one by one, by the plainest means."""
    found: dict[str, torch.Tensor] = {}
    for name in dataset[0]:
        values = [dataset[row][name] for row in ROWS]
        column = torch.stack([v if isinstance(v, torch.Tensor) else torch.from_numpy(np.array(v)) for v in values])
        found[name] = column.to(float_dtype) if column.dtype == torch.float64 and not keep else column
    return found


FORMATS: dict[str, Callable[[datasets.Dataset], datasets.Dataset]] = {
    "torch": lambda d: d.with_format("torch"),
    "numpy": lambda d: d.with_format("numpy"),
    "torch, some columns": lambda d: d.with_format("torch", columns=["double", "smalls"]),
    "numpy, some columns": lambda d: d.with_format("numpy", columns=["double", "smalls"]),
    "torch, float64": lambda d: d.with_format("torch", columns=["double", "single", "image"], dtype=torch.float64),
    "torch, bfloat16": lambda d: d.with_format("torch", columns=["double", "small"], dtype=torch.bfloat16),
    "numpy, float64": lambda d: d.with_format("numpy", columns=["double", "image"], dtype=np.float64),
    "none, some columns": lambda d: d.with_format(None, columns=["double", "doubles"]),
    "behind row numbers": lambda d: d.shuffle(seed=5).with_format("torch"),
    "transform": lambda d: d.with_transform(lambda b: {"x": [[10 * v for v in r] for r in b["doubles"]]}),
    "transform, arrays": lambda d: d.with_transform(lambda b: {"x": [np.full(3, v, np.float32) for v in b["double"]]}),
    "transform, tensors": lambda d: d.with_transform(lambda b: {"x": torch.tensor(b["doubles"]).bfloat16()}),
    "transform of a shuffle": lambda d: d.shuffle(seed=5).with_transform(lambda b: {"x": b["small"], "y": b["double"]}),
    "transform, some columns": lambda d: d.with_transform(lambda b: b, columns=["doubles"]),
    "transform, others too": lambda d: d.with_transform(lambda b: {"doubles": b["doubles"]}, ["doubles"], True),
}  # fmt: skip


@pytest.mark.parametrize("float_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(FORMATS))
def test_a_batch_holds_what_the_rows_of_the_data_set_are(name: str, float_dtype: torch.dtype) -> None:
    dataset = FORMATS[name](made())
    wanted = expected(dataset, float_dtype, keep="float64" in name)
    batch = make_rows(dataset, Plain(), 0, float_dtype).read(np.array(ROWS), 0)
    assert sorted(batch) == sorted(wanted)
    for column, tensor in wanted.items():
        assert batch[column].dtype == tensor.dtype, column
        assert torch.equal(batch[column], tensor), column


def test_columns_without_the_format_are_completed_as_without_one() -> None:
    dataset = made().with_format("torch", columns=["double"], output_all_columns=True, dtype=torch.float64)
    batch = make_rows(dataset, Plain(), 0, torch.float32).read(np.array(ROWS), 0)
    assert {name: batch[name].dtype for name in ("double", "doubles")} == {"double": torch.float64, "doubles": torch.float32}
    assert len(batch) == len(made().column_names)


def test_a_transform_sees_one_row_at_a_time() -> None:
    dataset = made().with_transform(lambda batch: {"x": batch["double"], "rows": [len(batch["double"])] * len(batch["double"])})
    assert make_rows(dataset, Plain(), 0, torch.float32).read(np.array(ROWS), 0)["rows"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["torch", "numpy", "transform, tensors"])
def test_the_tasks_own_transform_is_given_the_formatted_row(name: str) -> None:
    dataset, task = FORMATS[name](made()), Seen()
    task._rows = []
    make_rows(dataset, task, 0, torch.float32).read(np.array(ROWS), 0)
    for row, number in zip(task._rows, ROWS, strict=True):
        for key, value in dataset[number].items():
            assert type(row[key]) is type(value), key
            assert row[key].dtype == value.dtype, key
            assert (row[key] == value).all(), key


def test_a_null_in_a_formatted_column_is_what_the_format_makes_of_it() -> None:
    dataset = datasets.Dataset.from_dict({"x": [1.5, None, 2.5], "n": [1, 2, 3]})
    for kind in ("torch", "numpy"):
        batch = make_rows(dataset.with_format(kind), Plain(), 0, torch.float32).read(np.array([0, 1]), 0)
        assert batch["x"][0] == 1.5
        assert torch.isnan(batch["x"][1])
        assert batch["n"].tolist() == [1, 2]
    half = dataset.with_format("torch", columns=["n"], output_all_columns=True)
    with pytest.raises(UsageError, match="column x is null in row 1"):
        make_rows(half, Plain(), 0, torch.float32)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_format_does_not_hide_what_cannot_be_stacked(kind: str) -> None:
    dataset = datasets.Dataset.from_dict({"a": ["x", "y"], "b": [[1], [1, 2]], "c": [{"d": 1}] * 2}).with_format(kind)
    with pytest.raises(UsageError) as caught:
        make_rows(dataset, Plain(), 0, torch.float32)
    assert [line.split(";")[0] for line in caught.value.lines] == [
        "data: column a holds str, not numbers",
        "data: column b has lists of uneven length, the first in row 1",
        "data: column c holds dict, not numbers",
    ]


@pytest.mark.parametrize("kind", ["arrow", "pandas"])
def test_a_format_of_tables_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match=f'data: the data set has the format "{kind}", whose rows are tables; write'):
        make_rows(made().with_format(kind), Plain(), 0, torch.float32)


def test_stored_text_that_decodes_to_numbers_is_decoded() -> None:
    features = datasets.Features({"x": datasets.Json(), "n": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"x": [1, 2.5, 3], "n": [1, 2, 3]}, features=features)
    batch = make_rows(dataset, Plain(), 0, torch.float32).read(np.array([0, 1]), 0)
    assert batch["x"].tolist() == [1.0, 2.5]
    assert batch["n"].tolist() == [1, 2]


@pytest.mark.parametrize("kind", [None, "torch", "numpy"])
def test_images_are_decoded(kind: str | None, tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    pixels = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    files = []
    for picture in pixels:
        images.fromarray(picture).save(file := io.BytesIO(), format="png")
        files.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "n": datasets.Value("int32")})
    dataset = datasets.Dataset.from_dict({"image": files, "n": [0, 1, 2]}, features=features).with_format(kind)
    batch = make_rows(dataset, Plain(), 0, torch.float32).read(np.array([2, 0]), 0)
    wanted = torch.from_numpy(pixels[[2, 0]])
    assert torch.equal(batch["image"], wanted.permute(0, 3, 1, 2) if kind == "torch" else wanted)
    assert batch["n"].tolist() == [2, 0]

"""Rows from anything that gives them by their numbers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from conftest import ROOT, Workplace
from samestep import Mix, Tokens
from samestep.config import load_config
from samestep.errors import UsageError
from samestep.runtime import read_runtime
from samestep.session.data import read_data, read_split
from samestep.sources import arrays, differences, doubt, identity, make_rows
from samestep.task import Task


class Plain(Task):
    pass


class Named(Task):
    def transform(self, row: Any, rng: Any) -> dict[str, Any]:
        return {"x": row[0], "y": row[1]}


def test_tuples_of_torchs_map_style_datasets_are_columns_by_place_or_named_by_transform() -> None:
    pairs = torch.utils.data.TensorDataset(torch.arange(6.0).view(3, 2), torch.arange(3))
    batch = make_rows(pairs, Named(), 0, torch.float32).read(np.array([2, 0]), 0)
    assert batch["x"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert batch["y"].tolist() == [2, 0]
    batch = make_rows(pairs, Plain(), 0, torch.float32).read(np.array([2, 0]), 0)
    assert batch[0].tolist() == [[4.0, 5.0], [0.0, 1.0]]  # type: ignore[index]
    assert batch[1].tolist() == [2, 0]  # type: ignore[index]
    with pytest.raises(UsageError, match=r"the batch has no column 2; data\(\) gives 0, 1"):
        batch[2]  # type: ignore[index]
    with pytest.raises(UsageError, match=r"row 0 has the columns 0, 1, and row 1 has 0; write the same"):
        make_rows([(1, 2), (1,)], Plain(), 0, torch.float32).read(np.array([0, 1]), 0)
    with pytest.raises(
        UsageError, match=r"row 1 is of type float; give dicts of column name to value, tuples, or write a tran"
    ):
        make_rows([0.0, 1.0], Plain(), 0, torch.float32).read(np.array([1]), 0)


def test_a_list_of_dicts_will_do_and_a_micro_batch_is_asked_for_at_once_where_that_is_possible() -> None:
    rows = [{"x": [float(n), 1]} for n in range(5)]
    assert make_rows(rows, Plain(), 0, torch.bfloat16).read(np.array([4]), 0)["x"].dtype == torch.bfloat16
    asked: list[list[int]] = []

    class Many(list[Any]):
        def __getitems__(self, numbers: list[int]) -> list[Any]:
            asked.append(numbers)
            return [self[number] for number in numbers]

    assert make_rows(Many(rows), Plain(), 0, torch.float32).read(np.array([3, 1]), 0)["x"].tolist() == [[3, 1], [1, 1]]
    assert asked == [[3, 1]]


def test_tokens_are_rows_of_a_file_with_the_documents_within(tmp_path: Path) -> None:
    raw, npy = tmp_path / "train.bin", tmp_path / "train.npy"
    numbers = np.array([5, 6, 0, 7, 0, 8, 9, 9, 9, 60000], np.uint16)
    numbers.tofile(raw)
    np.save(npy, numbers.astype(np.int32))
    for tokens in (Tokens(raw, context=4, boundary=0), Tokens(npy, context=4, boundary=0)):
        assert len(tokens) == 2
        assert tokens[0]["tokens"].tolist() == [5, 6, 0, 7, 0]
        assert tokens[0]["document"].tolist() == [0, 0, 0, 1, 1]
        assert tokens[1]["tokens"].tolist() == [0, 8, 9, 9, 9]
    assert Tokens(raw, context=3)[2].keys() == {"tokens"}
    assert Tokens(raw, context=3)[2]["tokens"].tolist()[-1] == 60000
    refused: list[tuple[str, Callable[[], Tokens]]] = [
        ("; write the path of a file of tokens", lambda: Tokens("gone.bin")),
        ("20 bytes are no whole number of int64; write the dtype that it was written with", lambda: Tokens(raw, "int64", 2)),
        ("found shape (10,), and a row takes 11 tokens in one dimension; write a smaller", lambda: Tokens(raw, context=10)),
    ]
    for words, make in refused:
        with pytest.raises(UsageError, match=re.escape(words)):
            make()


@pytest.mark.parametrize("found", [{"x": [1]}, "rows", 3, iter([1])], ids=["dict", "text", "number", "iterator"])
def test_what_gives_no_rows_by_number_is_told(found: object) -> None:
    class Odd(Task):
        def data(self, split: str) -> Any:
            return found

    with pytest.raises(UsageError, match=f'data\\("train"\\) returned {type(found).__name__}; '):
        read_split(Odd(), 0, "train")


class Given(Task):
    """Gives what a test has made."""

    _found: Any = None

    def data(self, split: str) -> Any:
        return self._found


def given(found: Any, kind: type[Given] = Given) -> Any:
    task = kind()
    task._found = found
    return task, read_split(task, 0, "train")


COLUMNS: dict[str, Any] = {
    "float": np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32),
    "double": torch.arange(50.0, dtype=torch.float64),
    "bytes": np.arange(200, dtype=np.uint8).reshape(50, 2, 2),
    "bool": torch.arange(50) % 3 == 0,
    "strided": torch.arange(100).reshape(2, 50).T,
    "backwards": np.arange(50)[::-1],
    "of another machine": np.arange(50).astype(">i4"),
    "a packed field": np.zeros(50, [("x", "<f4"), ("y", "u1")])["x"],
    "uint16": np.arange(50, dtype=np.uint16),
    "uint32": np.arange(100, dtype=np.uint32).reshape(50, 2),
    "uint64": np.arange(50, dtype=np.uint64),
    "eighths": torch.arange(50).to(torch.float8_e4m3fn),
    "a part with grad": torch.ones(50, 3, requires_grad=True)[:, :2],
    "halves": torch.arange(50).to(torch.bfloat16),
    "complex": torch.complex(torch.arange(50.0), torch.ones(50)).conj(),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_in_memory_come_as_they_are(name: str) -> None:
    column = COLUMNS[name]
    task, rows = given({name: column})
    read = make_rows(rows, task, 0, torch.float32).read(np.array([7, 49, 7]), 0)[name]
    if isinstance(column, np.ndarray):
        column = torch.from_numpy(np.ascontiguousarray(column).astype(column.dtype.newbyteorder("=")))
    meant = column.float() if column.dtype == torch.float64 else column.detach()
    assert read.dtype == meant.dtype
    assert read.tolist() == [meant[place].tolist() for place in (7, 49, 7)]
    assert len(rows) == 50


def test_columns_in_memory_are_what_a_data_set_of_them_is() -> None:
    columns = {name: COLUMNS[name] for name in ("float", "bytes", "bool")}
    task, rows = given(columns)
    table = datasets.Dataset.from_dict({name: np.asarray(column) for name, column in columns.items()})
    one, other = (make_rows(some, task, 0, torch.float32).read(np.arange(50)[::3].copy(), 0) for some in (rows, table))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_transform_sees_rows_of_the_kind_that_was_given() -> None:
    class Changed(Given):
        def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
            assert isinstance(row["a"], np.ndarray)
            assert isinstance(row["t"], torch.Tensor)
            row["a"] += 100  # its own memory: the next epoch's row is as it was
            return row

    made = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    task, rows = given({"a": made, "t": torch.arange(6)}, Changed)
    read = make_rows(rows, task, 0, torch.float32)
    for _ in range(2):
        assert read.read(np.array([5]), 0)["a"].tolist() == [[110.0, 111.0]]
    assert made[5].tolist() == [10.0, 11.0]


def identity_whole(column: Any) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "WHOLE_BYTES", 0)
        return bool(identity(given({"x": column})[1])["whole"])


def test_an_array_mapped_from_a_file_is_not_read_into_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(1000).reshape(100, 10))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert not identity_whole(np.asarray(mapped))
    assert identity_whole(mapped[[1, 2]])  # a copy, in memory
    task, rows = given({"x": mapped})
    assert rows.columns["x"].data_ptr() == mapped.ctypes.data
    assert make_rows(rows, task, 0, torch.float32).read(np.array([3]), 0)["x"].tolist() == [list(range(30, 40))]


def test_columns_in_memory_are_known_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def print_of(column: Any, **others: Any) -> Any:
        return identity(given({"x": column, **others})[1])

    column = torch.arange(100_000)
    other = column.clone()
    other[-1] = 0
    assert print_of(column) == print_of(column.numpy())
    assert print_of(column)["checksum"] != print_of(other)["checksum"]
    assert print_of(column)["head"] == print_of(other)["head"]
    assert print_of(column)["columns"] == ["x: int64 ()"]
    assert print_of(column, y=column)["columns"] != print_of(column)["columns"]
    monkeypatch.setattr(arrays, "_AT_ONCE_BYTES", 1000)
    strided = column.repeat_interleave(2)[::2]
    assert print_of(strided)["checksum"] == print_of(column)["checksum"]
    monkeypatch.setattr(arrays, "WHOLE_BYTES", 0)
    assert print_of(column)["whole"]  # in memory there is no reason to look at some rows alone
    before = mapped_print(tmp_path, column)
    assert not before["whole"]
    assert before["checksum"] != mapped_print(tmp_path, other)["checksum"]  # the last rows are always looked at
    other = column.clone()
    other[50_001] = 0
    now = mapped_print(tmp_path, other)
    assert differences(before, now, "train") == []
    assert "if other rows changed, start a new run" in (doubt(before, now, "train") or "")


def mapped_print(folder: Path, column: torch.Tensor) -> Any:
    (folder / "x.npy").unlink(missing_ok=True)
    np.save(folder / "x.npy", column.numpy())
    return identity(given({"x": np.load(folder / "x.npy", mmap_mode="r")})[1])


def test_rows_in_memory_are_drawn_by_weights_and_mixed() -> None:
    class Weighted(Given):
        def weights(self, split: str) -> Any:
            return [1.0, 0.0, 0.0]

    task = given({"x": torch.arange(3)}, Weighted)[0]
    found = read_data(task, load_config(ROOT / "configs/seed.yaml", [])[0], read_runtime())
    assert found.order(0).rows(0, 0, 3).tolist() == [0, 0, 0]
    mixture = Mix([({"x": torch.arange(3)}, 1), ({"x": np.arange(10, 13)}, 1)])
    rows = make_rows(mixture, task, 0, torch.float32).read(np.arange(6), 0)["x"].tolist()
    assert sorted(rows) == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": torch.zeros(3), "y": torch.zeros(4)}, "x has 3 rows and y 4; write columns of one length"),
        ({"x": np.array(["a", "b"])}, "column x has values of <U1; write numbers"),
        ({"x": np.array([1, None])}, "column x has values of object; write numbers"),
        ({"x": torch.tensor(1.0)}, "column x is one number; write a dense tensor with a row for each example"),
        ({"x": torch.eye(3).to_sparse()}, "column x is a tensor of layout torch.sparse_coo; write a dense tensor"),
        ({"x": np.ma.masked_less(np.arange(3), 1)}, "column x is a masked array; leave such rows out, or write .filled"),
        ({"x": torch.zeros(0, 3)}, 'data("train") has no rows'),
        ({"x": torch.zeros(3), "y": [1, 2, 3]}, "returned dict; return its columns as tensors or NumPy arrays, or"),
    ],
)
def test_columns_that_are_none_are_told(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        given(columns)


def test_a_source_is_known_again_by_some_of_its_rows() -> None:
    rows = [{"x": np.arange(3) + n, "name": str(n)} for n in range(100)]
    same = [{"x": np.arange(3) + n, "name": str(n)} for n in range(100)]
    other = [*same[:-1], {"x": np.arange(3), "name": "99"}]
    assert identity(rows) == identity(same)
    assert identity(rows)["checksum"] != identity(other)["checksum"]
    assert identity(rows[:50])["rows"] == 50


def test_values_of_any_kind_tell_a_source_again() -> None:
    def rows() -> list[Any]:
        return [{"x": np.array([1, "a"], object), "y": torch.ones(2, dtype=torch.bfloat16) * n, "n": n} for n in range(9)]

    assert identity(rows()) == identity(rows())
    assert identity(rows())["head"] == identity(rows()[:5])["head"] != ""
    assert identity([{"x": object()}])["head"] == ""  # of what has no bytes nothing is said


class Lazy:
    """Opens its file when it is first read, as sources do that loader processes read."""

    def __init__(self) -> None:
        self.opened = False

    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.opened = True
        return {"n": row, "noise": [torch.rand(2), np.random.rand(), random.random()]}


def test_before_loader_processes_begin_no_row_is_read_here_and_workers_may_change_on_a_resume() -> None:
    source = Lazy()
    assert identity(source, apart=True) == identity(Lazy())
    assert not source.opened


def test_a_source_with_random_numbers_of_its_own_gives_the_same_bits_on_two_processes(workplace: Workplace) -> None:
    workplace.write("mine.py", TASK)
    config = "{task: mine.py:Mine, global_batch_size: 8, micro_batch_size: 2, steps: 9, optimizer: {name: adam, lr: 1e-2}}"
    workplace.write("mine.yaml", config)
    words = ("mine.yaml", "track.wandb=off")
    weights = {workplace.train(*words, "--run", str(size), processes=size).weights for size in (1, 2)}
    weights.add(workplace.train(*words, "--run", "3", "workers=1").weights)
    assert len(weights) == 1


TASK = """
import torch

from samestep import Task


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, row):
        return torch.full((3,), float(row)) + torch.rand(3), row % 2


class Mine(Task):
    def data(self, split):
        return Noisy() if split == "train" else None

    def transform(self, row, rng):
        return {"x": row[0], "y": row[1]}

    def model(self):
        return torch.nn.Linear(3, 2)

    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), len(batch["y"])
"""

"""Rows of a data set as tensors: columns of numbers straight from Arrow's memory, the others through `datasets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from samestep.errors import UsageError
from samestep.mixing import mix
from samestep.order import Integers
from samestep.task import Batch, Columns, Task

if TYPE_CHECKING:
    import datasets

Array = NDArray[Any]


class Column:
    """A column of fixed-shape numbers, as views into the Arrow chunks: nothing is read until rows are asked for."""

    def __init__(self, chunks: list[Array]) -> None:
        self._chunks = chunks
        self._starts = np.cumsum([0, *[len(chunk) for chunk in chunks]])
        self.shape, self.dtype = chunks[0].shape[1:], chunks[0].dtype

    def take(self, rows: Integers, out: Array) -> None:
        """Copy the given rows into `out`, of shape (len(rows), *shape)."""
        if len(self._chunks) == 1:
            np.take(self._chunks[0], rows, axis=0, out=out, mode="clip")  # "raise" would go through a buffer
            return
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for position, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            out[position] = self._chunks[number][row - self._starts[number]]


def _chunk_array(chunk: pa.Array) -> Array | None:
    """An Arrow chunk as a numpy view of shape (rows, …), or None if its rows are not numbers of one shape."""
    shape: list[int] = [len(chunk)]
    while True:
        if chunk.null_count:
            return None
        if isinstance(chunk, pa.ExtensionArray):
            chunk = chunk.storage
        elif pa.types.is_fixed_size_list(chunk.type):
            shape.append(chunk.type.list_size)
            chunk = chunk.flatten()
        elif pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            offsets = chunk.offsets.to_numpy()
            sizes = np.diff(offsets)
            if len(sizes) == 0 or (sizes != sizes[0]).any():
                return None
            shape.append(int(sizes[0]))
            chunk = chunk.flatten()
        else:
            break
    if not (pa.types.is_integer(chunk.type) or pa.types.is_floating(chunk.type)):
        return chunk.to_numpy(zero_copy_only=False).reshape(shape) if pa.types.is_boolean(chunk.type) else None
    values: Array = chunk.to_numpy(zero_copy_only=True)
    return values.reshape(shape)


def _column(data: pa.ChunkedArray) -> Column | None:
    arrays = [_chunk_array(chunk) for chunk in data.chunks if len(chunk)]
    views = [array for array in arrays if array is not None]
    if not views or len(views) < len(arrays) or len({array.shape[1:] for array in views}) > 1:
        return None
    return Column(views)


class Rows:
    """A split of a task, read by row number.

    Args:
        dataset: at least one row.
        float_dtype: what float64 columns become (Python's floats and CSV are float64): the model's own type, usually.
    """

    def __init__(self, dataset: datasets.Dataset, task: Task, seed: int, float_dtype: torch.dtype) -> None:
        self._task, self._seed = task, seed
        self._float_dtype = float_dtype
        self.num_rows = len(dataset)
        self._indices = _indices(dataset)
        table = dataset.data
        names = dataset.column_names
        self._columns = {name: column for name in names if (column := _column(table.column(name))) is not None}
        others = [name for name in names if name not in self._columns]
        self._others = dataset.select_columns(others) if others else None
        self._row_by_row = bool(others) or task.overrides("transform") or task.overrides("collate")

    def read(self, rows: Integers, epoch: int) -> Batch:
        """A micro-batch on the CPU: each column's tensor, of shape (len(rows), …), in an allocation of its own."""
        if self._row_by_row:
            return self._finished(self._assemble(self._python_rows(rows, epoch)))
        wanted = rows if self._indices is None else self._indices[rows]
        batch = {}
        for name, column in self._columns.items():
            tensor = _empty((len(rows), *column.shape), column.dtype)
            column.take(wanted, tensor.numpy())
            batch[name] = tensor
        return self._finished(batch)

    def _finished(self, batch: Batch) -> Batch:
        return Columns(
            (name, tensor.to(self._float_dtype) if tensor.dtype == torch.float64 else tensor) for name, tensor in batch.items()
        )

    def _python_rows(self, rows: Integers, epoch: int) -> list[dict[str, Any]]:
        wanted = rows if self._indices is None else self._indices[rows]
        batch: dict[str, Any] = dict(self._others[rows.tolist()]) if self._others is not None else {}
        for name, column in self._columns.items():
            batch[name] = np.empty((len(rows), *column.shape), column.dtype)
            column.take(wanted, batch[name])
        found = [{name: values[place] for name, values in batch.items()} for place in range(len(rows))]
        if not self._task.overrides("transform"):
            return found
        return [
            self._task.transform(row, np.random.Generator(np.random.Philox(mix(self._seed, epoch, number))))
            for row, number in zip(found, rows.tolist(), strict=True)
        ]

    def _assemble(self, rows: list[dict[str, Any]]) -> Batch:
        if self._task.overrides("collate"):
            batch = self._task.collate(rows)
            return {name: tensor.clone() if tensor.storage_offset() else tensor for name, tensor in batch.items()}
        return {name: self._stack(name, [row[name] for row in rows]) for name in rows[0]}

    def _stack(self, name: str, values: list[Any]) -> torch.Tensor:
        arrays = [np.asarray(value) for value in values]
        if len({array.shape for array in arrays}) > 1:
            raise UsageError(f"data: column {name} has rows of shapes {arrays[0].shape} and others; write a collate() that "
                             "pads them")  # fmt: skip
        if arrays[0].dtype.kind not in "biuf":
            raise UsageError(f"data: column {name} holds {type(values[0]).__name__}, not numbers; remove it in data(), or "
                             "write a transform() or collate() that turns it into numbers")  # fmt: skip
        first = arrays[0]
        tensor = _empty((len(arrays), *first.shape), first.dtype)
        np.stack(arrays, out=tensor.numpy())
        return tensor


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
    """Memory of torch's own alignment: kernels may take other paths, and give other bits, on numpy's."""
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)


def _indices(dataset: datasets.Dataset) -> Integers | None:
    """The row numbers that `select`, `shuffle` or `train_test_split` laid over the table, if any."""
    if dataset._indices is None:
        return None
    return np.asarray(dataset._indices.column(0).to_numpy(), dtype=np.int64)

"""Columns of Arrow tables: views of those that hold numbers of one shape, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from samestep.randomness.order import Integers

Array = NDArray[Any]
Mask = NDArray[np.bool_]


class Column:
    """A column of fixed-shape numbers, as views into the Arrow chunks: nothing is read until rows are asked for."""

    def __init__(self, chunks: list[Array]) -> None:
        self.chunks = chunks
        self._starts = np.cumsum([0, *[len(chunk) for chunk in chunks]])
        self.shape, self.dtype = chunks[0].shape[1:], chunks[0].dtype

    def take(self, rows: Integers, out: Array) -> None:
        """Copy the given rows into `out`, of shape (len(rows), *shape)."""
        if len(self.chunks) == 1:
            self.chunks[0].take(rows, axis=0, out=out, mode="clip")  # "raise" would go through a buffer
            return
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for position, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            out[position] = self.chunks[number][row - self._starts[number]]


def as_column(data: pa.ChunkedArray) -> Column | None:
    """The column as numbers of one shape, or None if it holds anything else."""
    arrays = [_chunk_array(chunk) for chunk in data.chunks if len(chunk)]
    views = [array for array in arrays if array is not None]
    if not views or len(views) < len(arrays) or len({array.shape[1:] for array in views}) > 1:
        return None
    return Column(views)


def fault(name: str, data: pa.ChunkedArray, indices: Integers | None, nullable: bool = False) -> str | None:
    """Why the rows of a column cannot be stacked as they are, and what to write; None if they can.

    Args:
        indices: the row numbers that stand for the table's own, if any; rows outside them don't matter.
        nullable: a null is a number too (NaN).
    """
    leaf = data.type
    while (inner := _inner(leaf)) is not None:
        leaf = inner
    if not (pa.types.is_integer(leaf) or pa.types.is_floating(leaf) or pa.types.is_boolean(leaf) or pa.types.is_null(leaf)):
        return not_numbers(name, _PYTHON_NAMES.get(str(leaf), "dict" if pa.types.is_nested(leaf) else str(leaf)))
    row = None if nullable else _first(data, indices, lambda array, depth: array.is_null().to_numpy(zero_copy_only=False))
    if row is not None:
        return null(name, row)
    shape = _shape(data, 0 if indices is None else int(indices[0]))
    row = _first(data, indices, lambda array, depth: _lengths(array) != shape[depth] if depth < len(shape) else None)
    if row is not None:
        return f"data: column {name} has lists of uneven length, the first in row {row}; write a collate() that pads them"
    return None


def not_numbers(name: str, found: str) -> str:
    return (
        f"data: column {name} holds {found}, not numbers; remove it in data(), or write a transform() or collate() that turns "
        "it into numbers"
    )


def null(name: str, row: int) -> str:
    return f"data: column {name} is null in row {row}; fill it or drop the row in data()"


_PYTHON_NAMES = {
    **dict.fromkeys(("string", "large_string", "string_view"), "str"),
    **dict.fromkeys(("binary", "large_binary", "binary_view"), "bytes"),
}


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


def _inner(kind: pa.DataType) -> pa.DataType | None:
    """What a list holds, or an extension type stands on; None for any other type."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind.value_type if _is_list(kind) else None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _first(data: pa.ChunkedArray, indices: Integers | None, test: Callable[[pa.Array, int], Mask | None]) -> int | None:
    """The first row, as the user counts them, in which `test` holds for the value or, at some depth, for a part of it."""
    masks = [_rows(chunk, 0, test) for chunk in data.chunks]
    marked = np.concatenate([np.zeros(0, bool), *masks])
    if indices is not None:
        marked = marked[indices]
    return int(marked.argmax()) if marked.any() else None


def _rows(array: pa.Array, depth: int, test: Callable[[pa.Array, int], Mask | None]) -> Mask:
    if isinstance(array, pa.ExtensionArray):
        return _rows(array.storage, depth, test)
    own = test(array, depth)
    marked: Mask = np.zeros(len(array), bool) if own is None else own
    if _is_list(array.type):
        lengths = _lengths(array)  # 0 where a list is null: flatten() leaves those out
        counts = np.concatenate([[0], np.cumsum(_rows(array.flatten(), depth + 1, test))])
        ends = np.cumsum(lengths)
        marked = marked | (counts[ends] > counts[ends - lengths])
    return marked


def _lengths(array: pa.Array) -> Integers:
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, dtype=np.int64)


def _shape(data: pa.ChunkedArray, row: int) -> list[int]:
    """The lengths of a row's lists, the first of each depth."""
    array, shape = next(chunk for chunk in data.slice(row, 1).chunks if len(chunk)), []
    while len(array) and _inner(array.type) is not None:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        else:
            shape.append(int(_lengths(array)[0]))
            array = array.flatten()
    return shape

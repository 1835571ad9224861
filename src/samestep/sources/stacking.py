"""The values of one column, a row each, as one tensor of their common dtype."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samestep.errors import UsageError
from samestep.sources.arrow import not_numbers, null

Array = NDArray[Any]

_NUMBERS = "?bhilqBHILQefdFD"  # the characters of numpy's dtypes that torch has too


def stack(name: str, values: Sequence[Any], rows: Sequence[int]) -> torch.Tensor:
    """One tensor of the rows' values, on the CPU: numbers, arrays, tensors or lists of them, of one shape.

    The dtype is the one to which torch promotes all of theirs: ints beside floats become floats.
    """
    parts = [_numbers(name, value, row) for value, row in zip(values, rows, strict=True)]
    shapes = {tuple(part.shape): row for part, row in zip(parts[::-1], rows[::-1], strict=True)}  # where each shape begins
    if len(shapes) > 1:
        one, other, *_ = sorted(shapes, key=lambda shape: rows.index(shapes[shape]))
        raise UsageError(f"data: column {name} has rows of shapes {one} (row {shapes[one]}) and {other} (row {shapes[other]}); "
                         "write a collate() that pads them")  # fmt: skip
    dtype = _common(name, parts, rows)
    stacked = torch.empty((len(parts), *parts[0].shape), dtype=dtype)
    arrays = [part for part in parts if not isinstance(part, torch.Tensor)]
    if len(arrays) == len(parts):
        np.stack(arrays, out=stacked.numpy())
    else:
        for place, part in zip(stacked, parts, strict=True):
            place.copy_(part if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part, _native(part.dtype))))
    return stacked


@functools.cache
def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """The torch dtype of numpy's; TypeError if there is none."""
    return torch.from_numpy(np.empty(0, _native(dtype))).dtype


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in this machine's byte order: torch knows no other."""
    return dtype.newbyteorder("=")


def _numbers(name: str, value: Any, row: int) -> Array | torch.Tensor:
    if isinstance(value, np.ndarray) and value.dtype.char in _NUMBERS:
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, (list, tuple)) and isinstance(_innermost(value), torch.Tensor):
        return stack(name, value, [row] * len(value))
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        raise UsageError(f"data: column {name} has lists of uneven length in row {row}; write a collate() that pads "
                         "them") from None  # fmt: skip
    if array.dtype.char not in _NUMBERS:
        raise UsageError(_unfit(name, value, row))
    return array


def _innermost(value: Any) -> Any:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value


def _unfit(name: str, value: Any, row: int) -> str:
    """The line about a value that is no number, named by its innermost part."""
    while isinstance(value, (list, tuple)) and value:
        value = next((part for part in value if not isinstance(part, (int, float, complex))), value[0])
    if value is None:
        return null(name, row)
    found = f"arrays of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    return not_numbers(name, f"{found} in row {row}")


def _common(name: str, parts: list[Array | torch.Tensor], rows: Sequence[int]) -> torch.dtype:
    first = {part.dtype: row for part, row in zip(parts[::-1], rows[::-1], strict=True)}  # where each dtype begins
    dtypes = {dtype if isinstance(dtype, torch.dtype) else torch_dtype(dtype): row for dtype, row in first.items()}
    try:
        return functools.reduce(torch.promote_types, dtypes)
    except RuntimeError:
        (one, row), (other, other_row), *_ = sorted(dtypes.items(), key=lambda item: rows.index(item[1]))
        raise UsageError(f"data: column {name} is {_short(one)} in row {row} and {_short(other)} in row {other_row}, which "
                         "have no common dtype; write one dtype for all rows in transform()") from None  # fmt: skip


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""The values of one column, a row each, as one tensor of their common dtype."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samestep.batches.arrow import not_numbers, null
from samestep.errors import UsageError

Array = NDArray[Any]


def stack(name: str, values: Sequence[Any], rows: Sequence[int]) -> torch.Tensor:
    """One tensor of the rows' values, on the CPU: numbers, arrays, tensors or lists of them, of one shape.

    The dtype is the one to which torch promotes all of theirs: ints beside floats become floats.
    """
    parts = [_numbers(name, value, row) for value, row in zip(values, rows, strict=True)]
    for part, row in zip(parts, rows, strict=True):
        if part.shape != parts[0].shape:
            raise UsageError(f"data: column {name} has rows of shapes {tuple(parts[0].shape)} (row {rows[0]}) and "
                             f"{tuple(part.shape)} (row {row}); write a collate() that pads them")  # fmt: skip
    dtypes = [part.dtype if isinstance(part, torch.Tensor) else torch_dtype(part.dtype) for part in parts]
    dtype = _common(name, dtypes, rows)
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
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if value is None:
        raise UsageError(null(name, row))
    if isinstance(value, (list, tuple)) and isinstance(_innermost(value), torch.Tensor):
        return stack(name, value, [row] * len(value))
    try:
        array = np.asarray(value)
        if array.dtype.kind in "biufc" and torch_dtype(array.dtype):
            return array
    except (ValueError, TypeError, RuntimeError):
        if isinstance(value, (list, tuple)):
            raise UsageError(f"data: column {name} has lists of uneven length in row {row}; write a collate() that pads "
                             "them") from None  # fmt: skip
    raise UsageError(_unfit(name, value, row))


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


def _common(name: str, dtypes: Sequence[torch.dtype], rows: Sequence[int]) -> torch.dtype:
    if len(set(dtypes)) == 1:
        return dtypes[0]
    try:
        return functools.reduce(torch.promote_types, dtypes)
    except RuntimeError:
        other, row = next((dtype, row) for dtype, row in zip(dtypes, rows, strict=True) if dtype != dtypes[0])
        raise UsageError(f"data: column {name} is {_short(dtypes[0])} in row {rows[0]} and {_short(other)} in row {row}, which "
                         "have no common dtype; write one dtype for all rows in transform()") from None  # fmt: skip


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

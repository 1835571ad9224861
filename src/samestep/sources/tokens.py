"""Rows of token numbers, straight from a file that is never read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from samestep.errors import UsageError


class Tokens:
    """A file of token numbers as rows of `context` + 1 of them, of which neighbours share one: inputs and their targets.

    A row is `{"tokens": (context + 1,) int64}`. Documents stand one after the other, and rows cross from one into the next.

    Args:
        path: raw numbers, one after the other, or a `.npy` file of one dimension. It is mapped into memory.
        dtype: of raw numbers; `uint16` is what most tools write.
        boundary: the token that ends a document. Rows then have `document` too, (context + 1,) int64, which counts the
            documents within the row from 0: a mask for attention, and where positions begin again.

    Raises UsageError for a file that is missing, too short for a row, or no whole number of tokens.
    """

    def __init__(self, path: str | Path, dtype: DTypeLike = "uint16", context: int = 1024, boundary: int | None = None) -> None:
        self.path, self.context, self._boundary = Path(path), context, boundary
        if not self.path.is_file():
            raise UsageError(f"data: found no file {path} (from {Path.cwd()}); write the path of a file of tokens")
        size = np.dtype(dtype).itemsize
        if self.path.suffix != ".npy" and self.path.stat().st_size % size:
            words = f"{self.path.stat().st_size} bytes are no whole number of {np.dtype(dtype)}"
            raise UsageError(f"data: {path}: {words}; write the dtype that it was written with")
        is_npy = self.path.suffix == ".npy"
        self._tokens: NDArray[Any] = np.load(path, mmap_mode="r") if is_npy else np.memmap(path, dtype, mode="r")
        if self._tokens.ndim != 1 or len(self._tokens) <= context:
            words = f"shape {self._tokens.shape}, and a row takes {context + 1} tokens in one dimension"
            raise UsageError(f"data: {path}: found {words}; write a smaller context, or another file")

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self.context

    def __getitem__(self, row: int) -> dict[str, NDArray[np.int64]]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        start = row * self.context
        tokens = self._tokens[start : start + self.context + 1].astype(np.int64)
        if self._boundary is None:
            return {"tokens": tokens}
        ends = tokens[:-1] == self._boundary
        return {"tokens": tokens, "document": np.concatenate([[0], np.cumsum(ends)])}

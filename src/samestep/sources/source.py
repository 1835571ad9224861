"""What a source of samestep's own has beside rows: an order and an identity of its own."""

from __future__ import annotations

import sys
from typing import Any

import torch

from samestep.randomness.order import Order
from samestep.sources.rows import Rows
from samestep.task import Task

# Data of up to so many bytes are summed whole for their identity, larger ones by slices from the first row to the last.
WHOLE_BYTES = 64 * 2**20
SLICES = SLICE_ROWS = 64
HEAD_ROWS = 4  # by which two splits are told to begin alike


class Source:
    """Gives rows by their numbers, in an order that suits how they are kept.

    The order is a pure function of the source and the seed, and part of `identity`: a run goes on in the order it began with.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, row: int) -> Any:
        raise NotImplementedError

    def as_rows(self, task: Task, seed: int, float_dtype: torch.dtype) -> Rows:
        raise NotImplementedError

    def order(self, seed: int) -> Order:
        """The order of its rows; a permutation of all of them where it has none of its own."""
        return Order(len(self), seed)

    def identity(self, apart: bool = False) -> dict[str, Any]:
        raise NotImplementedError


def is_dataset(found: object) -> bool:
    """Whether it is a `datasets.Dataset`; a program that has none does without that library, which takes long to import."""
    library = sys.modules.get("datasets.arrow_dataset")
    return library is not None and isinstance(found, library.Dataset)


def order_of(source: Any, seed: int) -> Order:
    """The order of a source's rows: its own, or a permutation of all of them."""
    return source.order(seed) if isinstance(source, Source) else Order(len(source), seed)

"""What a source of samestep's own has beside rows: an order and an identity of its own."""

from __future__ import annotations

from typing import Any

import torch

from samestep.batches.rows import Rows
from samestep.randomness.order import Order
from samestep.task import Task


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
        raise NotImplementedError

    def identity(self, apart: bool = False) -> dict[str, Any]:
        raise NotImplementedError


def order_of(source: Any, seed: int) -> Order:
    """The order of a source's rows: its own, or a permutation of all of them."""
    return source.order(seed) if isinstance(source, Source) else Order(len(source), seed)

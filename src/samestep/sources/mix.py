"""Several sources as one, each with its share of the rows: the row at any position is arithmetic."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import xxhash

from samestep.errors import UsageError
from samestep.randomness.mixing import mix
from samestep.randomness.order import Integers, Order
from samestep.sources.arrays import Arrays, are_arrays
from samestep.sources.columns import make_rows
from samestep.sources.identity import identity
from samestep.sources.rows import Rows
from samestep.sources.source import Source, order_of
from samestep.task import Batch, Columns, Task

_LARGEST_BLOCK = 100_000
_MIXING = 3  # sets the order of each source apart


class Mix(Source):
    """Rows of several sources in exact proportions: `samestep.Mix({code: 0.7, prose: 0.3})`.

    Weights become whole numbers over a common denominator D, and every D rows hold exactly so many of each source, spread
    evenly: the j-th of a source with w of them comes at the time (2j + 1) / 2w (Sainte-Laguë's method). Each source goes
    through its own epochs, all its rows once in an order of each epoch's own, at whatever pace its weight gives it.

    The mixture goes on for ever; its length is an epoch of the run's, after which nothing but the count begins anew.

    Args:
        sources: weights by source, or a list of (source, weight), for sources that no dict takes as keys. A source is a
            `datasets.Dataset`, `samestep.Parquet`, `samestep.Tokens`, or anything with `__len__` and `__getitem__`.
        rows: of an epoch; None for as many as the sources have together.

    Raises UsageError for weights that are none, or no ratio of small whole numbers, and for sources that have no rows.
    """

    def __init__(self, sources: Mapping[Any, float] | Sequence[tuple[Any, float]], rows: int | None = None) -> None:
        pairs = list(sources.items() if isinstance(sources, Mapping) else sources)
        self.sources = [Arrays(source) if are_arrays(source) else source for source, _ in pairs]
        for source in self.sources:
            _refuse_what_is_none(source)
        if not pairs or (rows is not None and rows < 1):
            raise UsageError(f"data: samestep.Mix: found {'no source' if not pairs else f'rows={rows}'}; write one at least")
        self._weights = _whole([weight for _, weight in pairs])
        self._lengths = [len(source) for source in self.sources]
        self._num_rows = rows or sum(self._lengths)
        turns = np.concatenate([np.arange(weight) for weight in self._weights])
        owners = np.repeat(np.arange(len(pairs)), self._weights)
        # Equal quotients are the same float, and others differ by more than its rounding: the order is exact.
        order = np.argsort((2 * turns + 1) / np.array(self._weights)[owners], kind="stable")
        self._owners, self._turns = owners[order], turns[order]
        self._slots = [np.flatnonzero(self._owners == number) for number in range(len(pairs))]

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < self._num_rows:
            raise IndexError(row)
        return self.at(row)

    def at(self, number: int) -> Any:
        """The row at any number from 0 on; an order gives numbers beyond the length, of the sources' later epochs."""
        ((source, _, (row,)),) = self.split(np.array([number]))
        return self.sources[source][int(row)]

    def split(self, numbers: Integers) -> Iterator[tuple[int, Integers, Integers]]:
        """For each source that some numbers belong to: which source, at which places of `numbers`, and its own rows."""
        owners, counts = self.counts(numbers)
        for source in np.unique(owners).tolist():
            places = np.flatnonzero(owners == source)
            yield source, places, counts[places] % self._lengths[source]

    def counts(self, numbers: Integers) -> tuple[Integers, Integers]:
        """The source at each number, and how many of the source's rows stand before it."""
        block, place = np.divmod(numbers, len(self._owners))
        owners = self._owners[place]
        return owners, block * np.array(self._weights)[owners] + self._turns[place]

    def numbers(self, source: int, counts: Integers) -> Integers:
        """Where a source's rows stand, by how many of them stand before: the other way round."""
        block, turn = np.divmod(counts, self._weights[source])
        found: Integers = block * len(self._owners) + self._slots[source][turn]
        return found

    def as_rows(self, task: Task, seed: int, float_dtype: torch.dtype) -> Rows:
        return MixRows(self, task, seed, float_dtype)

    def order(self, seed: int) -> Order:
        return MixOrder(self, seed)

    def identity(self, apart: bool = False) -> dict[str, Any]:
        parts = [identity(source, apart) for source in self.sources]
        heads = [part["head"] for part in parts]
        return {
            "rows": len(self),
            "columns": parts[0]["columns"],
            "format": f"samestep.Mix of {' : '.join(map(str, self._weights))}",
            "checksum": _digest([part["checksum"] for part in parts]),
            "head": _digest(heads) if all(heads) else "",
            "whole": False,
            "fingerprint": "",
            "parts": parts,
            "note": "; ".join(part["note"] for part in parts if part.get("note")),
        }


class MixOrder(Order):
    """Each source's rows at the places that are its own, in the source's own order."""

    def __init__(self, mixture: Mix, seed: int) -> None:
        super().__init__(len(mixture), seed)
        self._mixture = mixture
        self._orders = [order_of(source, mix(seed, _MIXING, number)) for number, source in enumerate(mixture.sources)]

    def rows(self, epoch: int, start: int, stop: int) -> Integers:
        stop = min(stop, self.num_rows)
        positions = np.arange(epoch * self.num_rows + start, epoch * self.num_rows + stop)
        owners, counts = self._mixture.counts(positions)
        numbers = np.empty_like(positions)
        for source in np.unique(owners).tolist():
            places = np.flatnonzero(owners == source)
            numbers[places] = self._mixture.numbers(source, self._shuffled(source, int(counts[places[0]]), len(places)))
        return numbers

    def _shuffled(self, source: int, count: int, number: int) -> Integers:
        """Which of its rows a source gives from its `count`-th on, counted on through its epochs."""
        order, parts, end = self._orders[source], [], count + number
        while count < end:
            epoch, start = divmod(count, order.num_rows)
            stop = min(order.num_rows, start + end - count)
            parts.append(epoch * order.num_rows + order.rows(epoch, start, stop))
            count += stop - start
        return np.concatenate(parts)


class MixRows(Rows):
    """Micro-batches of a mixture: each source's rows as it gives them alone, put in their places."""

    def __init__(self, mixture: Mix, task: Task, seed: int, float_dtype: torch.dtype) -> None:
        super().__init__(task, seed, float_dtype, len(mixture))
        self._mixture = mixture
        self._parts = [make_rows(source, task, seed, float_dtype) for source in mixture.sources]
        self._one_by_one = task.overrides("transform") or task.overrides("collate")
        self.may_draw = self._one_by_one or any(part.may_draw for part in self._parts)
        self._keep_float64 = set().union(*(part._keep_float64 for part in self._parts))

    def read(self, rows: Integers, epoch: int) -> Batch:
        if self._one_by_one:
            return super().read(rows, epoch)
        found = [(source, places, self._parts[source].read(own, epoch)) for source, places, own in self._mixture.split(rows)]
        first, _, columns = found[0]
        for source, _, others in found[1:]:
            _refuse_unlike(first, columns, source, others)
        batch = Columns()
        for name, tensor in columns.items():
            dtype = functools.reduce(torch.promote_types, (part[name].dtype for _, _, part in found))
            batch[name] = torch.empty((len(rows), *tensor.shape[1:]), dtype=dtype)
            for _, places, part in found:
                batch[name][torch.from_numpy(places)] = part[name].to(dtype)
        return batch

    def _found(self, rows: Integers) -> list[Any]:
        found: list[Any] = [None] * len(rows)
        for source, places, own in self._mixture.split(rows):
            for place, row in zip(places.tolist(), self._parts[source]._found(own), strict=True):
                found[place] = row
        return found


def _refuse_unlike(first: int, columns: Batch, source: int, others: Batch) -> None:
    one, other = (f"source {number + 1}" for number in (first, source))
    if columns.keys() != others.keys():
        raise UsageError(f"data: samestep.Mix: {one} has the columns {', '.join(columns)}, and {other} has "
                         f"{', '.join(others)}; write the same for all, or a transform() that makes them so")  # fmt: skip
    for name, tensor in columns.items():
        if tensor.shape[1:] != others[name].shape[1:]:
            raise UsageError(f"data: samestep.Mix: column {name} has the shape {tuple(tensor.shape[1:])} in {one} and "
                             f"{tuple(others[name].shape[1:])} in {other}; write a collate() that pads them")  # fmt: skip


def _refuse_what_is_none(source: Any) -> None:
    if isinstance(source, Mix):
        raise UsageError("data: samestep.Mix: found a Mix in a Mix; write its sources, each with its share of the weight")
    if isinstance(source, (str, bytes, Mapping)) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise UsageError(f"data: samestep.Mix: found {type(source).__name__}; write a datasets.Dataset, samestep.Parquet or "
                         "whatever gives a row by its number")  # fmt: skip
    if not len(source):
        raise UsageError("data: samestep.Mix: found a source without rows; leave it out")


def _whole(weights: list[Any]) -> list[int]:
    """Weights as the smallest whole numbers of the same ratios; floats are what they are written as: 0.7 is 7/10."""
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError:
        exact = [Fraction(0)]
    if min(exact) <= 0:
        raise UsageError(f"data: samestep.Mix: found the weights {weights}; write a number above 0 for each source")
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    whole = [weight // math.gcd(*whole) for weight in whole]
    if sum(whole) > _LARGEST_BLOCK:
        raise UsageError(f"data: samestep.Mix: the weights {weights} have no ratio of small whole numbers; write such, like "
                         "1 and 2 for thirds")  # fmt: skip
    return whole


def _digest(words: list[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\0".join(words).encode())

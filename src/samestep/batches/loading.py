"""The micro-batches of a step: which rows, read by whom, on the device ahead of their use."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from samestep.errors import SamestepError
from samestep.randomness.order import Integers, Order
from samestep.randomness.seeding import seed_all
from samestep.sources import Rows
from samestep.sources.reading import LOADING, begin_worker
from samestep.task import Batch, Columns

_BURST_BYTES = 1 << 20  # of micro-batches that are read at once


@dataclass
class MicroBatch:
    """The samples of one forward pass: `index` in its step, how many rows count, and the tensors on the device."""

    index: int
    num_rows: int
    batch: Batch


@dataclass(frozen=True)
class Plan:
    """Which rows stand where: pure arithmetic on (step, micro-batch), the same on every rank.

    Steps count from 0 here. At an epoch's end a step may have fewer rows; a micro-batch without any runs on full-size
    rows from the epoch's start, and counts for nothing.
    """

    order: Order
    global_batch_size: int
    micro_batch_size: int
    drop_last: bool

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.order.num_rows, self.global_batch_size)
        return full if self.drop_last or not rest else full + 1

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def num_rows(self, step: int, index: int) -> int:
        """How many rows of micro-batch `index` of a step count."""
        left = self.order.num_rows - self._position(step, index)
        if index * self.micro_batch_size >= self.global_batch_size:  # computed for the others that wait, and counts for nothing
            return 0
        return max(0, min(self.micro_batch_size, left))

    def counted(self, step: int) -> int:
        """How many of a step's micro-batches hold rows that count."""
        return -(-self.counted_rows(step) // self.micro_batch_size)

    def counted_rows(self, step: int) -> int:
        """How many rows of a step count: a global batch, but for an epoch's last."""
        return min(self.order.num_rows - self._position(step, 0), self.global_batch_size)

    def rows(self, step: int, index: int) -> Integers:
        epoch, start = self.epoch(step), self._position(step, index)
        stop = min(start + self.micro_batch_size, self.order.num_rows)
        if start < stop and index * self.micro_batch_size < self.global_batch_size:
            return self.order.rows(epoch, start, stop)
        return self.order.rows(epoch, 0, min(self.micro_batch_size, self.order.num_rows))

    def _position(self, step: int, index: int) -> int:
        return step % self.steps_per_epoch * self.global_batch_size + index * self.micro_batch_size


class _Reader(Dataset[Batch]):
    """Reads micro-batch `index` of a step; a pure function of the two, in this process or in a loader's."""

    def __init__(self, rows: Rows, plan: Plan, seed: int) -> None:
        self._rows, self._plan, self._seed = rows, plan, seed

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        step, index = place
        if self._rows.may_draw:  # a transform that draws from a global generator draws the same anywhere
            seed_all(self._seed, step, index, LOADING)
        return self._rows.read(self._plan.rows(step, index), self._plan.epoch(step))


def _read_here(reader: _Reader, places: Iterable[tuple[int, int]], most: int) -> Iterator[Batch]:
    """Up to `most` micro-batches of a step at a time, where they are small: what a forward and backward left in the caches is
    nothing of ours, and the first read after them takes four times as long as the next."""
    if most == 1:
        yield from map(reader.__getitem__, places)
        return
    at_a_time = 1  # until the first tells their size
    for _, of_step in itertools.groupby(places, operator.itemgetter(0)):
        while burst := [reader[place] for place in itertools.islice(of_step, at_a_time)]:
            num_bytes = sum([tensor.nbytes for tensor in burst[-1].values()])
            at_a_time = max(1, min(most, _BURST_BYTES // max(num_bytes, 1)))
            yield from burst


class _Places(Sampler[tuple[int, int]]):
    def __init__(self, share: Sequence[int], first_step: int, last_step: int) -> None:
        self._share, self._steps = share, range(first_step, last_step)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, index) for step in self._steps for index in self._share)


class _Told(Dataset["Batch | SamestepError"]):
    """A loader process's: an error of ours comes back as it is, where torch would put a traceback into its words."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    def __getitem__(self, place: tuple[int, int]) -> Batch | SamestepError:
        try:
            return self._reader[place]
        except SamestepError as error:
            return error


def _raised(found: Batch | SamestepError) -> Batch:
    if isinstance(found, SamestepError):
        raise found
    return found


class Batches:
    """This rank's micro-batches, step after step.

    Args:
        share: the indices of this rank's micro-batches in each step.
        first_step, last_step: steps to read, counted from 0, the last excluded.
        workers: loader processes; with 0 this process reads.
        facts: by which the rows are known again.
    """

    def __init__(
        self,
        rows: Rows,
        plan: Plan,
        share: Sequence[int],
        device: torch.device,
        seed: int,
        first_step: int,
        last_step: int,
        workers: int = 0,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan, self.facts, self._share, self._device = plan, facts or {}, share, device
        self._reader = reader = _Reader(rows, plan, seed)
        places = _Places(share, first_step, last_step)
        self._loader: Iterable[Batch | SamestepError] = (
            DataLoader(
                _Told(reader),
                sampler=places,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=4,
                generator=torch.Generator(),  # or iter() would draw from the global one
                worker_init_fn=begin_worker,
            )
            if workers
            else _read_here(reader, places, 1 if rows.may_draw else len(share))
        )
        self._source: Iterator[Batch] | None = None
        self._ahead: Batch | None = None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self) -> None:
        """Begin the loader processes, before anything is read here: they would share the files that a source opens."""
        if self._source is None:
            self._source = map(_raised, self._loader)

    def step(self, step: int) -> Iterator[MicroBatch]:
        """This rank's share of a step, in order. On a GPU the next one is copied while this one is computed."""
        self.start()
        assert self._source is not None
        for index in self._share:
            num_rows = self.plan.num_rows(step, index)
            if self._copies is None:
                yield MicroBatch(index, num_rows, next(self._source))
                continue
            batch = self._ahead if self._ahead is not None else self._copied(next(self._source), self._copies)
            torch.cuda.current_stream(self._device).wait_stream(self._copies)
            for tensor in batch.values():
                tensor.record_stream(torch.cuda.current_stream(self._device))
            yield MicroBatch(index, num_rows, batch)
            following = next(self._source, None)
            self._ahead = self._copied(following, self._copies) if following is not None else None

    def close(self) -> None:
        """End the loader processes, which clean up after themselves."""
        self._source = None

    def again(self, step: int, index: int) -> Batch:
        """Any micro-batch of any step, on the device, beside the sequence of `step`."""
        return on_device(self._reader[step, index], self._device)

    def _copied(self, batch: Batch, stream: torch.cuda.Stream) -> Batch:
        """Start copying from pinned memory, beside whatever the device computes."""
        with torch.cuda.stream(stream):
            return on_device(batch, self._device)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; the copy to a GPU starts from pinned memory, and nobody waits for it here."""
    if device.type == "cpu":
        return batch
    return Columns((name, tensor.pin_memory().to(device, non_blocking=True)) for name, tensor in batch.items())

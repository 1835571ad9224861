"""Buffers that a forward changes: each micro-batch starts from the step's own values, and their results become one.

Running statistics (of BatchNorm and its kin) are averaged in the sum's tree. Of any other buffer every micro-batch must make
the same: a counter of steps, or spectral norm's vectors. One of which each makes something else has no meaning that is the
same at every world size, and is an error that names it, unless a step is one micro-batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from samestep.errors import UsageError
from samestep.exact.buffers import Buffer, Moving
from samestep.exact.scalars import Scalar, is_finite
from samestep.exact.totals import as_bits, gather
from samestep.exact.tree import Block, Sum, blocks_of

_INT64 = torch.iinfo(torch.int64)


class Statistics:
    """The persistent buffers of one model over the V micro-batches of a step.

    Args:
        shares: each rank's micro-batches of a step; the average follows the gradients' tree.
        micro_batches, leaves: V and M as in `OrderedSum`.
    """

    def __init__(self, model: torch.nn.Module, shares: Sequence[Sequence[int]], micro_batches: int, leaves: int) -> None:
        self._leaf_size, self._num_leaves = micro_batches // leaves, leaves
        own = [[index // self._leaf_size for index in share[:: self._leaf_size]] for share in shares]
        self._plan = [blocks_of(leaf for leaf in share if leaf < leaves) for share in own]
        averaged: list[Buffer] = []
        counters: list[Buffer] = []
        self._fixed: list[Buffer] = []
        for path, module in model.named_modules():
            for name, tensor in module._buffers.items():
                if tensor is None or name in module._non_persistent_buffers_set or tensor.layout != torch.strided:
                    continue
                buffer = Buffer(module, name, f"{path}.{name}".lstrip("."))
                whole = tensor.is_floating_point() or tensor.is_complex()
                (self._fixed if not buffer.is_norms else averaged if whole else counters).append(buffer)
        self._device = next((buffer.now.device for buffer in (*averaged, *counters, *self._fixed)), torch.device("cpu"))
        self._averaged, self._counters = Moving(averaged, self._device), Moving(counters, self._device)
        self._moves = bool(averaged or counters)
        self._sum: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        self._leaf: torch.Tensor | None = None
        self._changed: torch.Tensor | None = None  # which elements of the running statistics any micro-batch has changed
        self._largest: torch.Tensor | None = None  # of the counters and the fixed buffers' prints
        self._smallest: torch.Tensor | None = None
        self.exchanges = micro_batches > 1 and (self._moves or bool(self._fixed))  # else a step has one micro-batch's own
        self._steps = 0
        self._is_begun = False

    def roll_back(self) -> None:
        """Give up the step that was begun, if one was: the buffers are as the step before left them."""
        if self._is_begun:
            self._reset()

    def is_between_steps(self) -> bool:
        """Whether the buffers are as the last finished step left them; on a GPU it is asked for after a fault alone."""
        if not self._is_begun:
            return True
        pairs = [(found.row(), found.start) for found in (self._averaged, self._counters)]
        pairs += [(buffer.now, buffer.start) for buffer in self._touched]  # others may be after_step's, written without a trace
        return all(torch.equal(as_bits(now), as_bits(start)) for now, start in pairs)

    def _reset(self) -> None:
        self._averaged.reset()
        self._counters.reset()
        for buffer in self._touched:
            buffer.reset()

    @property
    def _touched(self) -> list[Buffer]:
        return [buffer for buffer in self._fixed if buffer.is_touched]

    def begin(self) -> None:
        """Start a step: remember what every micro-batch starts from."""
        self._is_begun = True
        self._steps += 1
        for buffer in self._fixed if self._steps & (self._steps - 1) == 0 else ():
            buffer.is_suspect = True
        if self._moves:
            self._averaged.begin()
            self._counters.begin()
        touched = self._touched
        for buffer in touched:
            buffer.begin()
        if touched or self._steps == 1:
            self._start_prints = _prints([buffer.start for buffer in self._fixed], self._device)
        self._changed = self._largest = self._smallest = None

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A forward inside starts from the step's own values, between two steps from what stands there; it leaves no trace."""
        moving = [*self._averaged.buffers, *self._counters.buffers]
        found = {buffer: (buffer.now, buffer.now.clone()) for buffer in (*moving, *self._touched)}
        objects = {buffer: buffer.now for buffer in self._fixed}
        if self._is_begun:
            self._reset()
        try:
            yield
        finally:
            for buffer in {**found, **dict.fromkeys(self._touched)}:
                tensor, value = found.get(buffer) or (objects[buffer], buffer.start)
                buffer.module._buffers[buffer.name] = tensor
                tensor.copy_(value)

    def begin_micro_batch(self) -> None:
        """Before each forward: it starts where the step did."""
        if self.exchanges:
            self._reset()

    def end_micro_batch(self, index: int, counts: bool) -> None:
        """After the forward of micro-batch `index`; one without rows of its own does not count."""
        if not self.exchanges:
            return
        row = self._averaged.row()
        made = torch.cat([self._counters.row().long(), self._prints_now()])
        largest = smallest = made
        if counts:
            changed = row != self._averaged.start
            self._changed = changed if self._changed is None else self._changed.logical_or_(changed)
        else:  # of the other buffers it must have made the same all the same: on its rank they hold what it left
            row.zero_()
            largest, smallest = made.clone(), made.clone()
            largest[: len(self._counters)] = _INT64.min
            smallest[: len(self._counters)] = _INT64.max
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        self._smallest = smallest if self._smallest is None else torch.minimum(self._smallest, smallest)
        self._leaf = row if self._leaf is None else self._leaf.add_(row)
        if (index + 1) % self._leaf_size == 0:
            if index // self._leaf_size < self._num_leaves:
                self._sum.push(Block(index // self._leaf_size, 0), self._leaf)
            self._leaf = None

    def _prints_now(self) -> torch.Tensor:
        if not any(buffer.is_touched for buffer in self._fixed):
            return self._start_prints
        return _prints([buffer.now for buffer in self._fixed], self._device)

    def average(self, counted: int) -> None:
        """Once all micro-batches are through: average over the `counted` of them that held rows, where ranks exchange any."""
        mine = torch.stack([values for _, values in self._sum.blocks])
        self._sum.blocks.clear()
        most = max(len(blocks) for blocks in self._plan)
        if len(mine) < most:
            mine = torch.cat([mine, mine.new_zeros(most - len(mine), mine.shape[1])])
        assert self._largest is not None
        assert self._smallest is not None
        start = self._averaged.start
        changed = torch.zeros_like(start, dtype=torch.bool) if self._changed is None else self._changed
        largest, smallest, sums, flags = self._everyones(self._largest, self._smallest, mine, changed)  # the widest first
        whole: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        everyones = [
            pair for blocks, values in zip(self._plan, sums, strict=True) for pair in zip(blocks, values, strict=False)
        ]
        for block, value in sorted(everyones, key=lambda pair: pair[0].start):
            whole.push(block, value)
        self._average = whole.total().div_(counted)
        self._anywhere = flags.any(dim=0)
        self._largest = largest.amax(dim=0)
        if not self._largest.is_cuda or self._steps & (self._steps - 1) == 0:  # to ask a GPU is to wait for it
            self._refuse_disagreement(self._largest, smallest.amin(dim=0))

    def _everyones(self, *parts: torch.Tensor) -> list[torch.Tensor]:
        """Each part of every rank's, stacked in rank order, by one message."""
        if len(self._plan) == 1:
            return [part[None] for part in parts]
        everyone = gather(torch.cat([part.reshape(-1).view(torch.uint8) for part in parts]))
        pieces = everyone.split([part.nbytes for part in parts], dim=1)
        return [
            piece.contiguous().view(part.dtype).view(len(everyone), *part.shape)
            for piece, part in zip(pieces, parts, strict=True)
        ]

    def _refuse_disagreement(self, largest: torch.Tensor, smallest: torch.Tensor) -> None:
        """Raise UsageError for a buffer that is not a norm's: some micro-batches may pass a BatchNorm by."""
        of_fixed = slice(len(self._counters), None)
        if self._fixed and not torch.equal(largest[of_fixed], smallest[of_fixed]):
            unlike = (largest[of_fixed] != smallest[of_fixed]).tolist()
            raise _disagreement(self._fixed[unlike.index(True)])

    def finish(self, loss: Scalar) -> None:
        """End a step: the buffers hold what it made of them, or what they held before if its loss is not finite."""
        touched = self._touched
        if self._moves or touched:
            self._lay(torch.as_tensor(is_finite(loss), device=self._device), touched)
        self._is_begun = False

    def _lay(self, arrived: torch.Tensor, touched: list[Buffer]) -> None:
        if self.exchanges:
            assert self._largest is not None
            self._averaged.lay(self._average, arrived & self._anywhere)  # a number that every forward leaves alone stays
            self._counters.lay(self._largest[: len(self._counters)], arrived)
        elif self._moves:
            self._averaged.lay(self._averaged.row(), arrived)
            self._counters.lay(self._counters.row(), arrived)
        for buffer in touched:
            buffer.lay(arrived)


def _prints(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """For each tensor the sum over its bits, each weighted by its place, modulo 2**64: (len(tensors),) of int64."""
    found = torch.zeros(len(tensors), dtype=torch.int64, device=device)
    for place, tensor in enumerate(tensors):
        bits = as_bits(tensor).reshape(-1).long()
        found[place] = (bits * torch.arange(1, 2 * bits.numel() + 1, 2, device=bits.device)).sum()
    return found


def _disagreement(buffer: Buffer) -> UsageError:
    return UsageError(
        f"task: the forward changed the buffer {buffer.path}, and each micro-batch made another value of it: which of them "
        "stays would depend on how a step is split; change it in after_step, or keep it out of the buffers"
    )

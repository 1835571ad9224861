"""Buffers that a forward changes: each micro-batch starts from the step's own values, and their results become one.

Running statistics (of BatchNorm and its kin) are averaged in the sum's tree. Of any other buffer every micro-batch must make
the same: a counter of steps, or spectral norm's vectors. One of which each makes something else has no meaning that is the
same at every world size, and is an error that names it, unless a step is one micro-batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch.nn.modules.batchnorm import _NormBase

from samestep.errors import UsageError
from samestep.exact.totals import as_bits, gather
from samestep.exact.tree import Block, Sum, blocks_of

_INT64 = torch.iinfo(torch.int64)


class _Buffer:
    """One buffer by its place in the model: a forward may write into it or put another tensor there."""

    def __init__(self, module: torch.nn.Module, name: str, path: str) -> None:
        self.module, self.name, self.path = module, name, path
        self.is_norms = isinstance(module, _NormBase)
        self.start = self.now.clone()
        self.is_suspect = True  # `.data` and torch's own batch_norm write without a trace, which a look at the bits shows
        self._seen = (self.now, self.now._version)

    @property
    def now(self) -> torch.Tensor:
        buffer = self.module._buffers.get(self.name)
        if buffer is None:
            raise UsageError(f"task: the forward removed {self.path} of the model; do that in model()")
        return buffer

    @property
    def is_touched(self) -> bool:
        """Whether anybody may have written here since `begin`."""
        tensor, version = self._seen
        return self.is_suspect or self.module._buffers.get(self.name) is not tensor or tensor._version != version

    def begin(self) -> None:
        """A step starts with what stands here."""
        self.start = self.start.copy_(self.now) if self.start.shape == self.now.shape else self.now.clone()
        self._seen = (self.now, self.now._version)

    def reset(self) -> None:
        """The next micro-batch starts where the step did."""
        buffer = self.module._buffers.get(self.name)
        if buffer is None or buffer.shape != self.start.shape:
            self.module._buffers[self.name] = self.start.clone()
        else:
            buffer.copy_(self.start)
        self._seen = (self.now, self.now._version)


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
        self._averaged: list[_Buffer] = []
        self._counters: list[_Buffer] = []
        self._fixed: list[_Buffer] = []
        for path, module in model.named_modules():
            for name, tensor in module._buffers.items():
                if tensor is None or name in module._non_persistent_buffers_set or tensor.layout != torch.strided:
                    continue
                buffer = _Buffer(module, name, f"{path}.{name}".lstrip("."))
                whole = tensor.is_floating_point() or tensor.is_complex()
                (self._fixed if not buffer.is_norms else self._averaged if whole else self._counters).append(buffer)
        self._moving = [*self._averaged, *self._counters]
        self._sizes = [buffer.now.numel() for buffer in self._counters] + [1] * len(self._fixed)
        self._device = next((buffer.now.device for buffer in (*self._moving, *self._fixed)), torch.device("cpu"))
        self._sum: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        self._leaf: torch.Tensor | None = None
        self._changed: torch.Tensor | None = None  # which elements of the running statistics any micro-batch has changed
        self._extremes: torch.Tensor | None = None  # of the counters and the fixed buffers' prints, (2, elements)
        self.exchanges = micro_batches > 1 and bool(self._moving or self._fixed)  # else a step has one micro-batch's own
        self._steps = 0
        self._is_begun = False

    def _row(self) -> torch.Tensor:
        """The running statistics as they are now, one after the other."""
        values = [buffer.now.reshape(-1) for buffer in self._averaged]
        return torch.cat(values) if values else torch.zeros(0, device=self._device)

    def roll_back(self) -> None:
        """Give up the step that was begun, if one was: the buffers are as the step before left them."""
        if self._is_begun:
            for buffer in self._touched:
                buffer.reset()

    @property
    def _touched(self) -> list[_Buffer]:
        return [*self._moving, *(buffer for buffer in self._fixed if buffer.is_touched)]

    def begin(self) -> None:
        """Start a step: remember what every micro-batch starts from."""
        self._is_begun = True
        self._steps += 1
        for buffer in self._fixed if self._steps & (self._steps - 1) == 0 else ():
            buffer.is_suspect = True
        touched = self._touched
        for buffer in touched:
            buffer.begin()
        if len(touched) > len(self._moving) or self._steps == 1:
            self._start_prints = _prints([buffer.start for buffer in self._fixed], self._device)
        if self.exchanges:
            self._start = self._row()
            self._changed = self._extremes = None

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A forward inside starts from the step's own values, between two steps from what stands there; it leaves no trace."""
        found = {buffer: (buffer.now, buffer.now.clone()) for buffer in self._touched}
        objects = {buffer: buffer.now for buffer in self._fixed}
        for buffer in found if self._is_begun else ():
            buffer.reset()
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
            for buffer in self._touched:
                buffer.reset()

    def end_micro_batch(self, index: int, counts: bool) -> None:
        """After the forward of micro-batch `index`; one without rows of its own does not count."""
        if not self.exchanges:
            return
        row = self._row()
        made = torch.cat([buffer.now.reshape(-1).long() for buffer in self._counters] + [self._prints_now()])
        extremes = torch.stack([made, made])
        if counts:
            changed = row != self._start
            self._changed = changed if self._changed is None else self._changed.logical_or_(changed)
        else:  # of the other buffers it must have made the same all the same: on its rank they hold what it left
            row.zero_()
            extremes[:, : len(made) - len(self._fixed)] = torch.tensor([[_INT64.min], [_INT64.max]], device=made.device)
        if self._extremes is None:
            self._extremes = extremes
        else:
            self._extremes[0] = torch.maximum(self._extremes[0], extremes[0])
            self._extremes[1] = torch.minimum(self._extremes[1], extremes[1])
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
        assert self._extremes is not None
        changed = torch.zeros_like(self._start, dtype=torch.bool) if self._changed is None else self._changed
        counters, sums, flags = self._everyones(self._extremes, mine, changed)  # the widest first: each part is aligned
        whole: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        everyones = [
            pair for blocks, values in zip(self._plan, sums, strict=True) for pair in zip(blocks, values, strict=False)
        ]
        for block, value in sorted(everyones, key=lambda pair: pair[0].start):
            whole.push(block, value)
        self._average = whole.total().div_(counted)
        self._anywhere = flags.any(dim=0)
        self._largest = counters[:, 0].amax(dim=0)
        if not self._largest.is_cuda or self._steps & (self._steps - 1) == 0:  # to ask a GPU is to wait for it
            self._refuse_disagreement(counters[:, 1].amin(dim=0))

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

    def _refuse_disagreement(self, smallest: torch.Tensor) -> None:
        if torch.equal(self._largest, smallest):
            return
        buffers = (*self._counters, *self._fixed)
        pairs = zip(buffers, self._largest.split(self._sizes), smallest.split(self._sizes), strict=True)
        for buffer, largest, least in pairs:
            if not buffer.is_norms and not torch.equal(largest, least):  # some micro-batches may pass a BatchNorm by
                raise _disagreement(buffer)

    def finish(self, arrived: torch.Tensor | bool) -> None:
        """End a step: the buffers hold what it made of them, or what they held before if `arrived` is false."""
        touched = self._touched
        if touched:
            arrived = torch.as_tensor(arrived, device=self._device)
            self._lay(arrived, touched)
        self._is_begun = False

    def _lay(self, arrived: torch.Tensor, touched: list[_Buffer]) -> None:
        if self.exchanges:
            sizes = [buffer.now.numel() for buffer in self._averaged]
            pairs = zip(self._average.split(sizes), self._anywhere.split(sizes), strict=True)
            for buffer, (value, anywhere) in zip(self._averaged, pairs, strict=True):
                counts = arrived & anywhere.any()  # a buffer that every forward leaves alone is left alone
                buffer.now.copy_(torch.where(counts, value.view_as(buffer.now), buffer.start))
            for buffer, value in zip(self._counters, self._largest.split(self._sizes), strict=False):
                buffer.now.copy_(torch.where(arrived, value.view_as(buffer.now).to(buffer.now.dtype), buffer.start))
        for buffer in touched:
            if (buffer in self._moving and self.exchanges) or buffer.now.shape != buffer.start.shape:
                continue
            if buffer.is_suspect and torch.equal(buffer.now, buffer.start):
                buffer.is_suspect = False  # until the next look
            else:
                buffer.now.copy_(torch.where(arrived, buffer.now, buffer.start))


def _prints(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """For each tensor the sum over its bits, each weighted by its place, modulo 2**64: (len(tensors),) of int64."""
    found = torch.zeros(len(tensors), dtype=torch.int64, device=device)
    for place, tensor in enumerate(tensors):
        bits = as_bits(tensor).reshape(-1).long()
        found[place] = (bits * torch.arange(1, 2 * bits.numel() + 1, 2, device=bits.device)).sum()
    return found


def _disagreement(buffer: _Buffer) -> UsageError:
    return UsageError(
        f"task: the forward changed the buffer {buffer.path}, and each micro-batch made another value of it: which of them "
        "stays would depend on how a step is split; change it in after_step, or keep it out of the buffers"
    )

"""Buffers that a forward changes: each micro-batch starts from the step's own values, and their results are averaged.

That suits running statistics (BatchNorm). Integer buffers must come out the same from every micro-batch. Any other float
buffer that changes has no meaning that is the same at every world size, and is an error that names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from samestep.errors import TrainingError
from samestep.exact.totals import gather
from samestep.exact.tree import Block, Sum, blocks_of, cuts


class _Buffer:
    """One buffer by its place in the model: a forward may write into it or put another tensor there."""

    def __init__(self, module: torch.nn.Module, name: str, path: str) -> None:
        self.module, self.name, self.path = module, name, path
        self.start = self.now.clone()

    @property
    def now(self) -> torch.Tensor:
        buffer = self.module._buffers[self.name]
        assert buffer is not None
        return buffer


class Statistics:
    """The buffers of one model over the V micro-batches of a step; nothing is done about them when V is 1.

    Args:
        model: not wrapped.
        micro_batches, leaves: V and M as in `OrderedSum`: the average follows the same tree.
    """

    def __init__(self, model: torch.nn.Module, micro_batches: int, leaves: int, world_size: int) -> None:
        self._leaf_size = micro_batches // leaves
        share = cuts(leaves, world_size)
        self._plan = [blocks_of(share[r], share[r + 1]) for r in range(world_size)]
        self._averaged: list[_Buffer] = []
        self._fixed: list[_Buffer] = []
        self._counters: list[_Buffer] = []
        for path, module in model.named_modules() if micro_batches > 1 else ():
            for name, buffer in module._buffers.items():
                if buffer is None:
                    continue
                floating = buffer.is_floating_point()
                kind = self._averaged if floating and isinstance(module, _BatchNorm) else self._fixed
                (kind if floating else self._counters).append(_Buffer(module, name, f"{path}.{name}".lstrip(".")))
        self._sum: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        self._leaf: torch.Tensor | None = None
        self._average: torch.Tensor | None = None
        self._is_begun = False

    def roll_back(self) -> None:
        """Give up the step that was begun, if one was: the buffers are as the step before left them."""
        if self._is_begun:
            for buffer in (*self._averaged, *self._counters):
                buffer.now.copy_(buffer.start)

    def begin(self) -> None:
        """Start a step: remember what every micro-batch starts from."""
        self._is_begun = True
        for buffer in (*self._averaged, *self._counters):
            buffer.start.copy_(buffer.now)

    @contextlib.contextmanager
    def micro_batch(self, index: int, counts: bool) -> Iterator[None]:
        """The forward of micro-batch `index` belongs inside; one without rows of its own does not count."""
        for buffer in (*self._averaged, *self._counters):
            buffer.now.copy_(buffer.start)
        before = [(buffer.now, buffer.now._version) for buffer in self._fixed]
        yield
        for buffer, (tensor, version) in zip(self._fixed, before, strict=True):
            if (buffer.now is not tensor or buffer.now._version != version) and not torch.equal(buffer.now, buffer.start):
                raise TrainingError(
                    f"the forward changed the buffer {buffer.path}, which is no running statistic of a BatchNorm: its value "
                    "would depend on how a step is split; keep it out of the buffers, or write reduce: fast"
                )
        if self._averaged:
            self._add(index, counts)

    def _add(self, index: int, counts: bool) -> None:
        row = torch.cat([buffer.now.reshape(-1) for buffer in self._averaged])
        if not counts:
            row.zero_()
        self._leaf = row if self._leaf is None else self._leaf.add_(row)
        if (index + 1) % self._leaf_size == 0:
            self._sum.push(Block(index // self._leaf_size, 0), self._leaf)
            self._leaf = None

    def average(self, counted: int) -> None:
        """Once all micro-batches are through: average over the `counted` of them that held rows, on every rank."""
        if not self._averaged:
            return
        mine = torch.stack([values for _, values in self._sum.blocks])
        self._sum.blocks.clear()
        most = max(len(blocks) for blocks in self._plan)
        if len(mine) < most:
            mine = torch.cat([mine, mine.new_zeros(most - len(mine), mine.shape[1])])
        whole: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        for blocks, values in zip(self._plan, gather(mine), strict=True):
            for block, value in zip(blocks, values, strict=False):
                whole.push(block, value)
        self._average = whole.total().div_(counted)

    def finish(self, arrived: torch.Tensor) -> None:
        """End a step: the buffers hold the average, or what they held before if `arrived`, a boolean scalar, is false."""
        if self._average is not None:
            sizes = [buffer.now.numel() for buffer in self._averaged]
            for buffer, value in zip(self._averaged, self._average.split(sizes), strict=True):
                buffer.now.copy_(torch.where(arrived, value.view_as(buffer.now), buffer.start))
            self._average = None
        self._is_begun = False

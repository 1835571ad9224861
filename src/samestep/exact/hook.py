"""The rest of the tree across ranks, bucket by bucket, as a DDP communication hook that overlaps with backward.

Each bucket goes through an all-to-all of this rank's blocks, the rest of the tree over the piece that this rank then owns,
and an all-gather of the summed pieces: the bytes of a ring all-reduce when every rank holds one block. The backend only
moves bytes and never adds a float, so its algorithm and topology cannot change a bit.

Every rank issues the same collectives in the same order: bucket i's hook starts its own all-to-all, then finishes bucket
i - 1's and starts its all-gather; the last bucket drains. (Starting an all-gather from a completion callback deadlocks.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from samestep.exact.totals import all_gather
from samestep.exact.tree import Block, Sum, blocks_of, cuts

Future = torch.futures.Future[torch.Tensor]
Grads = list[torch.Tensor | None]


def memory_order_views(flat: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each parameter's part of a flat bucket, strided as the parameter is: DDP lays a bucket out in memory order.

    (A reshape would transpose `channels_last` weights, and `bucket.gradients()` has been seen to.)
    """
    views, offset = [], flat.storage_offset()
    for parameter in parameters:
        dense = _is_dense(parameter)
        stride = parameter.stride() if dense else torch.empty(parameter.shape, device="meta").stride()
        views.append(flat.as_strided(parameter.shape, stride, offset))
        offset += parameter.numel()
    return views


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


@dataclass
class _Pending:
    """A bucket between its all-to-all and its all-gather, or after it."""

    work: dist.Work
    buffer: torch.Tensor
    flat: torch.Tensor
    future: Future


class BucketExchange:
    """The hook of one model. `take_blocks` gives, for a bucket, this rank's finished blocks before the last leaf."""

    def __init__(
        self,
        num_leaves: int,
        rank: int,
        world_size: int,
        device: torch.device,
        fold_last_leaf: Callable[[list[torch.Tensor], list[torch.Tensor]], list[tuple[Block, list[torch.Tensor]]]],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        share = cuts(num_leaves, world_size)
        self._plan = [blocks_of(share[r], share[r + 1]) for r in range(world_size)]
        self._rank, self._world_size, self._group = rank, world_size, group
        self._device = device
        self._fold_last_leaf = fold_last_leaf
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._summing: list[_Pending] = []
        self._gathering: list[_Pending] = []
        self._buffers: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}
        self.bytes_sent = 0  # to other ranks, since the start

    def __call__(self, bucket: Any) -> Future:
        with self._on_side_stream():
            return self._exchange(bucket)

    @contextlib.contextmanager
    def _on_side_stream(self):  # type: ignore[no-untyped-def]
        """On CUDA all of it runs beside backward: a wait for a peer on the compute stream would stall it."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def _exchange(self, bucket: Any) -> Future:
        flat = bucket.buffer()
        if self._stream is not None:
            flat.record_stream(self._stream)
        future: Future = torch.futures.Future(devices=[self._device] if self._stream is not None else [])
        send, piece = self._blocks_to_send(flat, bucket.parameters())
        mine = len(self._plan[self._rank])
        received = self._received(bucket.index(), sum(len(blocks) for blocks in self._plan) * piece, flat)
        work = dist.all_to_all_single(
            received,
            send,
            [len(blocks) * piece for blocks in self._plan],
            [mine * piece] * self._world_size,
            group=self._group,
            async_op=True,
        )
        self.bytes_sent += mine * piece * (self._world_size - 1) * flat.element_size()
        self._summing.append(_Pending(work, received, flat, future))
        if len(self._summing) > 1:
            self._sum_and_gather()
        if bucket.is_last():
            self._sum_and_gather()
            self._drain()
        return future

    def _received(self, index: int, size: int, flat: torch.Tensor) -> torch.Tensor:
        """A bucket's buffer for what arrives, kept from step to step: fresh pages cost as much as the sum itself.

        Its key is the layout, for DDP lays the buckets out anew after the first step.
        """
        key = (index, size, flat.dtype)
        if key not in self._buffers:
            self._buffers = {other: kept for other, kept in self._buffers.items() if other[0] != index}
            self._buffers[key] = torch.empty(size, dtype=flat.dtype, device=flat.device)
        return self._buffers[key]

    def _blocks_to_send(self, flat: torch.Tensor, parameters: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        """This rank's blocks of a bucket, cut into one piece for each rank: (world_size, blocks, piece), flattened.

        One block whose length divides goes out as it lies in the bucket, without a copy.
        """
        blocks = self._fold_last_leaf(parameters, memory_order_views(flat, parameters))
        num, piece = flat.numel(), -(-flat.numel() // self._world_size)
        if len(blocks) == 0 and num == piece * self._world_size:
            return flat, piece
        send = flat.new_zeros(self._world_size, len(blocks) + 1, piece)
        padded = flat.new_zeros(self._world_size * piece)
        for position, (_, values) in enumerate(blocks):
            torch._foreach_copy_(memory_order_views(padded, parameters), values)
            send[:, position] = padded.view(self._world_size, piece)
        padded[:num] = flat
        send[:, -1] = padded.view(self._world_size, piece)
        return send.view(-1), piece

    def _sum_and_gather(self) -> None:
        """Finish the oldest all-to-all: sum the rest of the tree over this rank's piece, and start its all-gather."""
        pending = self._summing.pop(0)
        pending.work.wait()
        blocks = [block for rank in self._plan for block in rank]
        counter: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        for block, values in zip(blocks, pending.buffer.view(len(blocks), -1), strict=True):
            counter.push(block, values)
        summed = counter.total()
        divides = summed.numel() * self._world_size == pending.flat.numel()
        whole = pending.flat if divides else summed.new_empty(summed.numel() * self._world_size)
        work = all_gather(whole, summed, group=self._group, async_op=True)
        self.bytes_sent += summed.numel() * (self._world_size - 1) * summed.element_size()
        self._gathering.append(_Pending(work, whole, pending.flat, pending.future))

    def _drain(self) -> None:
        for pending in self._gathering:
            pending.work.wait()
            if pending.buffer is not pending.flat:
                pending.flat.copy_(pending.buffer[: pending.flat.numel()])
            pending.future.set_result(pending.flat)
        self._gathering.clear()

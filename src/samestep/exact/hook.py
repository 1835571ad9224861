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
from typing import Any

import torch
import torch.distributed as dist

from samestep.exact.transfer import Route, Transfer, transfer

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


class BucketExchange:
    """The hook of one model.

    Args:
        fold_last_leaf: gives, for a bucket's parameters and their views in it, this rank's finished blocks that stay
            beside the last one, which it has folded into the bucket.
    """

    def __init__(
        self,
        num_leaves: int,
        rank: int,
        world_size: int,
        device: torch.device,
        fold_last_leaf: Callable[[list[torch.Tensor], list[torch.Tensor]], list[list[torch.Tensor]]],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.route = Route(num_leaves, rank, world_size, group)
        self._device = device
        self._fold_last_leaf = fold_last_leaf
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._under_way: list[tuple[Transfer, torch.Tensor, Future]] = []

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
        flat, parameters = bucket.buffer(), bucket.parameters()
        if self._stream is not None:
            flat.record_stream(self._stream)
        future: Future = torch.futures.Future(devices=[self._device] if self._stream is not None else [])
        blocks = self._fold_last_leaf(parameters, memory_order_views(flat, parameters))

        def writer(values: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
            return lambda whole: torch._foreach_copy_(memory_order_views(whole, parameters), values)

        sent = transfer(self.route, bucket.index(), flat, [writer(values) for values in blocks])
        if self._under_way:
            self._under_way[-1][0].sum_and_return()
        self._under_way.append((sent, flat, future))
        if bucket.is_last():
            sent.sum_and_return()
            for earlier, whole, done in self._under_way:
                earlier.finish()
                done.set_result(whole)
            self._under_way.clear()
        return future

"""Where a bucket's blocks are, and what carries them: the words that every way of sending has in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist

from samestep.exact.totals import make_channel
from samestep.exact.tree import Block, blocks_of, cuts
from samestep.runtime.shared_memory import Channel

_MOST_SHARED_BYTES = 1 << 26  # of a sum's channels together


@dataclass
class Route:
    """Who holds which blocks, and the buffers that stay from step to step."""

    num_leaves: int
    rank: int
    world_size: int
    group: dist.ProcessGroup | None
    plan: list[list[Block]] = field(init=False)  # each rank's blocks
    bytes_sent: int = 0  # to other ranks, since the start
    _channels: dict[tuple[int, int], Channel | None] = field(default_factory=dict)
    _buffers: dict[tuple[int, int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        share = cuts(self.num_leaves, self.world_size)
        self.plan = [blocks_of(range(start, stop)) for start, stop in itertools.pairwise(share)]

    def channel(self, index: int, num_bytes: int) -> Channel | None:
        """Bucket `index`'s messages of up to so many bytes, where all ranks share memory; all ask for it together."""
        if self.group is None:
            return None
        key = (index, num_bytes)
        if key not in self._channels:  # those of other layouts stay: what is frozen may change from step to step, and back
            shared = sum(size for (_, size), made in self._channels.items() if made is not None)
            fits = 2 * self.world_size * (shared + num_bytes) <= _MOST_SHARED_BYTES
            self._channels[key] = make_channel(self.group, num_bytes) if fits else None
        return self._channels[key]

    def buffer(self, index: int, size: int, like: torch.Tensor) -> torch.Tensor:
        """Bucket `index`'s buffer for what arrives: fresh pages cost as much as the sum itself.

        Its key is the layout, for DDP lays the buckets out anew after the first step.
        """
        key = (index, size, like.dtype)
        if key not in self._buffers:
            self._buffers = {other: kept for other, kept in self._buffers.items() if other[0] != index}
            self._buffers[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._buffers[key]


@dataclass
class Companion:
    """A few bytes of each rank's that travel with a bucket: one wait fewer, which is what a small model's step costs."""

    size: Callable[[], int]  # in bytes, the same on every rank
    make: Callable[[], torch.Tensor]  # (size,) of uint8
    take: Callable[[torch.Tensor], None]  # what all have made, (world_size, bytes), and maybe a few zeros after it


class Transfer(Protocol):
    """A bucket on its way. Made with its blocks sent off; every rank makes and moves its transfers in the same order."""

    def sum_and_return(self) -> None:
        """Sum the rest of the tree over this rank's piece, and send it to everyone."""

    def finish(self) -> None:
        """Wait until the bucket holds the whole sum."""

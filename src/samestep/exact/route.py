"""Where a bucket's blocks are, and what carries them: the words that every way of sending has in common."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from samestep.exact.nodes import Plan, nodes_of
from samestep.exact.totals import make_channel
from samestep.exact.tree import Block, blocks_of, cuts
from samestep.runtime.shared_memory import Channel

_MOST_SHARED_BYTES = 1 << 26  # of a sum's channels together

# A bucket on its way: each `next` takes it one message further, and once there is none left it holds the whole sum. Every rank
# makes and moves its transfers in the same order.
Transfer = Iterator[None]
Part = tuple[int, torch.Tensor]  # of a bucket: for, or from, a rank


@dataclass
class Route:
    """Who holds which blocks, and the memory that stays from step to step."""

    num_leaves: int
    rank: int
    world_size: int
    group: dist.ProcessGroup | None
    plan: list[list[Block]] = field(init=False)  # each rank's blocks,
    blocks: tuple[Block, ...] = field(init=False)  # and all of them
    bytes_sent: int = 0  # to other ranks, since the start
    bytes_out: int = 0  # of these, to other nodes, where a bucket goes in two levels
    _swaps: Counter[int] = field(default_factory=Counter)  # of each bucket in this step
    _channels: dict[tuple[int, int], Channel | None] = field(default_factory=dict)
    _free: list[torch.UntypedStorage] = field(default_factory=list)

    def __post_init__(self) -> None:
        share = cuts(self.num_leaves, self.world_size)
        self.plan = [blocks_of(range(start, stop)) for start, stop in itertools.pairwise(share)]
        self.blocks = tuple(block for held in self.plan for block in held)

    @functools.cached_property
    def nodes(self) -> Plan | None:
        """How nodes share the work, where that differs from ranks sharing it; all ask for it together."""
        if self.group is None:
            return None
        nodes = nodes_of(self.group)
        return Plan(nodes, self.plan) if 1 < len(nodes) < self.world_size else None

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

    def take(self, size: int, like: torch.Tensor) -> torch.Tensor:
        """Memory for what arrives, of shape (size,), until `give_back`.

        On a host some stays for the buckets that follow, as much as are on their way at once: fresh pages cost as much as the
        sum itself. On a GPU the allocator does it.
        """
        if like.is_cuda:
            return torch.empty(size, dtype=like.dtype, device=like.device)
        num_bytes = size * like.element_size()
        self._free.sort(key=len)
        fitting = [place for place, free in enumerate(self._free) if len(free) >= num_bytes]
        if fitting:
            found = self._free.pop(fitting[0])
        else:
            del self._free[:1]
            found = torch.UntypedStorage(num_bytes)
        return torch.empty(0, dtype=like.dtype).set_(found, 0, (size,), (1,))

    def give_back(self, taken: torch.Tensor) -> None:
        if not taken.is_cuda:
            self._free.append(taken.untyped_storage())

    def begin_step(self) -> None:
        """The next step's buckets are the first ones again."""
        self._swaps.clear()

    def swap(self, index: int, sends: list[Part], receives: list[Part]) -> Callable[[], None]:
        """Send parts of bucket `index` to ranks, and receive others: what is returned waits for all of them.

        Those between the same two ranks arrive in the order in which they are given; empty ones do not travel.
        """
        operations, swap = [], self._swaps[index]
        self._swaps[index] += 1
        for kind, parts in ((dist.irecv, receives), (dist.isend, sends)):
            given: Counter[int] = Counter()
            for peer, values in parts:
                if values.numel():
                    tag = (index << 20) + (swap << 8) + given[peer]
                    operations.append(dist.P2POp(kind, values, group=self.group, tag=tag, group_peer=peer))
                    given[peer] += 1
        self.note(sends)
        works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            for work in works:
                work.wait()

        return wait

    def note(self, sends: list[Part]) -> None:
        """Count what is sent."""
        for peer, values in sends:
            self.bytes_sent += values.nbytes
            if self.nodes is not None and self.nodes.node_of[peer] != self.nodes.node_of[self.rank]:
                self.bytes_out += values.nbytes


@dataclass
class Companion:
    """A few bytes of each rank's that travel with a bucket: one wait fewer, which is what a small model's step costs."""

    size: Callable[[], int]  # in bytes, the same on every rank
    make: Callable[[], torch.Tensor]  # (size,) of uint8
    take: Callable[[torch.Tensor], None]  # what all have made, (world_size, bytes), and maybe a few zeros after it

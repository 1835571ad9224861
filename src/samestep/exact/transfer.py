"""How one bucket's blocks travel: to the rank that sums each piece of it, and the summed pieces back to everyone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from samestep.exact.route import Companion, Route, Transfer
from samestep.exact.totals import all_gather
from samestep.exact.tree import Sum, cuts
from samestep.runtime.shared_memory import Channel

_MESSAGE_ELEMENTS = 1 << 19  # of a piece that is sent in parts: 2 MB of float32
_ALIGNED_BYTES = 8
# Of all ranks' blocks together, below which they all go everywhere: by a collective, and through memory that they share.
_GATHERED_ELEMENTS, _SHARED_ELEMENTS = 1 << 15, 1 << 21


def transfer(
    route: Route,
    index: int,
    flat: torch.Tensor,
    blocks: list[Callable[[torch.Tensor], None]],
    companion: Companion | None = None,
) -> Transfer:
    """Send off bucket `index`: `flat` holds this rank's last block, and `blocks` write the earlier ones into a tensor.

    Args:
        companion: goes along where the bucket goes everywhere in one message, and stays behind where it does not.
    """
    everyones = flat.numel() * max(map(len, route.plan)) * route.world_size
    if everyones <= (_GATHERED_ELEMENTS if flat.is_cuda else _SHARED_ELEMENTS):
        near = None
        if not flat.is_cuda:
            most_bytes = flat.nbytes * max(map(len, route.plan)) + _ALIGNED_BYTES
            near = route.channel(index, most_bytes + (companion.size() if companion is not None else 0))
        if near is not None or everyones <= _GATHERED_ELEMENTS:
            return Gathered(route, index, flat, blocks, companion, near)
    by_messages = flat.numel() >= 2 * _MESSAGE_ELEMENTS and not flat.is_cuda and route.world_size > 1
    return (Messages if by_messages else Collectives)(route, index, flat, blocks)


class AllReduce:
    """The backend's own sum, in whatever order it likes; there are no blocks beside the bucket then, and no companion."""

    def __init__(
        self,
        route: Route,
        index: int,
        flat: torch.Tensor,
        blocks: list[Callable[[torch.Tensor], None]],
        companion: Companion | None = None,
    ) -> None:
        self._work = dist.all_reduce(flat, group=route.group, async_op=True)

    def sum_and_return(self) -> None: ...

    def finish(self) -> None:
        self._work.wait()


class Gathered:
    """Everyone's blocks go to everyone, and each sums for itself: with few numbers, waiting once more is what costs."""

    def __init__(
        self,
        route: Route,
        index: int,
        flat: torch.Tensor,
        blocks: list[Callable[[torch.Tensor], None]],
        companion: Companion | None,
        near: Channel | None,
    ) -> None:
        self._route, self._flat, self._companion = route, flat, companion
        most = max(map(len, route.plan))
        parts = flat[None] if most == 1 else flat.new_zeros(most, flat.numel())
        for write, row in zip(blocks, parts, strict=False):
            write(row)
        if most > 1:
            parts[len(blocks)] = flat
        send, self._size = [parts.view(-1).view(torch.uint8)], parts.nbytes
        if companion is not None:
            made = companion.make()
            padding = -(parts.nbytes + made.numel()) % _ALIGNED_BYTES  # so that every rank's row can be read as numbers
            send += [made, made.new_zeros(padding)]
        num_bytes = sum([part.numel() for part in send])
        route.bytes_sent += num_bytes * (route.world_size - 1)
        if near is not None:
            self._receive = near.send(*send)
            return
        received = route.buffer(index, route.world_size * num_bytes, send[0])
        work = all_gather(received, torch.cat(send), group=route.group, async_op=True)

        def receive() -> torch.Tensor:
            work.wait()
            return received.view(route.world_size, -1)

        self._receive = receive

    def sum_and_return(self) -> None:
        everyones = self._receive()
        counter: Sum[torch.Tensor] = Sum(torch.add)
        for held, row in zip(self._route.plan, everyones, strict=True):
            rows = row[: self._size].view(self._flat.dtype).view(-1, self._flat.numel())
            for block, values in zip(held, rows, strict=False):
                counter.push(block, values)
        self._flat.copy_(counter.total())
        if self._companion is not None:
            self._companion.take(everyones[:, self._size :])

    def finish(self) -> None: ...


class Collectives:
    """An all-to-all and an all-gather."""

    def __init__(self, route: Route, index: int, flat: torch.Tensor, blocks: list[Callable[[torch.Tensor], None]]) -> None:
        self._route, self._flat = route, flat
        world_size, mine = route.world_size, len(blocks) + 1
        piece = -(-flat.numel() // world_size)
        self._received = route.buffer(index, sum(len(held) for held in route.plan) * piece, flat)
        self._work = dist.all_to_all_single(
            self._received,
            self._packed(blocks, piece),
            [len(held) * piece for held in route.plan],
            [mine * piece] * world_size,
            group=route.group,
            async_op=True,
        )
        route.bytes_sent += mine * piece * (world_size - 1) * flat.element_size()

    def _packed(self, blocks: list[Callable[[torch.Tensor], None]], piece: int) -> torch.Tensor:
        """This rank's blocks, cut into one piece for each rank: (world_size, blocks, piece), flattened.

        One block whose length divides goes out as it lies in the bucket, without a copy.
        """
        flat, world_size = self._flat, self._route.world_size
        if not blocks and flat.numel() == piece * world_size:
            return flat
        send = flat.new_zeros(world_size, len(blocks) + 1, piece)
        padded = flat.new_zeros(world_size * piece)
        for position in range(len(blocks) + 1):
            if position < len(blocks):
                blocks[position](padded[: flat.numel()])
            else:
                padded[: flat.numel()] = flat
            send[:, position] = padded.view(world_size, piece)
        return send.view(-1)

    def sum_and_return(self) -> None:
        self._work.wait()
        blocks = [block for held in self._route.plan for block in held]
        counter: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        for block, values in zip(blocks, self._received.view(len(blocks), -1), strict=True):
            counter.push(block, values)
        summed = counter.total()
        size = summed.numel() * self._route.world_size
        self._whole = self._flat if size == self._flat.numel() else summed.new_empty(size)
        self._work = all_gather(self._whole, summed, group=self._route.group, async_op=True)
        self._route.bytes_sent += summed.numel() * (self._route.world_size - 1) * summed.element_size()

    def finish(self) -> None:
        self._work.wait()
        if self._whole is not self._flat:
            self._flat.copy_(self._whole[: self._flat.numel()])


class Messages:
    """The same by messages between pairs, in parts: gloo's collectives copy a rank's own piece and take turns where the
    parts of a large bucket can be sent, summed and returned side by side."""

    def __init__(self, route: Route, index: int, flat: torch.Tensor, blocks: list[Callable[[torch.Tensor], None]]) -> None:
        self._route, self._index, self._flat = route, index, flat
        ends = cuts(flat.numel(), route.world_size)
        self._num_parts = max(1, (ends[1] - ends[0]) // _MESSAGE_ELEMENTS)
        self._mine = [torch.empty_like(flat) for _ in blocks] + [flat]
        for write, whole in zip(blocks, self._mine, strict=False):
            write(whole)
        self._parts = [
            [slice(start + a, start + b) for a, b in itertools.pairwise(cuts(stop - start, self._num_parts))]
            for start, stop in itertools.pairwise(ends)
        ]
        own = self._parts[route.rank]
        arriving = sum(len(route.plan[peer]) for peer in self._peers())
        rows = iter(route.buffer(index, arriving * (own[-1].stop - own[0].start), flat).view(arriving, -1).unbind())
        self._held: list[list[torch.Tensor]] = []  # each rank's blocks, as far as this rank sums them
        for peer, blocks_there in enumerate(route.plan):
            if peer == route.rank:
                self._held.append([whole[own[0].start : own[-1].stop] for whole in self._mine])
            else:
                self._held.append([next(rows) for _ in blocks_there])
        self._scattered = [self._scatter(part) for part in range(self._num_parts)]
        self._returned: list[dist.Work] = []

    def _peers(self) -> Iterator[int]:
        return (peer for peer in range(self._route.world_size) if peer != self._route.rank)

    def _own(self, part: int) -> slice:
        """The part's place in this rank's piece."""
        own = self._parts[self._route.rank]
        return slice(own[part].start - own[0].start, own[part].stop - own[0].start)

    def _scatter(self, part: int) -> list[dist.Work]:
        work = []
        for peer in self._peers():
            for position, row in enumerate(self._held[peer]):
                work.append(self._receive(row[self._own(part)], peer, part, position))
            for position, whole in enumerate(self._mine):
                work.append(self._send(whole[self._parts[peer][part]], peer, part, position))
        return work

    def sum_and_return(self) -> None:
        blocks = [block for held in self._route.plan for block in held]
        for part, scattered in enumerate(self._scattered):
            for work in scattered:
                work.wait()
            place = self._parts[self._route.rank][part]
            target = self._flat[place]
            rows = [row[self._own(part)] for held in self._held for row in held]
            counter: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
            for block, values in zip(blocks, rows, strict=True):
                counter.push(block, values)
            target.copy_(counter.total())
            for peer in self._peers():
                self._returned.append(self._receive(self._flat[self._parts[peer][part]], peer, part, -1))
                self._returned.append(self._send(target, peer, part, -1))

    def finish(self) -> None:
        for work in self._returned:
            work.wait()

    def _tag(self, part: int, position: int) -> int:
        """What tells a message from the others between the same two; -1 stands for the sum on its way back."""
        return (self._index << 20) + (part << 8) + position + 1

    def _send(self, values: torch.Tensor, peer: int, part: int, position: int) -> dist.Work:
        self._route.bytes_sent += values.numel() * values.element_size()
        work = dist.isend(values, group=self._route.group, group_dst=peer, tag=self._tag(part, position))
        assert work is not None
        return work

    def _receive(self, values: torch.Tensor, peer: int, part: int, position: int) -> dist.Work:
        work = dist.irecv(values, group=self._route.group, group_src=peer, tag=self._tag(part, position))
        assert work is not None
        return work

"""How one bucket's blocks travel: to the rank that sums each piece of it, and the summed pieces back to everyone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.distributed as dist

from samestep.exact.route import Companion, Route, Transfer
from samestep.exact.totals import all_gather
from samestep.exact.tree import add_in_rounds, cuts, rounds_of
from samestep.exact.two_levels import TwoLevels
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
            return _gathered(route, index, flat, blocks, companion, near)
    if route.nodes is not None:
        return TwoLevels(route, route.nodes, index, flat).move(blocks)
    by_messages = flat.numel() >= 2 * _MESSAGE_ELEMENTS and not flat.is_cuda and route.world_size > 1
    return (_messages if by_messages else _collectives)(route, index, flat, blocks)


def all_reduce(
    route: Route,
    index: int,
    flat: torch.Tensor,
    blocks: list[Callable[[torch.Tensor], None]],
    companion: Companion | None = None,
) -> Transfer:
    """The backend's own sum, in whatever order it likes; there are no blocks beside the bucket then, and no companion."""
    work = dist.all_reduce(flat, group=route.group, async_op=True)
    yield
    work.wait()


def _gathered(
    route: Route,
    index: int,
    flat: torch.Tensor,
    blocks: list[Callable[[torch.Tensor], None]],
    companion: Companion | None,
    near: Channel | None,
) -> Transfer:
    """Everyone's blocks go to everyone, and each sums for itself: with few numbers, waiting once more is what costs."""
    most = max(map(len, route.plan))
    parts = flat[None] if most == 1 else flat.new_zeros(most, flat.numel())
    for write, row in zip(blocks, parts, strict=False):
        write(row)
    if most > 1:
        parts[len(blocks)] = flat
    send, size = [parts.view(-1).view(torch.uint8)], parts.nbytes
    if companion is not None:
        made = companion.make()
        padding = -(parts.nbytes + made.numel()) % _ALIGNED_BYTES  # so that every rank's row can be read as numbers
        send += [made, made.new_zeros(padding)]
    num_bytes = sum([part.numel() for part in send])
    route.bytes_sent += num_bytes * (route.world_size - 1)
    if near is not None:
        receive = near.send(*send)
        yield
        everyones = receive()
    else:
        received = route.take(route.world_size * num_bytes, send[0])
        work = all_gather(received, torch.cat(send), group=route.group, async_op=True)
        yield
        work.wait()
        everyones = received.view(route.world_size, -1)
    values: list[torch.Tensor] = []
    for held, row in zip(route.plan, everyones, strict=True):
        rows = row[:size].view(flat.dtype).view(-1, flat.numel())
        values += rows[: len(held)]
    rounds, ((_, place),) = rounds_of(route.blocks, route.num_leaves)
    add_in_rounds(rounds, values, in_place=False)  # what is shared is others' to read too
    flat.copy_(values[place])
    if companion is not None:
        companion.take(everyones[:, size:])
    if near is None:
        route.give_back(received)


def _collectives(route: Route, index: int, flat: torch.Tensor, blocks: list[Callable[[torch.Tensor], None]]) -> Transfer:
    """An all-to-all and an all-gather."""
    world_size, mine = route.world_size, len(blocks) + 1
    piece = -(-flat.numel() // world_size)
    received = route.take(len(route.blocks) * piece, flat)
    work = dist.all_to_all_single(
        received,
        _packed(flat, blocks, piece, world_size),
        [len(held) * piece for held in route.plan],
        [mine * piece] * world_size,
        group=route.group,
        async_op=True,
    )
    route.bytes_sent += mine * piece * (world_size - 1) * flat.element_size()
    yield
    work.wait()
    rows = list(received.view(len(route.blocks), -1))
    rounds, ((_, place),) = rounds_of(route.blocks, route.num_leaves)
    add_in_rounds(rounds, rows)
    whole = flat if piece * world_size == flat.numel() else flat.new_empty(piece * world_size)
    work = all_gather(whole, rows[place], group=route.group, async_op=True)
    route.bytes_sent += piece * (world_size - 1) * flat.element_size()
    yield
    work.wait()
    route.give_back(received)
    if whole is not flat:
        flat.copy_(whole[: flat.numel()])


def _packed(flat: torch.Tensor, blocks: list[Callable[[torch.Tensor], None]], piece: int, world_size: int) -> torch.Tensor:
    """This rank's blocks, cut into one piece for each rank: (world_size, blocks, piece), flattened.

    One block whose length divides goes out as it lies in the bucket, without a copy.
    """
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


def _messages(route: Route, index: int, flat: torch.Tensor, blocks: list[Callable[[torch.Tensor], None]]) -> Transfer:
    """The same by messages between pairs, in parts: gloo's collectives copy a rank's own piece and take turns where the
    parts of a large bucket can be sent, summed and returned side by side."""
    ends = cuts(flat.numel(), route.world_size)
    num_parts = max(1, flat.numel() // route.world_size // _MESSAGE_ELEMENTS)
    places = [
        [slice(start + a, start + b) for a, b in itertools.pairwise(cuts(stop - start, num_parts))]
        for start, stop in itertools.pairwise(ends)
    ]  # of each rank's piece in the bucket, part by part
    own = places[route.rank]
    length = own[-1].stop - own[0].start
    peers = [peer for peer in range(route.world_size) if peer != route.rank]
    copies = route.take(len(blocks) * flat.numel(), flat)
    mine = [*copies.view(len(blocks), flat.numel()), flat]
    for write, whole in zip(blocks, mine, strict=False):
        write(whole)
    received = route.take(sum(len(route.plan[peer]) for peer in peers) * length, flat)
    arriving, here = iter(received.view(-1, length)), iter([whole[own[0].start : own[-1].stop] for whole in mine])
    held = [[next(here if rank == route.rank else arriving) for _ in there] for rank, there in enumerate(route.plan)]
    scattered = [
        route.swap(
            index,
            [(peer, whole[places[peer][part]]) for peer in peers for whole in mine],
            [(peer, row[_within(place, own[0])]) for peer in peers for row in held[peer]],
        )
        for part, place in enumerate(own)
    ]
    yield
    rounds, ((_, first),) = rounds_of(route.blocks, route.num_leaves)
    returned = []
    for part, (wait, place) in enumerate(zip(scattered, own, strict=True)):
        wait()
        rows = [row[_within(place, own[0])] for there in held for row in there]
        add_in_rounds(rounds, rows)
        flat[place].copy_(rows[first])
        sends = [(peer, flat[place]) for peer in peers]
        returned.append(route.swap(index, sends, [(peer, flat[places[peer][part]]) for peer in peers]))
    yield
    for wait in returned:
        wait()
    route.give_back(received)
    route.give_back(copies)


def _within(place: slice, piece: slice) -> slice:
    return slice(place.start - piece.start, place.stop - piece.start)

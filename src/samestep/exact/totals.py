"""Small numbers over all ranks: gathered as bytes, then summed by everyone in the same tree."""

from __future__ import annotations

import contextlib
import itertools
import math
import weakref
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from samestep.control import everyones, gate
from samestep.exact.nodes import nodes_of
from samestep.exact.tree import cuts, tree_sum
from samestep.runtime.shared_memory import Channel, accept, offer

# Newer torch has renamed it, and warns of the old name.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_GATHER_BYTES = 1 << 16  # of a rank, through memory
_EVERYONES_BYTES = 1 << 20  # of all, where they are on several nodes
_SMALL_TAG = (1 << 31) - 1  # no bucket's

# Of process groups, which come and go in loops of one's own.
_gathering: weakref.WeakKeyDictionary[dist.ProcessGroup, Channel | NodeGather | None] = weakref.WeakKeyDictionary()
_collective: weakref.WeakSet[dist.ProcessGroup] = weakref.WeakSet()


def keep_to_collectives(group: dist.ProcessGroup) -> None:
    """From here on nothing goes by shared memory: where a forward is one of all ranks, one that went another way meets the
    others in a collective of theirs, and hears of it by what they say there."""
    _collective.add(group)


def make_channel(
    group: dist.ProcessGroup, num_bytes: int, team: Sequence[int] | None = None, senders: int | None = None
) -> Channel | None:
    """Memory that these ranks share for one sequence of messages of up to so many bytes; None if they are on no one machine.

    All ranks ask for it together.

    Args:
        team: those of them that share it with this rank, where not all do: then each team has its own, or none has.
        senders: how many of a team send, where not all do.
    """
    if group in _collective:
        return None
    rank = dist.get_rank(group)
    team = team or range(dist.get_world_size(group))
    place, senders = team.index(rank), senders or len(team)
    offered = offer(num_bytes, senders) if place == 0 else None
    address, handle = offered or (None, None)
    address = everyones(address, group)[team[0]]
    if place > 0 and address is not None:
        handle = accept(address)
    made = None
    if handle is not None:
        with contextlib.suppress(OSError), torch.inference_mode(False):
            made = Channel(handle, num_bytes, place, senders)
    have_it = everyones(made is not None, group)  # and are seen to live, each by a lock of its own
    return made if all(have_it) else None


class NodeGather:
    """Small messages of all ranks to all, where they are on several nodes: by memory within a node, and between nodes by the
    first rank of each, which knows twice as many nodes' after every message.

    Bruck et al., "Efficient Algorithms for All-to-All Communications in Multiport Message-Passing Systems", IEEE TPDS 1997.
    """

    def __init__(self, group: dist.ProcessGroup, nodes: Sequence[Sequence[int]], inward: Channel, outward: Channel) -> None:
        rank = dist.get_rank(group)
        self._group, self._nodes, self._inward, self._outward = group, nodes, inward, outward
        self._node = next(number for number, ranks in enumerate(nodes) if rank in ranks)
        self._is_first = nodes[self._node][0] == rank
        turned = [other for number in range(len(nodes)) for other in nodes[(self._node + number) % len(nodes)]]
        self._places = torch.tensor(turned).argsort()  # of each rank's message, where this node's come first
        self.messages_sent = self.bytes_sent = 0  # to other nodes

    @classmethod
    def make(cls, group: dist.ProcessGroup) -> NodeGather | None:
        """All ranks ask for it together; None where some node has no memory for it."""
        nodes = nodes_of(group)
        own = next(ranks for ranks in nodes if dist.get_rank(group) in ranks)
        inward = make_channel(group, _GATHER_BYTES, own)
        outward = make_channel(group, _EVERYONES_BYTES, own, senders=1) if inward is not None else None
        return cls(group, nodes, inward, outward) if inward is not None and outward is not None else None

    def send(self, row: torch.Tensor) -> Callable[[], torch.Tensor]:
        """As of `Channel`: (bytes,) to (world_size, bytes)."""
        inside = self._inward.send(row)

        def received() -> torch.Tensor:
            own = inside()
            if not self._is_first:
                return self._outward.hear(0).view(-1, len(row))
            everyone = self._swap(own)[self._places]
            self._outward.send(everyone.view(-1))
            return everyone

        return received

    def _swap(self, own: torch.Tensor) -> torch.Tensor:
        """All nodes' rows, this node's first and then the following ones'."""
        num_nodes, width = len(self._nodes), own.shape[1]
        held, known = [own.contiguous()], 1
        while known < num_nodes:
            some = min(known, num_nodes - known)
            before, after = (self._node - known) % num_nodes, (self._node + known) % num_nodes
            away = torch.cat(held)[: self._num_ranks(self._node, some)]
            held.append(away.new_empty(self._num_ranks(after, some), width))
            operations = [
                dist.P2POp(dist.irecv, held[-1], group=self._group, group_peer=self._nodes[after][0], tag=_SMALL_TAG),
                dist.P2POp(dist.isend, away, group=self._group, group_peer=self._nodes[before][0], tag=_SMALL_TAG),
            ]
            self.messages_sent += 1
            self.bytes_sent += away.nbytes
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            known += some
        return torch.cat(held)

    def _num_ranks(self, first: int, nodes: int) -> int:
        """Of so many nodes from one on."""
        return sum(len(self._nodes[(first + number) % len(self._nodes)]) for number in range(nodes))


def gather(local: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Every rank's tensor, stacked in rank order: (…) to (world_size, …). All ranks pass the same shape and dtype.

    On a GPU floats begin as NaN: after an aborted collective the queued kernels still run, and must see that nothing arrived.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return local[None]
    group = group or dist.group.WORLD
    assert group is not None
    world_size = dist.get_world_size(group)
    if not local.is_cuda and local.nbytes <= _GATHER_BYTES and group not in _collective:
        if group not in _gathering:
            _gathering[group] = make_channel(group, _GATHER_BYTES) or NodeGather.make(group)
        near = _gathering[group]
        if near is not None and (isinstance(near, Channel) or local.nbytes * world_size <= _EVERYONES_BYTES):
            received = near.send(local.reshape(-1).view(torch.uint8))()
            gate.refuse()
            return received.clone().view(local.dtype).view(world_size, *local.shape)
    shape = (world_size, *local.shape)
    nothing = math.nan if local.is_floating_point() else 0
    everyone = local.new_full(shape, nothing) if local.is_cuda else local.new_empty(shape)
    all_gather(everyone.view(-1), local.reshape(-1), group=group)
    if not local.is_cuda:
        gate.refuse()
    return everyone


def padded(local: torch.Tensor, most: int) -> torch.Tensor:
    """A rank's share of rows, with zero rows up to the largest share's number."""
    if len(local) == most:
        return local
    return torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])])


def in_order(gathered: torch.Tensor, starts: list[int]) -> torch.Tensor:
    """Undo the padding after `gather`: (world_size, most, …) to (rows, …), in the rows' order."""
    if len(gathered) == 1:
        return gathered[0]
    shares = zip(gathered, itertools.pairwise(starts), strict=True)
    return torch.cat([rows[: stop - start] for rows, (start, stop) in shares])


def ordered_total(local: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The tree's sum over `num_rows` rows, of which each rank passes its contiguous share (see `tree.cuts`)."""
    starts = cuts(num_rows, dist.get_world_size() if dist.is_initialized() else 1)
    most = max(stop - start for start, stop in itertools.pairwise(starts))
    return tree_sum(in_order(gather(padded(local, most)), starts))


def fingerprint(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """For each tensor the integer sum over its bits, modulo 2**64: (len(tensors),) of int64; 0 where there is none.

    Integers add up to the same in any order, so this is cheap and needs no care; one flipped bit always changes it.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    sums = [as_bits(tensor).sum(dtype=torch.int64) if tensor is not None else None for tensor in tensors]
    device = next((tensor.device for tensor in tensors if tensor is not None), None)
    return torch.stack([total if total is not None else torch.zeros((), dtype=torch.int64, device=device) for total in sums])


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits as integers of the same size."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])

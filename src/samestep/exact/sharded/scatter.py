"""How a round's gradients come to those who own their rows: as they are, or added up in each node first."""

from __future__ import annotations

import torch
import torch.distributed as dist

from samestep.exact.tree import Block, Sum, blocks_of

Pairs = list[tuple[Block, torch.Tensor]]


def scatter(gradients: torch.Tensor, leaves: range, group: dist.ProcessGroup) -> Pairs:
    """This rank's rows of each leaf of a round.

    Args:
        gradients: of this rank's leaf, (ranks, rows of each).
        leaves: of the round, rank by rank; the last ones may have none.
    """
    arrived = torch.empty_like(gradients)
    dist.all_to_all_single(arrived, gradients, group=group)
    return [(Block(leaf, 0), rows) for leaf, rows in zip(leaves, arrived, strict=False)]


class NodeScatter:
    """The same where nodes have several ranks, one after the other: a node's ranks first add up what each of them has for those
    of one place in all nodes, so that out of a node goes about one leaf's gradient, and not one for each rank.

    Args:
        inside, between: the ranks of this node; those of this place in all nodes.
    """

    def __init__(self, inside: dist.ProcessGroup, between: dist.ProcessGroup) -> None:
        self._inside, self._between = inside, between
        self._each, self._num_nodes, self._node = inside.size(), between.size(), between.rank()
        self.bytes_out = 0  # to other nodes, since the start

    def __call__(self, gradients: torch.Tensor, leaves: range) -> Pairs:
        by_place = gradients.view(self._num_nodes, self._each, -1).transpose(0, 1).contiguous()
        arrived = torch.empty_like(by_place)  # of each leaf of this node
        dist.all_to_all_single(arrived, by_place, group=self._inside)
        nodes = [leaves[node * self._each : (node + 1) * self._each] for node in range(self._num_nodes)]
        own: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
        for leaf, rows in zip(nodes[self._node], arrived, strict=False):
            own.push(Block(leaf, 0), rows)
        blocks = [blocks_of(there) for there in nodes]
        length = arrived.shape[2]
        sends = torch.stack([arrived[0], *(rows for _, rows in own.blocks)], 1)[:, 1:].contiguous()
        received = sends.new_empty(sum(map(len, blocks)), length)
        dist.all_to_all_single(
            received.view(-1),
            sends.view(-1),
            [len(there) * length for there in blocks],
            [len(own.blocks) * length] * self._num_nodes,
            group=self._between,
        )
        self.bytes_out += sends[1:].nbytes
        return list(zip([block for there in blocks for block in there], received, strict=True))

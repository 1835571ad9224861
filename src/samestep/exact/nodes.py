"""Which ranks share a node, and what is added up in which: the links between nodes carry far less than those inside one."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist

from samestep.control import everyones
from samestep.exact.tree import Block, cuts, rounds_of
from samestep.runtime import node_name

_MOST_PLACES = 64  # where the nodes' numbers of ranks have a large common multiple

# Of process groups, which come and go in loops of one's own.
_known: weakref.WeakKeyDictionary[dist.ProcessGroup, list[list[int]]] = weakref.WeakKeyDictionary()


def nodes_of(group: dist.ProcessGroup) -> list[list[int]]:
    """Each node's ranks, in their order; all ranks ask for it together, and are told the same."""
    if group not in _known:
        by_name: dict[str, list[int]] = {}
        for rank, name in enumerate(everyones(node_name(), group)):
            by_name.setdefault(name, []).append(rank)
        _known[group] = list(by_name.values())
    return _known[group]


class Way(NamedTuple):
    """How some part of a bucket comes together between nodes."""

    moves: list[
        list[tuple[Block, int, int]]
    ]  # by node, the blocks that come to it first: what, from which node, at which place
    kept: list[list[Block]]  # by node, what it has then, and sends to the node that makes the sum


class Plan:
    """Who adds up what, where there are several nodes and one of them has several ranks.

    A bucket is cut into as many places as all nodes can deal out to their ranks. A rank adds up its node's blocks of its own
    places; then it talks to those who have the same places in other nodes, and to nobody else there. A place is cut into one
    chunk for each node, which makes the sum of that chunk.

    Where nodes' leaves are no whole blocks of the tree, most of their blocks lie together in a larger one with a neighbour's.
    It costs less to bring these to one of the two first, and halves of the chunks may take either. How large that one is to
    be is tried.

    Args:
        nodes: each node's ranks.
        blocks: each rank's blocks, left to right.
    """

    def __init__(self, nodes: Sequence[Sequence[int]], blocks: Sequence[Sequence[Block]]) -> None:
        self.nodes = nodes
        self.node_of = {rank: node for node, ranks in enumerate(nodes) for rank in ranks}
        sizes = [len(ranks) for ranks in nodes]
        common = math.lcm(*sizes)
        self.num_places = common if common <= _MOST_PLACES else max(_MOST_PLACES, *sizes)
        arrived = [[block for rank in ranks for block in blocks[rank]] for ranks in nodes]
        self.num_leaves = max(block.start + (1 << block.level) for found in arrived for block in found)
        self.held = [[block for block, _ in rounds_of(tuple(found), self.num_leaves)[1]] for found in arrived]  # by node
        levels = range(1 + max(block.level for held in self.held for block in held) + len(nodes).bit_length())
        tried = [[_way(self.held, self.num_leaves, level, half) for half in range(2 if level else 1)] for level in levels]
        self.ways = min(tried, key=lambda ways: max(self._sent(ways)))

    def way_of(self, node: int) -> int:
        """Which of `ways` the chunk of a node takes."""
        return node * len(self.ways) // len(self.nodes)

    def holder(self, node: int, place: int) -> int:
        """The rank of a node that has a place."""
        ranks = self.nodes[node]
        return ranks[place * len(ranks) // self.num_places]

    def places(self, rank: int) -> list[int]:
        return [place for place in range(self.num_places) if self.holder(self.node_of[rank], place) == rank]

    def chunks(self, size: int) -> list[list[int]]:
        """Where, in a bucket of so many elements, the chunks of each place begin, and the last one ends."""
        ends = cuts(size, self.num_places)
        lengths = [ends[place + 1] - ends[place] for place in range(self.num_places)]
        return [[begin + cut for cut in cuts(length, len(self.nodes))] for begin, length in zip(ends, lengths, strict=False)]

    def sent(self) -> list[float]:
        """What each node sends to others, in units of the bucket."""
        return self._sent(self.ways)

    def _sent(self, ways: list[Way]) -> list[float]:
        num_nodes = len(self.nodes)
        sent = [num_nodes - 1.0] * num_nodes  # chunks: its own sum to everyone
        for chunk in range(num_nodes):
            way = ways[chunk * len(ways) // num_nodes]
            for moved in way.moves:
                for _, source, _ in moved:
                    sent[source] += 1
            for node, kept in enumerate(way.kept):
                sent[node] += len(kept) if node != chunk else 0
        return [chunks / num_nodes for chunks in sent]


def _way(held: list[list[Block]], num_leaves: int, level: int, half: int) -> Way:
    """What lies in one block of `level` comes together in the node that has most of it; where several have, half by half."""
    inside: dict[int, Counter[int]] = {}  # the blocks that each node has in there
    for node, blocks in enumerate(held):
        for block in blocks:
            inside.setdefault(block.start >> level, Counter())[node] += 1
    keeper: dict[int, int] = {}
    for number, counts in inside.items():
        most = [node for node, count in counts.items() if count == max(counts.values())]
        keeper[number] = most[-half]
    moves: list[list[tuple[Block, int, int]]] = [[] for _ in held]
    there = [[block for block in blocks if keeper[block.start >> level] == node] for node, blocks in enumerate(held)]
    for node, blocks in enumerate(held):
        for place, block in enumerate(blocks):
            if (target := keeper[block.start >> level]) != node:
                moves[target].append((block, node, place))
                there[target].append(block)
    return Way(moves, [[block for block, _ in rounds_of(tuple(sorted(blocks)), num_leaves)[1]] for blocks in there])

"""All ranks of a sum in one process: their messages lie in a box, and are checked on their way."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable

import torch

from samestep.exact import blocks_of, cuts, tree_sum
from samestep.exact.nodes import Plan
from samestep.exact.route import Part, Route
from samestep.exact.tree import Block, Sum
from samestep.exact.two_levels import TwoLevels


def in_nodes(sizes: list[int]) -> list[list[int]]:
    """Each node's ranks, which are neighbours."""
    ends = [0, *itertools.accumulate(sizes)]
    return [list(range(start, stop)) for start, stop in itertools.pairwise(ends)]


def blocks_of_ranks(num_leaves: int, world_size: int) -> list[list[Block]]:
    return [blocks_of(range(start, stop)) for start, stop in itertools.pairwise(cuts(num_leaves, world_size))]


Box = defaultdict[tuple[int, int], deque[torch.Tensor]]


class Simulated(Route):
    """A rank's route, where what is sent lies in `box` by sender and receiver."""

    box: Box
    lent = most_lent = 0  # bytes of memory for what arrives

    def take(self, size: int, like: torch.Tensor) -> torch.Tensor:
        self.lent += size * like.element_size()
        self.most_lent = max(self.most_lent, self.lent)
        return like.new_full((size,), torch.nan)

    def give_back(self, taken: torch.Tensor) -> None:
        self.lent -= taken.nbytes

    def swap(self, index: int, sends: list[Part], receives: list[Part]) -> Callable[[], None]:
        self.note(sends)
        kept = [(values, values.clone()) for _, values in sends]
        for (peer, values), (_, copy) in zip(sends, kept, strict=True):
            if values.numel():
                self.box[self.rank, peer].append(copy)
        for _, values in receives:
            values.fill_(torch.nan)  # nobody may read it yet

        def wait() -> None:
            assert all(torch.equal(values, copy) for values, copy in kept), "changed while it was sent"
            for peer, values in receives:
                if values.numel():
                    values.copy_(self.box[peer, self.rank].popleft())

        return wait


class Simulation:
    """One bucket of so many elements on ranks that stand in nodes."""

    def __init__(self, nodes: list[list[int]], num_leaves: int, size: int, seed: int = 0) -> None:
        world_size = sum(map(len, nodes))
        generator = torch.Generator().manual_seed(seed)
        scale = 10.0 ** torch.randint(-4, 5, (num_leaves, 1), generator=generator)
        leaves = torch.randn(num_leaves, size, generator=generator) * scale
        self.expected = tree_sum(leaves)
        box: Box = defaultdict(deque)
        self.routes: list[Simulated] = []
        self.flats: list[torch.Tensor] = []
        self.plan = Plan(nodes, blocks_of_ranks(num_leaves, world_size))
        moving = []
        for rank in range(world_size):
            route = Simulated(num_leaves, rank, world_size, None)
            route.box, route.nodes = box, self.plan
            blocks = [tree_sum(leaves[start : start + (1 << level)]) for start, level in route.plan[rank]]
            flat = blocks.pop().clone()
            writers = [lambda whole, block=block: whole.copy_(block) for block in blocks]
            moving.append(TwoLevels(route, self.plan, 0, flat).move(writers))  # type: ignore[arg-type]
            self.routes.append(route)
            self.flats.append(flat)
        while moving:
            moving = [transfer for transfer in moving if next(transfer, transfer) is not transfer]
        assert not any(box.values()), "sent and not received"

    @property
    def is_right(self) -> bool:
        bits = self.expected.view(torch.int32)
        return all(torch.equal(flat.view(torch.int32), bits) for flat in self.flats)

    def sent_by_nodes(self) -> list[float]:
        """In units of the bucket, as counted."""
        sent: Counter[int] = Counter()
        for route in self.routes:
            sent[self.plan.node_of[route.rank]] += route.bytes_out
        return [sent[node] / self.expected.nbytes for node in range(len(self.plan.nodes))]


def fewest_sent(nodes: list[list[int]], blocks: list[list[Block]]) -> float:
    """What nodes send at least on average, whoever adds up what: each value of the tree is made in one node, and goes there
    from the nodes of its parts (Fitch, "Toward defining the course of evolution", 1971); the sum goes to all others."""
    moves = 0

    def join(left: frozenset[int], right: frozenset[int]) -> frozenset[int]:
        nonlocal moves
        if left & right:
            return left & right
        moves += 1
        return left | right

    counter: Sum[frozenset[int]] = Sum(join)
    for node, ranks in enumerate(nodes):
        for rank in ranks:
            for block in blocks[rank]:
                counter.push(block, frozenset([node]))
    counter.total()
    return (moves + len(nodes) - 1) / len(nodes)

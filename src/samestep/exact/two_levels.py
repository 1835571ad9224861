"""How a bucket travels where nodes have several ranks: in each node first, then between nodes, and back the same way.

Out of a node goes what a ring would send, where its leaves are one block of the tree: each of its ranks has a part of what the
node sends, and none sends what another has added up already.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch

from samestep.exact.nodes import Plan
from samestep.exact.route import Part, Route, Transfer
from samestep.exact.tree import Block, add_in_rounds, rounds_of

Held = list[tuple[Block, torch.Tensor]]  # blocks left to right, each with its values in some part of the bucket
Cells = dict[tuple[int, int], Held]  # by place of this rank, and by the way that some of its chunks take


class TwoLevels:
    """One bucket; `flat` as in `transfer`."""

    def __init__(self, route: Route, plan: Plan, index: int, flat: torch.Tensor) -> None:
        self._route, self._plan, self._index, self._flat = route, plan, index, flat
        self._node, self._chunks = plan.node_of[route.rank], plan.chunks(flat.numel())
        self._places, self._own = plan.places(route.rank), self._part(route.rank)
        self._peers = [peer for peer in plan.nodes[self._node] if peer != route.rank]
        self._taken: list[torch.Tensor] = []

    def move(self, blocks: list[Callable[[torch.Tensor], None]]) -> Transfer:
        """`blocks` as in `transfer`."""
        held = yield from self._add_inside(blocks)
        cells = {
            (place, way): [(block, values[self._within_own(self._span(place, way))]) for block, values in held]
            for place in self._places
            for way in range(len(self._plan.ways))
        }
        if any(any(way.moves) for way in self._plan.ways):
            cells = yield from self._bring_together(cells)
        yield from self._sum(cells)
        while self._taken:
            self._route.give_back(self._taken.pop())
        yield from self._return()

    def _add_inside(self, blocks: list[Callable[[torch.Tensor], None]]) -> Generator[None, None, Held]:
        """Add up this node's blocks, as far as this rank's places go."""
        mine = [*self._memory([self._flat.numel()] * len(blocks)), self._flat]
        for write, whole in zip(blocks, mine, strict=False):
            write(whole)
        found = [(rank, block) for rank in self._plan.nodes[self._node] for block in self._route.plan[rank]]
        here = iter([whole[self._own] for whole in mine])
        length = self._own.stop - self._own.start
        arriving = iter(self._memory([length for rank, _ in found if rank != self._route.rank]))
        held = [(block, next(here if rank == self._route.rank else arriving)) for rank, block in found]
        yield from self._swap(
            [(peer, whole[self._part(peer)]) for peer in self._peers for whole in mine],
            [(rank, values) for (rank, _), (_, values) in zip(found, held, strict=True) if rank != self._route.rank],
        )
        return _added([held], self._route.num_leaves)[0]

    def _bring_together(self, cells: Cells) -> Generator[None, None, Cells]:
        """Let blocks that lie in one larger block meet in one node, as the plan's ways say."""
        sends: list[Part] = []
        sources, sizes = [], []
        together: Cells = {}
        for (place, way), held in cells.items():
            gone = set()
            for target, moved in enumerate(self._plan.ways[way].moves):
                for _, source, number in moved:
                    if source == self._node:
                        sends.append((self._plan.holder(target, place), held[number][1]))
                        gone.add(number)
                    if target == self._node:
                        sources.append(self._plan.holder(source, place))
                        sizes.append(held[0][1].numel())
            together[place, way] = [pair for number, pair in enumerate(held) if number not in gone]
        received = self._memory(sizes)
        rows = iter(received)
        for (_, way), held in together.items():
            held += [(block, next(rows)) for block, _, _ in self._plan.ways[way].moves[self._node]]
        yield from self._swap(sends, list(zip(sources, received, strict=True)))
        return dict(zip(together, _added([_in_order(held) for held in together.values()], self._route.num_leaves), strict=True))

    def _sum(self, cells: Cells) -> Generator[None, None, None]:
        """Make the sum of this node's chunks, of what all nodes have of them."""
        num_nodes, own_way = len(self._plan.nodes), self._plan.way_of(self._node)
        others = [node for node in range(num_nodes) if node != self._node]
        sends: list[Part] = []
        targets, found, sources, sizes = [], [], [], []
        for place in self._places:
            for node in others:
                way = self._plan.way_of(node)
                begin = self._span(place, way).start
                chunk = self._chunk(place, node, begin)
                sends += [(self._plan.holder(node, place), values[chunk]) for _, values in cells[place, way]]
            chunk = self._chunk(place, self._node, self._span(place, own_way).start)
            found.append([(block, values[chunk]) for block, values in cells[place, own_way]])
            targets.append(self._flat[self._chunk(place, self._node)])
            for node in others:
                kept = self._plan.ways[own_way].kept[node]
                sources += [self._plan.holder(node, place)] * len(kept)
                sizes += [targets[-1].numel()] * len(kept)
        received = self._memory(sizes)
        rows = iter(received)
        for held in found:
            held += [(block, next(rows)) for node in others for block in self._plan.ways[own_way].kept[node]]
        yield from self._swap(sends, list(zip(sources, received, strict=True)))
        sums = [total for ((_, total),) in _added([_in_order(held) for held in found], self._route.num_leaves)]
        torch._foreach_copy_(targets, sums)

    def _return(self) -> Generator[None, None, None]:
        """Bring the sums back: this rank's places from the nodes, and the others from this node's ranks."""
        sends, receives = [], []
        for place in self._places:
            for node in range(len(self._plan.nodes)):
                if node != self._node:
                    holder = self._plan.holder(node, place)
                    sends.append((holder, self._flat[self._chunk(place, self._node)]))
                    receives.append((holder, self._flat[self._chunk(place, node)]))
        yield from self._swap(sends, receives)
        yield from self._swap(
            [(peer, self._flat[self._own]) for peer in self._peers],
            [(peer, self._flat[self._part(peer)]) for peer in self._peers],
        )

    def _swap(self, sends: list[Part], receives: list[Part]) -> Generator[None, None, None]:
        wait = self._route.swap(self._index, sends, receives)
        yield
        wait()

    def _memory(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """For what arrives, until the bucket's sum is made."""
        if not sum(sizes):
            return [self._flat[:0]] * len(sizes)
        self._taken.append(self._route.take(sum(sizes), self._flat))
        return list(self._taken[-1].split(list(sizes)))

    def _part(self, rank: int) -> slice:
        """What a rank's places are of the bucket."""
        places = self._plan.places(rank)
        return slice(self._chunks[places[0]][0], self._chunks[places[-1]][-1])

    def _span(self, place: int, way: int) -> slice:
        """What the chunks that take a way are of the bucket, in one place."""
        chunks = [node for node in range(len(self._plan.nodes)) if self._plan.way_of(node) == way]
        return slice(self._chunks[place][chunks[0]], self._chunks[place][chunks[-1] + 1])

    def _chunk(self, place: int, node: int, begin: int = 0) -> slice:
        """The chunk of a node, as counted from some element."""
        start, stop = self._chunks[place][node : node + 2]
        return slice(start - begin, stop - begin)

    def _within_own(self, span: slice) -> slice:
        return slice(span.start - self._own.start, span.stop - self._own.start)


def _in_order(held: Held) -> Held:
    return sorted(held, key=lambda pair: pair[0])


def _added(parts: list[Held], num_leaves: int) -> list[Held]:
    """Add up the blocks of several parts of a bucket side by side, as far as the tree goes."""
    values: list[torch.Tensor] = []
    rounds: list[list[tuple[int, int]]] = []
    added: list[Held] = []
    for held in parts:
        own_rounds, left = rounds_of(tuple(block for block, _ in held), num_leaves)
        rounds += [[] for _ in range(len(own_rounds) - len(rounds))]
        for pairs, own_pairs in zip(rounds, own_rounds, strict=False):
            pairs += [(place + len(values), other + len(values)) for place, other in own_pairs]
        added.append([(block, held[place][1]) for block, place in left])
        values += [value for _, value in held]
    add_in_rounds(rounds, values)
    return added

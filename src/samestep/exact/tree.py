"""One binary tree over the leaves of a step, and its sum from any contiguous split of them.

The tree pairs leaves 0 and 1, 2 and 3, …, then the pairs, and so on; what is left over on the right joins last. Its shape
depends on the number of leaves alone. A rank that holds leaves a to b can sum the tree's own blocks that lie inside
[a, b); the rest of the tree needs only those blocks, in order. This module knows nothing of processes or of DDP.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")
_SIDE_BY_SIDE = 8  # ranks, of shares of one size: a multiple of most nodes' number


class Block(NamedTuple):
    """The 2**level leaves that begin at `start`, a multiple of their number."""

    start: int
    level: int


def cuts(num_leaves: int, world_size: int) -> list[int]:
    """Where each rank's contiguous share of the leaves begins; world_size + 1 numbers, the last being num_leaves.

    Shares differ by one leaf at most. Those that a higher power of two divides stand first, but for some that would end within
    a node of up to eight ranks and stand last: beginning where whole blocks of the tree begin, the shares of a node make up
    few of them, and so less is sent.
    """
    each, more = divmod(num_leaves, world_size)
    larger_first = (each + 1) & -(each + 1) > each & -each
    first = more if larger_first else world_size - more
    first -= first % _SIDE_BY_SIDE
    second = first + (world_size - more if larger_first else more)  # where the second kind of shares ends
    if larger_first:
        return [rank * each + min(rank, first) + max(rank - second, 0) for rank in range(world_size + 1)]
    return [rank * each + min(max(rank - first, 0), more) for rank in range(world_size + 1)]


def contiguous(num_leaves: int, leaf_size: int, world_size: int) -> list[range]:
    """Each rank's micro-batches of a step, where each has neighbouring leaves; a leaf is `leaf_size` micro-batches."""
    starts = [cut * leaf_size for cut in cuts(num_leaves, world_size)]
    return [range(start, stop) for start, stop in itertools.pairwise(starts)]


def dealt(num_leaves: int, leaf_size: int, nodes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each rank's micro-batches of a step, where a node has neighbouring leaves and deals them like cards: in each round its
    ranks have neighbouring ones.

    All have equally many; those beyond the last leaf count for nothing.

    Args:
        nodes: each node's ranks, equally many.
    """
    starts = cuts(num_leaves, len(nodes))
    each = len(nodes[0])
    rounds = max(-(-(stop - start) // each) for start, stop in itertools.pairwise(starts))
    shares: dict[int, list[int]] = {}
    for ranks, (start, stop) in zip(nodes, itertools.pairwise(starts), strict=True):
        for place, rank in enumerate(ranks):
            own = range(start + place, start + rounds * each, each)
            leaves = [leaf if leaf < stop else num_leaves + leaf - stop for leaf in own]
            shares[rank] = [leaf * leaf_size + number for leaf in leaves for number in range(leaf_size)]
    return [shares[rank] for rank in range(len(shares))]


class Sum(Generic[T]):
    """A partly summed tree: a binary counter of blocks, of which there are never more than log2(leaves) + 1.

    `add(left, right)` returns their sum and may reuse the memory of either.
    """

    def __init__(self, add: Callable[[T, T], T]) -> None:
        self._add = add
        self.blocks: list[tuple[Block, T]] = []

    def push(self, block: Block, value: T) -> None:
        """Join a block to the right end, and sum every pair of siblings that this completes."""
        start, level = block
        while self.blocks and self.blocks[-1][0] == (start - (1 << level), level) and (start >> level) & 1:
            (start, _), left = self.blocks.pop()
            value, level = self._add(left, value), level + 1
        self.blocks.append((Block(start, level), value))

    def total(self) -> T:
        """The whole tree's sum, once every leaf has been pushed; what is left over on the right joins last."""
        total = self.blocks[-1][1]
        for _, left in reversed(self.blocks[:-1]):
            total = self._add(left, total)
        self.blocks.clear()
        return total


def blocks_of(leaves: Iterable[int]) -> list[Block]:
    """The tree's own blocks that make up some leaves, left to right."""
    counter: Sum[None] = Sum(lambda left, right: None)
    for leaf in leaves:
        counter.push(Block(leaf, 0), None)
    return [block for block, _ in counter.blocks]


@functools.lru_cache(maxsize=256)
def rounds_of(blocks: tuple[Block, ...], num_leaves: int) -> tuple[list[list[tuple[int, int]]], list[tuple[Block, int]]]:
    """How to add up blocks, given left to right, with as few steps one after the other as the tree allows.

    Returns for each step the pairs of places whose values can be added side by side, the right one to the left one, and what
    there is then: blocks, each with the place of its value. Where nothing stands to the right of one it is called by the
    largest block that ends in it, so that of all the tree's blocks one is left.
    """
    rounds: list[list[tuple[int, int]]] = []
    found: list[tuple[Block, int, int]] = []  # each with the place of its value, and the steps before it is there
    for place, (start, level) in enumerate(blocks):
        steps = 0
        while start or 1 << level < num_leaves:
            if start >> level & 1:
                if not found or found[-1][0] != (start - (1 << level), level):
                    break
                (start, _), left, steps_there = found.pop()
                steps = max(steps, steps_there)
                rounds += [[] for _ in range(steps + 1 - len(rounds))]
                rounds[steps].append((left, place))
                place, steps = left, steps + 1
            elif start + (1 << level) < num_leaves:
                break
            level += 1
        found.append((Block(start, level), place, steps))
    return rounds, [(block, place) for block, place, _ in found]


def add_in_rounds(rounds: list[list[tuple[int, int]]], values: list[torch.Tensor], in_place: bool = True) -> None:
    """Add up as `rounds_of` says, one kernel a round; without `in_place` the tensors given stay, and the list is changed."""
    for pairs in rounds:
        left, right = [values[place] for place, _ in pairs], [values[other] for _, other in pairs]
        if in_place:
            torch._foreach_add_(left, right)
            continue
        for (place, _), added in zip(pairs, torch._foreach_add(left, right), strict=True):
            values[place] = added


def tree_sum(leaves: torch.Tensor) -> torch.Tensor:
    """The tree's sum over the first dimension, all pairs of a level at once: (num_leaves, …) to (…)."""
    while len(leaves) > 1:
        even = len(leaves) // 2 * 2
        paired = leaves[0:even:2] + leaves[1:even:2]
        leaves = torch.cat([paired, leaves[even:]]) if even < len(leaves) else paired
    return leaves[0]

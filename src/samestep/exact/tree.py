"""One binary tree over the leaves of a step, and its sum from any contiguous split of them.

The tree pairs leaves 0 and 1, 2 and 3, …, then the pairs, and so on; what is left over on the right joins last. Its shape
depends on the number of leaves alone. A rank that holds leaves a to b can sum the tree's own blocks that lie inside
[a, b); the rest of the tree needs only those blocks, in order. This module knows nothing of processes or of DDP.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Block(NamedTuple):
    """The 2**level leaves that begin at `start`, a multiple of their number."""

    start: int
    level: int


def cuts(num_leaves: int, world_size: int) -> list[int]:
    """Where each rank's contiguous share of the leaves begins; world_size + 1 numbers, the last being num_leaves."""
    return [rank * num_leaves // world_size for rank in range(world_size + 1)]


def contiguous(num_leaves: int, leaf_size: int, world_size: int) -> list[range]:
    """Each rank's micro-batches of a step, where each has neighbouring leaves; a leaf is `leaf_size` micro-batches."""
    starts = [cut * leaf_size for cut in cuts(num_leaves, world_size)]
    return [range(start, stop) for start, stop in itertools.pairwise(starts)]


def dealt(num_leaves: int, leaf_size: int, world_size: int) -> list[list[int]]:
    """Each rank's micro-batches of a step, where leaves are dealt like cards: in each round the ranks have neighbouring ones.

    All have equally many; those beyond the last leaf count for nothing.
    """
    rounds = -(-num_leaves // world_size)
    leaves = [range(rank, rounds * world_size, world_size) for rank in range(world_size)]
    return [[leaf * leaf_size + place for leaf in own for place in range(leaf_size)] for own in leaves]


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


def tree_sum(leaves: torch.Tensor) -> torch.Tensor:
    """The tree's sum over the first dimension, all pairs of a level at once: (num_leaves, …) to (…)."""
    while len(leaves) > 1:
        even = len(leaves) // 2 * 2
        paired = leaves[0:even:2] + leaves[1:even:2]
        leaves = torch.cat([paired, leaves[even:]]) if even < len(leaves) else paired
    return leaves[0]

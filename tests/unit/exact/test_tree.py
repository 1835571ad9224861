"""The tree gives one sum, to the bit, from any contiguous split of its leaves."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.exact import Block, Sum, blocks_of, cuts, dealt, in_order, padded, tree_sum


def leaves_of(num: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-6, 6, (num, 1), generator=generator)
    return torch.randn(num, 5, generator=generator) * scale


def partial(leaves: torch.Tensor, start: int, stop: int) -> Sum[torch.Tensor]:
    counter: Sum[torch.Tensor] = Sum(torch.Tensor.add)
    for leaf in range(start, stop):
        counter.push(Block(leaf, 0), leaves[leaf])
    return counter


@given(num=st.integers(1, 64), world_size=st.integers(1, 64), seed=st.integers(0, 1000))
def test_any_split_gives_the_single_process_sum(num: int, world_size: int, seed: int) -> None:
    world_size = min(num, world_size)
    leaves, share = leaves_of(num, seed), cuts(num, world_size)
    whole: Sum[torch.Tensor] = Sum(torch.Tensor.add)
    for rank in range(world_size):
        mine = partial(leaves, share[rank], share[rank + 1])
        assert [block for block, _ in mine.blocks] == blocks_of(range(share[rank], share[rank + 1]))
        for block, value in mine.blocks:
            whole.push(block, value)
    alone = partial(leaves, 0, num).total()
    assert torch.equal(whole.total(), alone)
    assert torch.equal(tree_sum(leaves), alone)


@given(num=st.integers(1, 64), nodes=st.integers(1, 6), each=st.integers(1, 6), leaf_size=st.integers(1, 3))
def test_nodes_deal_each_leaf_once_and_all_ranks_have_as_many(num: int, nodes: int, each: int, leaf_size: int) -> None:
    layout = [[place * nodes + node for place in range(each)] for node in range(nodes)]  # ranks dealt to nodes like cards
    shares, starts = dealt(num, leaf_size, layout), cuts(num, nodes)
    assert len({len(share) for share in shares}) == 1
    counted = sorted(index for share in shares for index in share if index < num * leaf_size)
    assert counted == list(range(num * leaf_size))
    for ranks, (start, stop) in zip(layout, itertools.pairwise(starts), strict=True):
        for leaves in zip(*(shares[rank][::leaf_size] for rank in ranks), strict=True):  # round by round
            real = [leaf // leaf_size for leaf in leaves if leaf < num * leaf_size]
            assert real == list(range(real[0], real[0] + len(real))) if real else True
            assert all(start <= leaf < stop for leaf in real)


@given(num=st.integers(1, 200))
def test_no_more_blocks_are_kept_than_the_logarithm(num: int) -> None:
    assert len(blocks_of(range(num))) <= num.bit_length()


def test_the_order_of_the_sum_shows_in_its_bits() -> None:
    leaves = leaves_of(64, 0)
    forward = leaves[0]
    for leaf in leaves[1:]:
        forward = forward + leaf
    assert not torch.equal(tree_sum(leaves), forward)


@given(num=st.integers(1, 20), world_size=st.integers(1, 20))
def test_padding_for_the_message_is_no_row(num: int, world_size: int) -> None:
    rows, starts = leaves_of(num, 0), cuts(num, min(num, world_size))
    shares = [
        padded(rows[start:stop], max(b - a for a, b in itertools.pairwise(starts)))
        for start, stop in itertools.pairwise(starts)
    ]
    assert torch.equal(in_order(torch.stack(shares), starts), rows)

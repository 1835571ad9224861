"""Ranks of a node add up among themselves: the tree's bits, and what a ring over nodes would send."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_ranks import Simulation, blocks_of_ranks, fewest_sent, in_nodes
from torch.utils._python_dispatch import TorchDispatchMode

from samestep.exact import Block, cuts, tree_sum
from samestep.exact.nodes import Plan
from samestep.exact.route import Route
from samestep.exact.tree import add_in_rounds, rounds_of

NODES = st.one_of(
    st.builds(lambda nodes, ranks: [ranks] * nodes, st.integers(2, 8), st.integers(2, 8)),
    st.lists(st.integers(1, 8), min_size=2, max_size=8).filter(lambda sizes: max(sizes) > 1),
)


def plan_of(sizes: list[int], num_leaves: int) -> Plan:
    return Plan(in_nodes(sizes), blocks_of_ranks(num_leaves, sum(sizes)))


@settings(max_examples=60)
@given(
    sizes=NODES,
    more=st.integers(0, 90),
    size=st.sampled_from([1, 7, 64, 1000, 2311]),
    turn=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_rank_of_any_nodes_has_the_trees_sum(sizes: list[int], more: int, size: int, turn: bool, seed: int) -> None:
    nodes = in_nodes(sizes)
    if turn:  # ranks dealt to nodes like cards
        dealt = [node for place in range(max(sizes)) for node, ranks in enumerate(sizes) if place < ranks]
        nodes = [[rank for rank, node in enumerate(dealt) if node == wanted] for wanted in range(len(sizes))]
    simulation = Simulation(nodes, sum(sizes) + more, size, seed)
    assert simulation.is_right
    if size > 2000:  # chunks are nearly equal
        assert simulation.sent_by_nodes() == pytest.approx(simulation.plan.sent(), abs=0.1 * max(simulation.plan.sent()))


@settings(max_examples=25)
@given(nodes=st.integers(2, 12), ranks=st.sampled_from([2, 4, 8]), leaves=st.sampled_from([1, 2, 8]))
def test_what_leaves_a_node_is_counted_to_be_a_rings(nodes: int, ranks: int, leaves: int) -> None:
    simulation = Simulation(in_nodes([ranks] * nodes), nodes * ranks * leaves, nodes * ranks * 8)
    assert simulation.is_right
    assert simulation.sent_by_nodes() == [2 * (nodes - 1) / nodes] * nodes


@settings(max_examples=30)
@given(nodes=st.integers(2, 128), part=st.floats(1, 2), doublings=st.integers(0, 4))
def test_out_of_a_node_of_eight_goes_what_a_ring_sends(nodes: int, part: float, doublings: int) -> None:
    world_size = 8 * nodes
    for num_leaves in (world_size << doublings, int(part * world_size)):  # a multiple of W or not
        assert max(plan_of([8] * nodes, num_leaves).sent()) <= 2.1, num_leaves
    for num_leaves in (world_size - 3, (world_size - 3) << doublings):  # the last node has less ranks
        assert max(plan_of([8] * (nodes - 1) + [5], num_leaves).sent()) <= 2.5, num_leaves


@settings(max_examples=40)
@given(sizes=st.lists(st.sampled_from([1, 3, 4, 5, 7, 8]), min_size=2, max_size=64), part=st.floats(1, 4))
def test_where_nodes_have_no_whole_blocks_little_more_is_sent_than_must_be(sizes: list[int], part: float) -> None:
    num_leaves = int(part * sum(sizes))
    sent = plan_of(sizes, num_leaves).sent()
    assert sum(sent) / len(sent) <= 1.5 * fewest_sent(in_nodes(sizes), blocks_of_ranks(num_leaves, sum(sizes)))


@settings(max_examples=40)
@given(sizes=NODES, more=st.integers(0, 60))
def test_inside_its_node_a_rank_sends_no_more_than_it_would_to_all_ranks(sizes: list[int], more: int) -> None:
    world_size = sum(sizes)
    simulation = Simulation(in_nodes(sizes), world_size + more, 64 * world_size)
    for route in simulation.routes:
        flat = (len(route.plan[route.rank]) + 1) * (world_size - 1) / world_size
        assert route.bytes_sent - route.bytes_out <= flat * simulation.expected.nbytes


@given(num=st.integers(1, 300), world_size=st.integers(1, 64))
def test_blocks_are_added_in_as_few_rounds_as_the_tree_is_deep(num: int, world_size: int) -> None:
    blocks = tuple(block for held in blocks_of_ranks(num, min(num, world_size)) for block in held)
    leaves = torch.randn(num, 3, generator=torch.Generator().manual_seed(num)) * 10.0 ** torch.arange(3)
    values = [tree_sum(leaves[start : start + (1 << level)]).clone() for start, level in blocks]
    rounds, ((whole, place),) = rounds_of(blocks, num)
    assert len(rounds) <= (num - 1).bit_length()
    assert (whole.start, 1 << whole.level >= num) == (0, True)
    given_values = [value.clone() for value in values]
    add_in_rounds(rounds, given_values, in_place=False)
    assert torch.equal(given_values[place], tree_sum(leaves))
    add_in_rounds(rounds, values)
    assert torch.equal(values[place], tree_sum(leaves))


class Additions(TorchDispatchMode):
    """Counts the operators that add."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += "add" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("nodes", "ranks"), [(4, 4), (16, 8)])
def test_a_bucket_is_added_up_by_levels_in_no_more_memory_than_its_own(nodes: int, ranks: int) -> None:
    world_size = nodes * ranks
    with Additions() as additions:
        simulation = Simulation(in_nodes([ranks] * nodes), world_size, 4 * world_size)
    assert simulation.is_right
    expected = world_size.bit_length() - 1  # log2(W)
    assert additions.num == (world_size + 1) * expected  # for each rank, and for the sum that it is held against
    for route in simulation.routes:
        assert route.most_lent < simulation.flats[0].nbytes  # what arrives from its node, and then from the others
        assert route.lent == 0


@given(num=st.integers(2, 1 << 20), most=st.integers(1, 4))
def test_memory_for_what_arrives_serves_again_and_does_not_grow(num: int, most: int) -> None:
    route, like = Route(1, 0, 1, None), torch.zeros(1)
    for size in (num // 2, num, num // 2):
        for taken in [route.take(size, like) for _ in range(most)]:
            assert taken.shape == (size,)
            route.give_back(taken)
    assert sum(map(len, route._free)) == most * num * 4


def test_a_nodes_end_of_the_tree_is_added_up_there() -> None:
    rounds, left = rounds_of((Block(4, 1), Block(6, 0)), 7)
    assert (rounds, left) == ([[(0, 1)]], [(Block(4, 2), 0)])


@given(num=st.integers(1, 3000), world_size=st.integers(1, 300))
def test_shares_differ_by_one_leaf_at_most(num: int, world_size: int) -> None:
    shares = [stop - start for start, stop in itertools.pairwise(cuts(num, world_size))]
    assert sum(shares) == num
    assert max(shares) - min(shares) <= 1

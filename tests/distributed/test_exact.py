"""The sum across real processes equals the single-process tree, to the bit, and never waits for ever."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conftest import ROOT, Workplace

WORKER = str(Path(__file__).parent / "exact_worker.py")


def run(workplace: Workplace, processes: int, *words: str) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    done = workplace.command(sys.executable, "-W", "ignore", *launcher, WORKER, *words, timeout=250)
    assert done.code == 0, done.err[-3000:]


def test_any_world_size_shape_bucket_and_gap_gives_the_single_process_tree(workplace: Workplace) -> None:
    run(workplace, 5, "any")


@pytest.mark.parametrize("nodes", ["aaaa", "aabb", "abbb"])
def test_two_hundred_steps_with_random_delays_end(workplace: Workplace, nodes: str) -> None:
    run(workplace, 4, "delays", "200", nodes)


@pytest.mark.parametrize("processes", [4, 8])
def test_what_leaves_a_node_is_what_a_ring_over_nodes_sends(workplace: Workplace, processes: int) -> None:
    run(workplace, processes, "nodes")


def test_a_model_in_each_node_has_the_single_process_tree_at_a_rings_bytes(workplace: Workplace) -> None:
    run(workplace, 6, "shards")


def test_a_small_message_leaves_a_node_once_whenever_nodes_double(workplace: Workplace) -> None:
    run(workplace, 5, "small")


@pytest.mark.parametrize("processes", [2, 3])
def test_sums_of_equal_models_in_one_backward_do_not_meet(workplace: Workplace, processes: int) -> None:
    run(workplace, processes, "side by side", "20")


@pytest.mark.parametrize("processes", [2, 4])
def test_the_bytes_are_those_of_a_ring_all_reduce(workplace: Workplace, processes: int) -> None:
    run(workplace, processes, "bytes")


def test_the_hook_can_be_forced_on_one_process(workplace: Workplace) -> None:
    run(workplace, 1, "any")


def test_the_example_of_an_own_loop_gives_the_same_bits(workplace: Workplace) -> None:
    example, found = str(ROOT / "examples/own_loop.py"), set()
    for processes in ("1", "3", "4"):
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes)
        done = workplace.command(sys.executable, "-W", "ignore", *launcher, example)
        assert done.code == 0, done.err
        found.add(done.out)
    assert len(found) == 1
    assert len(found.pop().strip()) == 64

"""What a step sends between and inside nodes, counted from the plan that a run would follow, and the time that takes by the
bandwidths and latencies given: `python bench/scaling.py --nodes 16 --gpus 8 --nvlink 450 --network 50 --model 7e9`.

Nothing is measured here. Nothing is hidden behind the backward either: these are the seconds that there are to hide.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass

from samestep.exact.nodes import Plan
from samestep.exact.tree import blocks_of, cuts, rounds_of

_BUCKET_BYTES = 25 << 20


@dataclass
class Machine:
    """Nodes of some GPUs each; bandwidths are one GPU's, in bytes a second and one direction; a latency is a message's."""

    nodes: int
    gpus: int
    nvlink: float
    network: float
    latency_s: float

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    def seconds(self, out: float, inside: float, messages: int) -> float:
        """Of so many bytes out of a node, over the links of all its GPUs, and so many that each GPU sends inside it."""
        return out / (self.gpus * self.network) + inside / self.nvlink + messages * self.latency_s


@dataclass
class Step:
    """A way to train a step: the bytes out of a node, those that a GPU sends inside one, messages one after the other."""

    name: str
    out: float
    inside: float
    messages: int


def steps_of(machine: Machine, model_bytes: float, micro_batches: int, blocks: int) -> list[Step]:
    """Of each way, where a step has so many micro-batches over all ranks; a sharded model is gathered in so many blocks.

    A ring's and FSDP2's bytes are those of Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations" (JPDC 2009), section 3: (W - 1) / W of the whole for a gather or a scatter, twice that for a sum.
    """
    nodes, gpus, ranks = machine.nodes, machine.gpus, machine.ranks
    rounds, all_but_one = math.ceil(micro_batches / ranks), (ranks - 1) / ranks
    here, there = (gpus - 1) / gpus, (nodes - 1) / nodes
    buckets = math.ceil(model_bytes / _BUCKET_BYTES)
    held = _held(machine, micro_batches)
    between = math.ceil(math.log2(nodes)) if nodes > 1 else 0  # the small message
    crosses = 1 if nodes > 1 else 0
    gathers = 3 * blocks * rounds  # of parameters twice, of gradients once
    own = len(blocks_of(range(cuts(micro_batches, nodes)[1])))  # blocks of the tree in a node
    inside, sharded = 2 * all_but_one * model_bytes, 3 * rounds * all_but_one * model_bytes
    in_node = 3 * rounds * here * model_bytes
    return [
        Step("exact", _out(machine, micro_batches) * model_bytes, (held + 1) * here * model_bytes, 2 * buckets + between),
        Step("a ring, as DDP's", crosses * inside, inside, 2 * buckets),
        Step("exact, shard: node", (own + 1) * there * model_bytes, in_node, gathers + 2 * blocks * crosses + between),
        Step("FSDP2, hybrid", 2 * there * model_bytes, in_node, gathers + blocks * crosses),
        Step(
            "exact, shard: true",
            rounds * (2 * crosses * all_but_one + _in_a_round(machine) * there) * model_bytes,
            sharded,
            gathers + between,
        ),
        Step("FSDP2", crosses * sharded, sharded, gathers),
    ]


def _plan(machine: Machine, micro_batches: int) -> Plan:
    nodes = [list(range(node * machine.gpus, (node + 1) * machine.gpus)) for node in range(machine.nodes)]
    blocks = [blocks_of(range(start, stop)) for start, stop in itertools.pairwise(cuts(micro_batches, machine.ranks))]
    return Plan(nodes, blocks)


def _out(machine: Machine, micro_batches: int) -> float:
    """Of the gradients, what a node sends to others at most."""
    if machine.nodes == 1:
        return 0.0
    if machine.gpus == 1:
        starts = cuts(micro_batches, machine.ranks)
        most = max(len(blocks_of(range(start, stop))) for start, stop in itertools.pairwise(starts))
        return (most + 1) * (machine.ranks - 1) / machine.ranks
    return max(_plan(machine, micro_batches).sent())


def _in_a_round(machine: Machine) -> int:
    """The blocks of the tree that a node's leaves of one round are, at most: its ranks add these up first."""
    starts = range(0, machine.ranks, machine.gpus)
    return max(len(blocks_of(range(start, start + machine.gpus))) for start in starts)


def _held(machine: Machine, micro_batches: int) -> int:
    """The blocks that a rank has of a step, at most."""
    return max(len(blocks_of(range(start, stop))) for start, stop in itertools.pairwise(cuts(micro_batches, machine.ranks)))


def kernels(machine: Machine, micro_batches: int) -> int:
    """That add up a bucket on one GPU."""
    blocks = [
        b for start, stop in itertools.pairwise(cuts(micro_batches, machine.ranks)) for b in blocks_of(range(start, stop))
    ]
    return len(rounds_of(tuple(blocks), micro_batches)[0])


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--nvlink", type=float, default=450, help="GB/s of a GPU to the others of its node")
    parser.add_argument("--network", type=float, default=50, help="GB/s of a GPU out of its node")
    parser.add_argument("--latency", type=float, default=20, help="microseconds of a message")
    parser.add_argument("--model", type=float, default=7e9, help="parameters, of which a gradient has four bytes each")
    parser.add_argument("--blocks", type=int, default=32, help="in which a sharded model is gathered")
    parser.add_argument("--micro-batches", type=int, help="of a step, over all GPUs; by default one each")
    found = parser.parse_args(words)
    machine = Machine(found.nodes, found.gpus, found.nvlink * 1e9, found.network * 1e9, found.latency * 1e-6)
    micro_batches = found.micro_batches or machine.ranks
    if micro_batches < machine.ranks:
        parser.error(f"--micro-batches: found {micro_batches}; write {machine.ranks} or more, one for each GPU")
    model_bytes = 4 * found.model
    print(
        f"\n| {found.nodes} nodes of {found.gpus}, {micro_batches} micro-batches | out of a node | a GPU inside it | seconds |"
    )
    print("|---|---|---|---|")
    for step in steps_of(machine, model_bytes, micro_batches, found.blocks):
        seconds = machine.seconds(step.out, step.inside, step.messages)
        print(f"| {step.name} | {step.out / 1e9:,.1f} GB | {step.inside / 1e9:,.1f} GB | {seconds:.3f} |")
    print(f"\nA bucket of the exact sum is added up by {kernels(machine, micro_batches)} kernels on a GPU.")

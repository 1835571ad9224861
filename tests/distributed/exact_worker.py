"""One rank of the tests of the sum itself: torchrun starts it, `test_exact.py` says what to do."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from samestep.exact import (
    OrderedSum,
    ShardedModel,
    ShardedSum,
    buckets,
    cuts,
    everyone,
    exchange_bytes,
    gather,
    nodes,
    totals,
    transfer,
)
from samestep.runtime import shared_memory

SHAPES = [(3,), (7, 5), (2, 3, 3, 3), (1,), (64, 33), (8, 4, 1, 1)]


class Given(nn.Module):
    """Parameters whose gradients are whatever the test says: the loss is Σ parameter × constant."""

    def __init__(self, shapes: list[tuple[int, ...]], channels_last: bool) -> None:
        super().__init__()
        made = [torch.zeros(shape) for shape in shapes]
        if channels_last:
            made = [tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for tensor in made]
        self.list = nn.ParameterList(nn.Parameter(tensor) for tensor in made)

    def forward(self, constants: list[torch.Tensor | None]) -> torch.Tensor:
        terms = [(p * c).sum() for p, c in zip(self.list, constants, strict=True) if c is not None]
        return torch.stack(terms).sum() if terms else self.list[0].sum() * 0


def constants_of(model: Given, index: int, seed: int, missing: float) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed * 1000 + index)
    drawn: list[torch.Tensor | None] = []
    for parameter in model.list:
        scale = 10.0 ** torch.randint(-5, 6, (), generator=generator)
        value = torch.randn(parameter.shape, generator=generator) * scale
        value[torch.rand(parameter.shape, generator=generator) < 0.1] = -0.0
        drawn.append(None if torch.rand((), generator=generator) < missing else value)
    if all(value is None for value in drawn):
        drawn[0] = torch.ones(model.list[0].shape)
    return drawn


def step(
    ordered: OrderedSum, model: nn.Module, bare: Given, seed: int, missing: float, empty: int
) -> list[torch.Tensor | None]:
    bare.zero_grad()
    for index in ordered.share:
        with ordered.micro_batch(index):
            loss = model(constants_of(bare, index, seed, missing))
            ordered.connect(loss, counts=index != empty).backward()
    ordered.finish()
    return [parameter.grad for parameter in bare.list]


def equal(mine: list[torch.Tensor | None], other: list[torch.Tensor | None]) -> bool:
    def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
        if a is None or b is None:
            return a is b
        return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))  # -0 is not 0 here

    return all(same(a, b) for a, b in zip(mine, other, strict=True))


def stand_in(names: str) -> None:
    """From here on the ranks stand in nodes of these names."""
    os.environ["_SAMESTEP_NODE"] = names[dist.get_rank()]
    nodes._known.clear()


def check_any_case(groups: list[Any]) -> None:
    @settings(max_examples=80, deadline=None, derandomize=True, database=None)
    @given(
        world_size=st.integers(1, len(groups)),
        more=st.integers(0, 9),
        leaf_size=st.sampled_from([1, 1, 2, 3]),
        shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=7),
        cap=st.sampled_from([0.0001, 0.001, 25.0]),
        channels_last=st.booleans(),
        part=st.sampled_from([3, 1 << 19]),
        way=st.sampled_from(["near", "gathered", "apart"]),
        missing=st.sampled_from([0.0, 0.3]),
        has_empty=st.booleans(),
        is_ddp=st.booleans(),
        names=st.sampled_from(["aaaaa", "aaaaa", "aabbb", "abbbb", "abcca", "abcde"]),
        seed=st.integers(0, 10**6),
    )
    def case(
        world_size: int, more: int, leaf_size: int, shapes: list[tuple[int, ...]], cap: float, channels_last: bool,
        part: int, way: str, missing: float, has_empty: bool, is_ddp: bool, names: str, seed: int,
    ) -> None:  # fmt: skip
        if dist.get_rank() >= world_size:
            return
        transfer._MESSAGE_ELEMENTS = part  # small ones go by messages too, in many parts
        transfer._SHARED_ELEMENTS = 1 << 21 if way == "near" else 0
        transfer._GATHERED_ELEMENTS = 0 if way == "apart" else 1 << 15
        shared_memory._IS_FIT = way == "near"
        stand_in(names)
        micro_batches = (world_size + more) * leaf_size
        empty = micro_batches - 1 if has_empty and micro_batches > 1 else -1
        alone, bare = Given(shapes, channels_last), Given(shapes, channels_last)
        expected = step(OrderedSum(alone, micro_batches, world_size + more), alone, alone, seed, missing, empty)
        buckets._FIRST_BYTES = buckets._BYTES = int(cap * (1 << 20))
        wrapped: nn.Module = bare
        if is_ddp:
            wrapped = DistributedDataParallel(
                bare, process_group=groups[world_size - 1], forward_sync_buffers=False, init_sync=False
            )
        ordered = OrderedSum(wrapped, micro_batches, world_size + more, groups[world_size - 1])
        for number in range(2):
            found = step(ordered, wrapped, bare, seed, missing, empty)
            assert equal(found, expected), (world_size, micro_batches, number)

    case()


def check_delays(steps: int, names: str) -> None:
    """Random delays between backward and the hook, and between its collectives: nothing may wait for ever.

    The larger buckets go by messages, the smaller ones by collectives, the smallest everywhere at once.
    """
    transfer._MESSAGE_ELEMENTS, transfer._GATHERED_ELEMENTS, transfer._SHARED_ELEMENTS = 1024, 500, 500
    stand_in(names)
    shapes: list[tuple[int, ...]] = [(64, 33), (33, 64), (64, 64), (7, 5), (64, 33)]
    bare, alone = Given(shapes, False), Given(shapes, False)
    buckets._FIRST_BYTES = buckets._BYTES = 5000
    ordered = OrderedSum(bare, 8, group=everyone())
    assert ordered.exchange is not None
    send, delays = ordered.exchange._send_next, random.Random(dist.get_rank())
    sent = 0

    def late() -> None:
        nonlocal sent
        sent += 1
        time.sleep(delays.random() * 0.004)
        send()

    ordered.exchange._send_next = late  # type: ignore[method-assign]
    reference = OrderedSum(alone, 8)
    for number in range(steps):
        found = step(ordered, bare, bare, number, 0.0, -1)
        if number % 20 == 0:
            assert equal(found, step(reference, alone, alone, number, 0.0, -1)), number
    assert sent >= 3 * steps


def check_bytes() -> None:
    """Bytes sent per step are those of a ring all-reduce when every rank holds one block, and memory is bounded."""
    bare = Given([(64, 64), (64, 64)], False)
    world_size = dist.get_world_size()
    sizes = (world_size, 2 * world_size, 4 * world_size)
    for part, micro_batches in itertools.product((1024, 1 << 19), sizes):
        transfer._MESSAGE_ELEMENTS, transfer._GATHERED_ELEMENTS, transfer._SHARED_ELEMENTS = part, 0, 0
        ordered = OrderedSum(bare, micro_batches, group=everyone())
        assert ordered.exchange is not None
        assert cuts(micro_batches, world_size)[1] == micro_batches // world_size
        step(ordered, bare, bare, 0, 0.0, -1)
        held = sum(map(len, ordered.exchange.route._free))  # for what arrives
        assert held <= exchange_bytes(2 * 64 * 64 * 4, micro_batches, world_size) - 2 * 64 * 64 * 4
        ring = 2 * (world_size - 1) / world_size * 2 * 64 * 64 * 4
        assert ordered.exchange.route.bytes_sent == ring, (micro_batches, ordered.exchange.route.bytes_sent / ring)


def check_nodes() -> None:
    """Bytes out of a node are those of a ring over nodes, where a rank sends inside what it would send to all."""
    bare = Given([(64, 64), (64, 64)], False)
    world_size = dist.get_world_size()
    transfer._GATHERED_ELEMENTS = transfer._SHARED_ELEMENTS = 0
    stand_in("ab" * (world_size // 2))  # ranks dealt to nodes like cards,
    step(OrderedSum(bare, world_size, group=everyone()), bare, bare, 0, 0.0, -1)
    stand_in("aabbccdd"[:world_size])  # and neighbours
    ordered = OrderedSum(bare, 2 * world_size, group=everyone())
    assert ordered.exchange is not None
    found = step(ordered, bare, bare, 0, 0.0, -1)
    alone = Given([(64, 64), (64, 64)], False)
    assert equal(found, step(OrderedSum(alone, 2 * world_size), alone, alone, 0, 0.0, -1))
    route, num_bytes = ordered.exchange.route, 2 * 64 * 64 * 4
    assert route.nodes is not None
    assert route.nodes.nodes == [[rank, rank + 1] for rank in range(0, world_size, 2)]
    out, num_nodes = torch.tensor(route.bytes_out), len(route.nodes.nodes)
    assert out.item() == (num_nodes - 1) / num_nodes * num_bytes  # half of what its node sends
    assert route.bytes_sent - out.item() == num_bytes


def check_shards() -> None:
    """A model in each node has the single process's sums, and out of a node goes at most what a ring over nodes would send."""
    shapes: list[tuple[int, ...]] = [(7, 5), (64, 3), (1,), (40, 8)]
    num_checked = 0
    transfer._GATHERED_ELEMENTS = transfer._SHARED_ELEMENTS = 0
    layouts = [[[0, 1, 2, 3, 4, 5]], [[0, 1, 2], [3, 4, 5]], [[0, 1], [2, 3], [4, 5]], [[0, 3], [1, 4], [2, 5]]]
    one_over = {"aaabbb": 2, "aabbcc": 3, "ababab": 0}  # one model over several nodes: how many, where they add up first
    cases = [("abcdef", layout) for layout in layouts[1:]] + [(names, layouts[0]) for names in ("aaaaaa", *one_over)]
    for (names, layout), (leaves, leaf_size) in itertools.product(cases, ((6, 1), (7, 2), (8, 1), (12, 2), (17, 1))):
        stand_in(names)
        bare, alone = Given(shapes, False), Given(shapes, False)
        group = everyone()
        assert group is not None
        sharded = ShardedModel(bare, [], torch.device("cpu"), group, layout if len(layout) > 1 else None)
        summed = ShardedSum(sharded, leaves * leaf_size, leaves, [shard.local for shard in sharded.shards])
        whole = OrderedSum(alone, leaves * leaf_size, leaves)
        for seed in range(2):
            for index in summed.share:
                summed.begin_micro_batch(index)
                counts = index < leaves * leaf_size
                summed.connect(bare(constants_of(alone, index, seed, 0.0)), counts).backward()
                summed.end_micro_batch(index)
            rows = summed.finish(summed.used)
            expected = step(whole, alone, alone, seed, 0.0, -1)
            cut = [shard.cut(grad) for shard, grad in zip(sharded.shards, expected, strict=True) if grad is not None]
            assert equal(list(rows), list(cut)), (layout, leaves, leaf_size, seed)
        if summed.route is not None and max(map(len, summed.route.plan)) == 1:  # each node's leaves are a block of the tree
            num_checked += 1
            rows_of_each = sum(-(-shape[0] // len(layout[0])) * math.prod(shape[1:]) for shape in shapes)
            piece = -(-rows_of_each // len(layout))  # of a rank's rows, those that it adds up
            assert summed.route.bytes_sent == 2 * 2 * (len(layout) - 1) * piece * 4, (layout, summed.route.bytes_sent)
        num_nodes = one_over.get(names, 0)
        assert (summed.by_nodes is not None) == (num_nodes > 0)
        if summed.by_nodes is not None and leaves == 12 and num_nodes == 3:  # two leaves of a node are a block of the tree
            piece = sum(-(-shape[0] // 6) * math.prod(shape[1:]) for shape in shapes)
            assert summed.by_nodes.bytes_out == 2 * 2 * 2 * piece * 4  # in two steps of two rounds, to two other nodes
            num_checked += 1
    assert num_checked >= 5


def check_small_messages() -> None:
    """All ranks' numbers come to all, in their order; out of a node goes one message more whenever nodes double."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for names, messages in {"aaaaa": 0, "aabbb": 1, "abbab": 1, "abcca": 2, "abcde": 3}.items():
        stand_in(names)
        totals._gathering.clear()
        for number in range(50):
            generator = torch.Generator().manual_seed(number)
            shape = (1 + number % 7, 3)
            everyone = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
            assert torch.equal(gather(everyone[rank]), everyone), (names, number)
        (met,) = totals._gathering.values()
        if not messages:
            assert isinstance(met, shared_memory.Channel)
            continue
        assert isinstance(met, totals.NodeGather)
        is_first = names.index(names[rank]) == rank
        assert met.messages_sent == (50 * messages if is_first else 0), (names, met.messages_sent)
        most = torch.zeros(size, totals._EVERYONES_BYTES // size // 8 + 1, dtype=torch.float64)  # too large for memory
        assert torch.equal(gather(most[rank]), most)
        assert met.messages_sent == (50 * messages if is_first else 0)


def check_side_by_side(steps: int) -> None:
    """Sums of equal models in one backward: each has messages of its own."""
    shapes: list[tuple[int, ...]] = [(7, 5), (5, 7), (64, 3)]
    buckets._FIRST_BYTES = buckets._BYTES = 100
    size = dist.get_world_size()

    def joint(sums: list[OrderedSum], models: list[Given], seed: int) -> list[torch.Tensor | None]:
        for model in models:
            model.zero_grad()
        for index in sums[0].share:
            with contextlib.ExitStack() as stack:
                for ordered in sums:
                    stack.enter_context(ordered.micro_batch(index))
                losses = [
                    ordered.connect(model(constants_of(model, index, seed + place, 0.0)))
                    for place, (ordered, model) in enumerate(zip(sums, models, strict=True))
                ]
                torch.stack(losses).sum().backward()
        for ordered in sums:
            ordered.finish()
        return [parameter.grad for model in models for parameter in model.list]

    given, alone = ([Given(shapes, False) for _ in range(4)] for _ in range(2))
    sums, references = [OrderedSum(model, size, group=everyone()) for model in given], [OrderedSum(m, size) for m in alone]
    for number in range(steps):
        assert equal(joint(sums, given, number), joint(references, alone, number)), number


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if sys.argv[1] == "any":
        check_any_case([dist.new_group(list(range(size))) for size in range(1, dist.get_world_size() + 1)])
    elif sys.argv[1] == "delays":
        check_delays(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "nodes":
        check_nodes()
    elif sys.argv[1] == "shards":
        check_shards()
    elif sys.argv[1] == "small":
        check_small_messages()
    elif sys.argv[1] == "side by side":
        check_side_by_side(int(sys.argv[2]))
    else:
        check_bytes()
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # no teardown: a thread of gloo may hold a tensor until then, wants Python's lock and aborts

"""What the same bits cost: the ordered sum against DDP's own all-reduce, in one interleaved run.

    torchrun --standalone --nproc_per_node 2 bench/exact.py

Prints ratios of median step times, bytes sent over those of a ring all-reduce, copies of the gradients kept, and what a
fingerprint and an audit add to a step. Both sides train the same model on the same rows with the same fused optimizer.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from samestep.exact import OrderedSum, everyone, fingerprint
from samestep.tasks.gpt import GPT

ROUNDS = 60


def small_gpt() -> nn.Module:
    return GPT(context=64, width=128, layers=2, heads=4, dropout=0.0)


def five_million() -> nn.Module:
    return GPT(context=32, width=288, layers=5, heads=4, dropout=0.0)


class Side:
    """One way to sum: a model of its own, and a step."""

    def __init__(self, make: Callable[[], nn.Module], tokens: torch.Tensor, exact: bool, leaves: int | None = None) -> None:
        torch.manual_seed(0)
        self.bare, self.tokens = make(), tokens
        self.model: Any = self.bare if exact else DistributedDataParallel(self.bare, broadcast_buffers=False)
        self.ordered = OrderedSum(self.bare, len(tokens), leaves, everyone()) if exact else None
        share = len(tokens) // dist.get_world_size()
        self.share = range(dist.get_rank() * share, (dist.get_rank() + 1) * share)
        self.optimizer = torch.optim.AdamW(self.bare.parameters(), lr=1e-4, fused=True)
        self.times: list[float] = []
        self.copies = 0.0

    def loss(self, index: int) -> torch.Tensor:
        rows = self.tokens[index]
        return F.cross_entropy(self.model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")

    def step(self) -> None:
        dist.barrier()
        begun = time.perf_counter()
        self.optimizer.zero_grad()
        for index in self.share:
            if self.ordered is not None:
                with self.ordered.micro_batch(index):
                    self.ordered.backward(self.loss(index))
                self.copies = max(self.copies, len(self.ordered._kept.blocks))
            else:
                self.model.require_backward_grad_sync = index == self.share[-1]
                self.loss(index).backward()
        if self.ordered is not None:
            self.ordered.finish([True] * len(list(self.bare.parameters())))
        grads = [p.grad for p in self.bare.parameters() if p.grad is not None]
        torch._foreach_div_(grads, float(self.tokens[..., 1:].numel()))
        self.optimizer.step()
        self.times.append(time.perf_counter() - begun)

    @property
    def median(self) -> float:
        return statistics.median(self.times[5:])


def say(*words: Any) -> None:
    if dist.get_rank() == 0:
        print(*words, flush=True)


def compare(name: str, make: Callable[[], nn.Module], rows: int, length: int, micro_batches: int) -> Side:
    tokens = torch.randint(0, 256, (micro_batches, rows, length + 1), generator=torch.Generator().manual_seed(1))
    plain, exact = Side(make, tokens, False), Side(make, tokens, True)
    sides = [plain, exact]
    for number in range(ROUNDS):
        for side in sides if number % 2 else reversed(sides):
            side.step()
    assert exact.ordered is not None
    assert exact.ordered.exchange is not None
    world_size = dist.get_world_size()
    num_bytes = sum(p.numel() * p.element_size() for p in exact.bare.parameters())
    ring = 2 * (world_size - 1) / world_size * num_bytes * ROUNDS
    bound = math.ceil(math.log2(micro_batches / world_size)) + 1
    pairs = statistics.median(b / a for a, b in zip(plain.times[5:], exact.times[5:], strict=True))
    sent = exact.ordered.exchange.route.bytes_sent / ring
    say(f"{name} V={micro_batches}: exact / plain {exact.median / plain.median:.3f} (pairs {pairs:.3f})")
    say(f"  bytes / ring {sent:.4f}, copies of the gradients kept {exact.copies:.0f} of at most {bound}")
    return exact


def extras(side: Side) -> None:
    """A fingerprint, and an audit every 50 steps, as parts of the step of `side`."""
    grads = [p.grad for p in side.bare.parameters()]
    begun = time.perf_counter()
    for _ in range(20):
        fingerprint(grads)
    one = (time.perf_counter() - begun) / 20
    audits = []
    assert side.ordered is not None
    for _ in itertools.repeat(None, 10):
        begun = time.perf_counter()
        with side.ordered.apart():
            side.loss(side.share[0]).backward()
        fingerprint([p.grad for p in side.bare.parameters()])
        audits.append(time.perf_counter() - begun)
    audit = statistics.median(audits) / 50
    say(f"fingerprint / step {one / side.median:.4f}, audit every 50 steps / step {audit / side.median:.4f}")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for micro_batches in (2, 8):
        side = compare("small GPT, 16 × 64", small_gpt, 16, 64, micro_batches)
    extras(side)
    for micro_batches in (2, 8):
        compare("5 M parameters, 4 × 32", five_million, 4, 32, micro_batches)
    tokens = torch.randint(0, 256, (8, 4, 33))
    bounded = Side(five_million, tokens, True, leaves=dist.get_world_size())
    bounded.step()
    say(f"copies kept at leaves = W: {bounded.copies:.0f}")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # no teardown: a thread of gloo may hold a tensor until then, wants Python's lock and aborts


if __name__ == "__main__":
    main()

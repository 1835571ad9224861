"""What a compiled micro-batch takes outside its kernels: `python bench/compiled_calls.py [ROUNDS]`, a line of JSON each way.

A GPT of twelve blocks so small that its kernels take next to nothing: forward and backward, not compiled, by blocks as samestep
compiles, the whole model as one graph, and one graph with the block as a nested region of it. Interleaved rounds of one process
with one thread; the median milliseconds, by the clock and of the processor, and beside a micro-batch that is not compiled.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import types
from collections.abc import Callable

import torch

from samestep.session.blocks import compile_blocks
from samestep.tasks.gpt import GPT

EACH = 5  # micro-batches a round
CONTEXT, WIDTH, LAYERS, HEADS = 4, 8, 12, 2


def eager(model: GPT) -> Callable[[torch.Tensor], torch.Tensor]:
    return model


def by_blocks(model: GPT) -> Callable[[torch.Tensor], torch.Tensor]:
    compile_blocks(model)
    return model


def whole(model: GPT) -> Callable[[torch.Tensor], torch.Tensor]:
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model, dynamic=False)
    return compiled


def nested(model: GPT) -> Callable[[torch.Tensor], torch.Tensor]:
    region = torch.compiler.nested_compile_region(type(model.blocks[0]).forward)
    for block in model.blocks:
        block.forward = types.MethodType(region, block)
    return whole(model)


def micro_batch(way: Callable[[GPT], Callable[[torch.Tensor], torch.Tensor]]) -> Callable[[], None]:
    """A forward and a backward, as often as one likes."""
    torch.manual_seed(0)
    model = GPT(CONTEXT, WIDTH, LAYERS, HEADS, 0.0)
    forward, parameters = way(model), list(model.parameters())
    x = torch.randint(0, 256, (2, CONTEXT))

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            total = forward(x).float().pow(2).sum()
        total.backward()
        for parameter in parameters:
            parameter.grad = None

    return run


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    ways = {way.__name__: micro_batch(way) for way in (eager, by_blocks, whole, nested)}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for run in ways.values():
        for _ in range(3):
            run()
    for _ in range(rounds):
        for name, run in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(EACH):
                run()
            taken[name].append(((time.perf_counter() - wall) / EACH * 1e3, (time.process_time() - cpu) / EACH * 1e3))
    for name, times in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        beside = statistics.median(a[0] / b[0] for a, b in zip(times, taken["eager"], strict=True))
        print(json.dumps({"way": name, "ms": round(wall, 2), "cpu_ms": round(cpu, 2), "beside_eager": round(beside, 2)}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)

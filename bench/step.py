"""A step of samestep against the loop a beginner writes and Accelerate's own example, in one interleaved run.

    python bench/step.py

One process, one thread. The plain loop has a DataLoader, an optimizer as torch makes it, and `.item()` every step; Accelerate
prepares model, optimizer and loader as its documentation shows. samestep tracks every tenth step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from samestep.config import load_config
from samestep.control import StopFlag
from samestep.loop import train
from samestep.runtime import prepare_environment, read_runtime
from samestep.session import Plans, build, make_accelerator
from samestep.task import Task, load_task
from samestep.tracking import NullTracker

ROOT = Path(__file__).parent.parent
ROUNDS = 9
Runner = Callable[[int], None]


def loader_of(task: Task, size: int) -> DataLoader[Any]:
    dataset = task.data("train")
    assert dataset is not None
    return DataLoader(dataset.with_format("torch"), batch_size=size, shuffle=True)


def endless(loader: Any) -> Any:
    while True:
        yield from loader


def plain(task: Task, config: Any) -> Runner:
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = endless(loader_of(task, config.micro_batch_size))

    def run(steps: int) -> None:
        running = 0.0
        for _ in range(steps):
            optimizer.zero_grad()
            loss, weight = task.loss(model, next(batches))
            (loss / weight).backward()
            optimizer.step()
            running += (loss / weight).item()

    return run


def accelerated(task: Task, config: Any, accelerator: Accelerator) -> Runner:
    bare = task.model()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3)
    model, prepared, loader = accelerator.prepare(bare, optimizer, loader_of(task, config.micro_batch_size))
    batches = endless(loader)

    def run(steps: int) -> None:
        running = 0.0
        for _ in range(steps):
            prepared.zero_grad()
            loss, weight = task.loss(model, next(batches))
            accelerator.backward(loss / weight)
            prepared.step()
            running += (loss / weight).item()

    return run


def samestep(task: Task, config: Any, accelerator: Accelerator) -> Runner:
    plans = Plans(task, accelerator, read_runtime(), StopFlag(), None, ["here"])
    training = build(config, plans, lambda steps: NullTracker())
    training.evaluator = None
    last = 0

    def run(steps: int) -> None:
        nonlocal last
        training.first_step, training.num_steps = last, last + steps
        train(training)
        last += steps

    return run


def compare(name: str, path: str, steps: int, *overrides: str) -> None:
    longest = f"steps={10 * ROUNDS * steps}"
    config, _ = load_config(
        ROOT / path, ["device=cpu", "optimizer={name: adamw, lr: 1e-3}", "epochs=null", longest, *overrides]
    )
    accelerator = make_accelerator(config)
    task = load_task(config.task, config.fields)
    runners = {
        "plain": plain(task, config),
        "accelerate": accelerated(task, config, accelerator),
        "samestep": samestep(task, config, accelerator),
    }
    times: dict[str, list[float]] = {key: [] for key in runners}
    for run in runners.values():
        run(steps)
    for number in range(ROUNDS):
        for key in list(runners) if number % 2 else reversed(runners):
            begun = time.perf_counter()
            runners[key](steps)
            times[key].append((time.perf_counter() - begun) / steps)
    medians = {key: statistics.median(found) for key, found in times.items()}
    ratios = ", ".join(f"{key} {median / medians['plain']:.3f}" for key, median in medians.items())
    print(f"{name} ({medians['plain'] * 1e6:.0f} µs plain): {ratios}", flush=True)


def main() -> None:
    prepare_environment(read_runtime(), 1)
    compare("tiny: Linear 10 → 1, 32 rows", "configs/seed.yaml", 200)
    compare("CNN: digits, 64 rows", "configs/digits.yaml", 40, "micro_batch_size=64")
    compare("GPT: 16 × 64 bytes", "configs/stdlib.yaml", 12, "global_batch_size=16", "schedule={name: constant}")


if __name__ == "__main__":
    main()

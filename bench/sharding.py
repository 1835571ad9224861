"""What sharding saves and what it costs.

    python bench/sharding.py memory      peak memory by rank on 1, 2 and 4 processes, beside the formula of docs/sharding.md
    torchrun --standalone --nproc_per_node 2 bench/sharding.py speed      a step over that of torch's own FSDP2 loop

Both sides of `speed` train the same model on the same rows with the same blocks; torch's averages in its own order.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sharding_tasks import Large
from torch.nn import functional as F

from samestep.config import load_config
from samestep.control import StopFlag, leave_together
from samestep.loop import train
from samestep.runtime import prepare_environment, read_runtime
from samestep.session.accelerator import make_accelerator
from samestep.session.build import Plans, build
from samestep.task.loading import load_task
from samestep.tasks.gpt import GPT
from samestep.tracking import NullTracker

HERE = Path(__file__).parent
MICRO_BATCHES = 4
CONFIG = (
    f"task: {HERE / 'sharding_tasks.py'}:Large\nglobal_batch_size: {MICRO_BATCHES}\nmicro_batch_size: 1\nsteps: 3\n"
    "optimizer: {name: adamw, lr: 1e-4}\ndevice: cpu\ntrack: {wandb: 'off'}\ncheckpoint: {minutes: null}\nclip: 1.0\n"
)
ROUNDS, STEPS = 12, 5


def memory() -> None:
    model = Large().model()
    whole = sum(p.nbytes for p in model.parameters()) / 1e6
    block = sum(p.nbytes for p in model.blocks[0].parameters()) / 1e6  # type: ignore[union-attr,index]
    print(
        f"{whole:,.0f} MB of parameters in {Large().layers} blocks of {block:.1f} MB, V = {MICRO_BATCHES}, MB a rank at most:"
    )
    print("| processes | sharded | measured | the formula |\n|---|---|---|---|")
    for processes, sharded in ((1, False), (2, False), (2, True), (4, False), (4, True)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "large.yaml").write_text(CONFIG)
            words = ["launch", "large.yaml", f"processes={processes}", f"shard={str(sharded).lower()}", "--run", "one"]
            env = {**os.environ, "BENCH_MEMORY": name, "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, "-m", "samestep", *words], cwd=folder, env=env, check=True, capture_output=True)
            peaks = [float(path.read_text().split()[0]) for path in sorted(folder.glob("rank-*"))]
        cut = processes if sharded else 1
        kept = math.ceil(math.log2(MICRO_BATCHES)) + 1 if sharded else math.ceil(math.log2(MICRO_BATCHES / processes)) + 1
        # Parameters, gradients, two moments; blocks of the sum; a block gathered, its gradient, and both ends of its exchange.
        formula = whole * (4 + kept) / cut + (4 * block if sharded else 0) + whole * 3 / cut  # and a checkpoint's copy
        shown = ", ".join(f"{peak:,.0f}" for peak in peaks)
        print(f"| {processes} | {'yes' if sharded else 'no'} | {shown} | {formula:,.0f} |", flush=True)


def speed() -> None:
    from torch.distributed.fsdp import fully_shard

    runtime = read_runtime()
    prepare_environment(runtime, 1)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "text.yaml"
        path.write_text(
            "task: text\nwith: {context: 64, width: 288, layers: 5, heads: 4, shown: 0}\nglobal_batch_size: 16\n"
            "micro_batch_size: 8\nsteps: 100000\noptimizer: {name: adamw, lr: 1e-4}\ndevice: cpu\nshard: true\n"
            "track: {wandb: 'off', every: 10}\ncheckpoint: {minutes: null}\nwatchdog: 0\n"
        )
        config, _ = load_config(path)
    accelerator = make_accelerator(config)
    plans = Plans(load_task(config.task, config.fields), accelerator, runtime, StopFlag(), None, ["here"] * 2)
    run = build(config, plans, lambda steps: NullTracker())
    run.evaluation.evaluator = None
    run.batches.start()

    torch.manual_seed(0)
    model: Any = GPT(context=64, width=288, layers=5, heads=4, dropout=0.0)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    tokens = torch.randint(0, 256, (64, 8, 65), generator=torch.Generator().manual_seed(dist.get_rank()))

    def plain(steps: int) -> None:
        for step in range(steps):
            batch = tokens[step]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            loss.item()

    def ours(steps: int) -> None:
        run.num_steps = run.first_step + steps
        train(run)
        run.first_step = run.num_steps

    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for number in range(ROUNDS):
        sides = [("plain", plain), ("ours", ours)]
        for side, step in sides if number % 2 else reversed(sides):
            dist.barrier()
            begun = time.perf_counter()
            step(STEPS)
            times[side].append((time.perf_counter() - begun) / STEPS)
    ratio = statistics.median(times["ours"][1:]) / statistics.median(times["plain"][1:])
    pairs = [b / a for a, b in zip(times["plain"][1:], times["ours"][1:], strict=True)]
    if runtime.is_main:
        ms = statistics.median(times["plain"][1:]) * 1e3
        print(f"step / FSDP2's own loop ({ms:.0f} ms): {ratio:.3f}, pairs {statistics.median(pairs):.3f}", end=" ")
        print(f"({min(pairs):.2f} to {max(pairs):.2f})", flush=True)
    run.batches.close()
    leave_together()
    os._exit(0)


def main() -> None:
    {"memory": memory, "speed": speed}[sys.argv[1]]()


main()

"""How costs grow with the size of a run: `python bench/scaling.py`, a few minutes, no GPU, one process.

What a thousand ranks ask of the launcher's store is simulated by one process that stands for all of them.
"""

from __future__ import annotations

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from samestep.config import load_config
from samestep.control import StopFlag
from samestep.control.board import StoreBoard
from samestep.loop import train
from samestep.order import Order
from samestep.run_folder import RunFolder
from samestep.runtime import prepare_environment, read_runtime
from samestep.session import Plans, build, make_accelerator
from samestep.task import load_task
from samestep.tracking import NullTracker, cut_back

ROOT = Path(__file__).parent.parent


def median_s(action: Callable[[], object], times: int) -> float:
    """The median of several calls' wall times, in seconds."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def rows() -> None:
    print("\n| rows | to seek to a place and read 64 row numbers | memory beyond the start |\n|---|---|---|")
    rng, before = np.random.default_rng(0), peak_mb()
    for power in range(4, 11):
        size = 10**power

        def seek(size: int = size) -> None:
            start = int(rng.integers(0, size - 64))
            Order(size, seed=0).rows(int(rng.integers(0, 100)), start, start + 64)

        print(f"| 10^{power} | {median_s(seek, 50) * 1e3:.2f} ms | {peak_mb() - before:.1f} MB |")


def micro_batches() -> None:
    """CPU time, for the machine may be busy."""
    print("\n| micro-batches of a step | CPU time a micro-batch, over that of V = 1 |\n|---|---|")
    alone = 0.0
    for count in (1, 2, 4, 8, 16, 32, 64, 128):
        words = ["device=cpu", "epochs=null", "steps=1000000", "with.samples=65536", f"global_batch_size={8 * count}"]
        config, _ = load_config(ROOT / "configs/seed.yaml", [*words, "micro_batch_size=8", "track.every=1000000"])
        accelerator, task = make_accelerator(config), load_task(config.task, config.fields)
        plans = Plans(task, accelerator, read_runtime(), StopFlag(), None, ["here"])
        training = build(config, plans, lambda steps: NullTracker())
        training.evaluator, training.num_steps = None, 0
        found = []
        for _ in range(12):
            training.first_step, training.num_steps = training.num_steps, training.num_steps + 512 // count
            begun = time.process_time()
            train(training)
            found.append((time.process_time() - begun) / 512)
        took = statistics.median(found[2:])
        alone = alone or took
        print(f"| {count} | {took / alone:.2f} |")


def ranks() -> None:
    print("\n| ranks | one rank's beat | one rank reads them all | all but a node of eight |\n|---|---|---|---|")
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    text = json.dumps({"step": 41207, "phase": "meeting the other ranks", "host": "node-0123", "for_s": 1, "beat": 4711})
    for number, size in enumerate((8, 64, 256, 1024)):
        board = StoreBoard("127.0.0.1", server.port, size, start=number)
        for rank in range(size):
            board.write("beat", rank, text)
            if rank >= 8 or size == 8:
                board.write("finished", rank, "41207")
        cells = [
            median_s(lambda board=board: board.write("beat", 0, text), 50),  # type: ignore[misc]
            median_s(lambda board=board: board.read("beat"), 20),  # type: ignore[misc]
            median_s(lambda board=board: board.read("finished"), 20),  # type: ignore[misc]
        ]
        print(f"| {size} | " + " | ".join(f"{cell * 1e3:.2f} ms" for cell in cells) + " |")


def tracked_rows() -> None:
    print("\n| rows of metrics.jsonl | file | a resume cuts it back |\n|---|---|---|")
    for size in (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as name:
            folder = RunFolder(Path(name))
            row = {"epoch": 1, "time": 1795679889.6505475, "loss": 0.123456789, "lr": 1e-3, "grad_norm": 1.23456}
            with folder.metrics.open("w") as file:
                file.writelines(json.dumps({"step": step, **row}) + "\n" for step in range(1, size + 1))
            megabytes = folder.metrics.stat().st_size / 1e6
            took = median_s(lambda folder=folder, size=size: cut_back(folder, size - 5, [], False), 1)  # type: ignore[misc]
        print(f"| {size:,} | {megabytes:.0f} MB | {took:.2f} s |")


def main() -> None:
    prepare_environment(read_runtime(), 1)
    torch.set_num_threads(1)
    for part in (rows, micro_batches, ranks, tracked_rows):
        part()


main()

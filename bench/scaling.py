"""How costs grow with the size of a run: `python bench/scaling.py [FOLDER ON THE DISK TO MEASURE]`, some minutes, no GPU.

What a thousand ranks ask of the launcher's store is simulated by one process that stands for all of them. With `--nodes 16` and
the like it says what a step would send there (`nodes.py`).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nodes
import numpy as np
import torch
import torch.distributed as dist

from samestep.checkpoint import Checkpoints, Saved, capture, read
from samestep.config import load_config
from samestep.control import StopFlag
from samestep.control.board import StoreBoard
from samestep.loop import train
from samestep.randomness.order import Order
from samestep.run.folder import RunFolder
from samestep.runtime import prepare_environment, read_runtime
from samestep.session import Plans, build, make_accelerator
from samestep.task.loading import load_task
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


def heading(*cells: str) -> None:
    print(f"\n| {' | '.join(cells)} |\n{'|---' * len(cells)}|", flush=True)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def rows() -> None:
    heading("rows", "to seek to a place and read 64 row numbers", "memory beyond the start")
    rng, before = np.random.default_rng(0), peak_mb()
    for power in range(4, 11):
        size = 10**power

        def seek(size: int = size) -> None:
            start = int(rng.integers(0, size - 64))
            Order(size, seed=0).rows(int(rng.integers(0, 100)), start, start + 64)

        print(f"| 10^{power} | {median_s(seek, 50) * 1e3:.2f} ms | {peak_mb() - before:.1f} MB |")


def micro_batches() -> None:
    """CPU time, for the machine may be busy."""
    heading("micro-batches of a step", "CPU time a micro-batch, over that of V = 1")
    alone = 0.0
    for count in (1, 2, 4, 8, 16, 32, 64, 128):
        words = ["device=cpu", "epochs=null", "steps=1000000", "with.samples=65536", f"global_batch_size={8 * count}"]
        config, _ = load_config(ROOT / "configs/seed.yaml", [*words, "micro_batch_size=8", "track.every=1000000"])
        accelerator, task = make_accelerator(config), load_task(config.task, config.fields)
        plans = Plans(task, accelerator, read_runtime(), StopFlag(), None, ["here"])
        training = build(config, plans, lambda steps: NullTracker())
        training.evaluation.evaluator, training.num_steps = None, 0
        found = []
        for _ in range(12):
            training.first_step, training.num_steps = training.num_steps, training.num_steps + 512 // count
            begun = time.process_time()
            train(training)
            found.append((time.process_time() - begun) / 512)
        took = statistics.median(found[2:])
        alone = alone or took
        print(f"| {count} | {took / alone:.2f} |")


def processes() -> None:
    """Started as users start them. CPU time, for they share what cores there are."""
    heading("processes, 8 micro-batches a step", "CPU time a step of all, over one process's", "CPU time of a rank's start")
    alone = 0.0
    for size in (1, 2, 4, 8):
        steps = 400
        with tempfile.TemporaryDirectory() as name:
            env = {**os.environ, "BENCH_CLOCK": f"{name}/clock", "BENCH_TICKS": str(steps * 8 // size)}
            env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            Path(name, "timed.yaml").write_text(
                f"task: {ROOT / 'bench/samestep_tasks.py'}:Timed\nwith: {{workload: cnn}}\nsteps: {steps}\n"
                "global_batch_size: 512\nmicro_batch_size: 64\noptimizer: {name: adamw, lr: 0.001}\n"
                "device: cpu\ntrack: {wandb: 'off'}\n"
            )
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size), "-m", "--"]
            words = [*(launcher if size > 1 else ["-m"]), "samestep", "train", "timed.yaml", "--run", "timed"]
            subprocess.run([sys.executable, *words], cwd=name, env=env, check=True, capture_output=True)
            clocks = [json.loads(path.read_text()) for path in Path(name).glob("clock-*.json")]
        spent = sum((c["notes"][-1][2] - c["notes"][5][2]) / (c["notes"][-1][0] - c["notes"][5][0]) for c in clocks) / size
        alone = alone or spent
        print(f"| {size} | {spent / alone:.2f} | {statistics.median(c['second_cpu'] for c in clocks):.2f} s |")


def ranks() -> None:
    heading("ranks", "one rank's beat", "one rank reads them all", "all but a node of eight", "all ranks' last words read")
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
        with tempfile.TemporaryDirectory() as name:
            folder = RunFolder(Path(name))
            folder.logs.mkdir()
            for rank in range(size):
                words = {"rank": rank, "host": "node-0123", "time": 0.0, "paragraph": text, "victim": rank > 0, "blamed": []}
                folder.failure(rank).write_text(json.dumps(words))
            cells.append(median_s(folder.failures, 5))
        print(f"| {size} | " + " | ".join(f"{cell * 1e3:.2f} ms" for cell in cells) + " |")


def checkpoints() -> None:
    """AdamW's: three times the parameters. Read from the page cache."""
    heading("checkpoint", "save, verified and renamed", "read, verified")
    for num_layers in (1, 8, 80):  # of a million parameters
        model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(num_layers)])
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        saved = capture(1, model, optimizer, None, {})
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as name:
            to = Checkpoints(RunFolder(Path(name)), keep=1)

            def save(to: Checkpoints = to, saved: Saved = saved) -> None:
                saved.step += 1
                to.save(saved)

            cells = [median_s(save, 5)]
            path = Path(name) / "checkpoints" / f"step-{saved.step:08d}"
            cells.append(median_s(lambda path=path: read(path), 5))  # type: ignore[misc]
        print(f"| {saved.num_bytes / 1e6:,.0f} MB | " + " | ".join(f"{cell:.3f} s" for cell in cells) + " |")


def tracked_rows() -> None:
    heading("rows of metrics.jsonl", "file", "a resume cuts it back", "samestep status, from the command on")
    for size in (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as name:
            folder = RunFolder(Path(name))
            row = {"epoch": 1, "time": 1795679889.6505475, "loss": 0.123456789, "lr": 1e-3, "grad_norm": 1.23456}
            with folder.metrics.open("w") as file:
                file.writelines(json.dumps({"step": step, **row}) + "\n" for step in range(1, size + 1))
            megabytes = folder.metrics.stat().st_size / 1e6
            took = median_s(lambda folder=folder, size=size: cut_back(folder, size - 5, [], False), 1)  # type: ignore[misc]
            folder.write_state(status="stopped", step=size - 5, num_steps=size)
            words = [sys.executable, "-m", "samestep", "status", name]
            status = median_s(lambda words=words: subprocess.run(words, check=True, capture_output=True), 5)  # type: ignore[misc]
        print(f"| {size:,} | {megabytes:.0f} MB | {took:.2f} s | {status:.2f} s |")


def main() -> None:
    if any(word.startswith("--") for word in sys.argv[1:]):
        nodes.main(sys.argv[1:])
        return
    prepare_environment(read_runtime(), 1)
    torch.set_num_threads(1)
    for part in (rows, micro_batches, processes, ranks, checkpoints, tracked_rows):
        part()


main()

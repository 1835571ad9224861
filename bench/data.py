"""What reading costs: `python bench/data.py`, three minutes on an idle machine with two cores, no GPU.

Rows a second from Parquet files beside `datasets` streaming and memory-mapped Arrow, all shuffled, in one interleaved run; the
share of a step of the demo's GPT that waits for rows; and seeking in a billion rows.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.distributed import split_dataset_by_node

from samestep import Parquet
from samestep.randomness.block_order import BlockOrder
from samestep.sources import make_rows, order_of
from samestep.task import Task
from samestep.tasks.text import Text

FILES, ROWS, GROUP, CONTEXT, BATCH = 8, 30_000, 2_000, 256, 32  # 250 MB; a row group has 2 MB
SECONDS, ROUNDS = 4.0, 3
CACHE = "100MB"  # less than half of the rows: each row group is decoded anew in each epoch

Contender = Callable[[Path, int, int], Iterator[int]]


class Plain(Task):
    pass


class StreamedText(Text):
    """The demo, from Parquet files of its rows."""

    def data(self, split: str) -> Parquet:
        rows = super().data(split)
        path = Path(os.environ["BENCH_FOLDER"]) / f"{split}.parquet"
        if not path.exists():
            assert rows is not None
            pq.write_table(rows.with_format("arrow")[:], path.with_suffix(".half"), row_group_size=5_000)
            path.with_suffix(".half").rename(path)
        return Parquet(path)


def write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(FILES):
        tokens = pa.array(rng.integers(0, 50_000, ROWS * (CONTEXT + 1), dtype=np.int32))
        table = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(tokens, CONTEXT + 1).cast(pa.list_(pa.int32()))})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=GROUP)
    datasets.Dataset.from_parquet([str(path) for path in sorted(folder.glob("*.parquet"))]).save_to_disk(folder / "arrow")


def samestep_parquet(folder: Path, rank: int, size: int) -> Iterator[int]:
    return _read(Parquet(folder / "*.parquet", cache=CACHE, window=16), rank, size)


def mapped_arrow(folder: Path, rank: int, size: int) -> Iterator[int]:
    return _read(datasets.load_from_disk(folder / "arrow"), rank, size)


def _read(source: object, rank: int, size: int) -> Iterator[int]:
    """A rank's micro-batches as a run reads them."""
    rows, order = make_rows(source, Plain(), 0, torch.float32), order_of(source, 0)
    for epoch in range(1_000):
        for start in range(rank * BATCH, order.num_rows - BATCH, size * BATCH):
            yield len(rows.read(order.rows(epoch, start, start + BATCH), epoch)["tokens"])


def streaming(folder: Path, rank: int, size: int) -> Iterator[int]:
    files = [str(path) for path in sorted(folder.glob("*.parquet"))]
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    stream = split_dataset_by_node(stream, rank, size).shuffle(seed=0, buffer_size=10_000).with_format("torch")
    for epoch in range(1_000):
        stream.set_epoch(epoch)
        for batch in stream.iter(batch_size=BATCH):
            yield len(batch["tokens"])


CONTENDERS: dict[str, Contender] = {
    "samestep.Parquet": samestep_parquet,
    "datasets, streaming": streaming,
    "memory-mapped Arrow": mapped_arrow,
}


def rate(contender: Contender, folder: Path, size: int) -> float:
    """Rows a second of all processes together, from each one's first micro-batch on."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def read(rank: int) -> None:
        torch.set_num_threads(1)
        batches = contender(folder, rank, size)
        next(batches)
        begun, rows = time.perf_counter(), 0
        while (taken := time.perf_counter() - begun) < SECONDS:
            rows += next(batches)
        answers.put(rows / taken)
        os._exit(0)

    processes = [context.Process(target=read, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(found))


def rates(folder: Path) -> None:
    print("\n| processes | samestep.Parquet, rows/s | over datasets streaming | over memory-mapped Arrow |\n|---|---|---|---|")
    for size in (1, 2):
        rounds = [{name: rate(contender, folder, size) for name, contender in CONTENDERS.items()} for _ in range(ROUNDS)]
        own = [found["samestep.Parquet"] for found in rounds]
        cells = [f"{statistics.median(own):,.0f}"]
        for name in ("datasets, streaming", "memory-mapped Arrow"):
            ratios = sorted(found["samestep.Parquet"] / found[name] for found in rounds)
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


def waiting(folder: Path) -> None:
    """The share of a step of the demo's GPT in which rank 0 waits for rows."""
    root, env = Path(__file__).parent.parent, {**os.environ, "BENCH_FOLDER": str(folder), "WANDB_MODE": "disabled"}
    print("\n| the demo's GPT on | step | waits for rows |\n|---|---|---|")
    for size in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size), "-m", "--"]
        words = [
            str(root / "configs/stdlib.yaml"),
            f"task={__file__}:StreamedText",
            "steps=150",
            "evaluate.batches=1",
            "with.shown=0",
        ]
        words += [f"runs={folder}/runs", "--run", str(size), "track={every: 1, wandb: 'off'}"]
        start = [sys.executable, *(launcher if size > 1 else ["-m"]), "samestep", "train", *words]
        subprocess.run(start, env=env, check=True, capture_output=True)
        rows = [json.loads(line) for line in (folder / "runs" / str(size) / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "step_s" in row][20:]
        share = sum(row["data_wait_s"] for row in steps) / sum(row["step_s"] for row in steps)
        step_ms = 1e3 * statistics.median(row["step_s"] for row in steps)
        print(f"| {size} process{'es' if size > 1 else ''} | {step_ms:.0f} ms | {share:.2%} |", flush=True)


def seeking() -> None:
    sizes = np.random.default_rng(0).integers(1, 200_000, 10_000)
    tracemalloc.start()
    order = BlockOrder(sizes, 16, 0)
    places = np.random.default_rng(1).integers(0, order.num_rows - 8, 400).tolist()

    def median_ms(epochs: Callable[[int], int]) -> float:
        found = []
        for number, place in enumerate(places):
            begun = time.perf_counter()
            order.rows(epochs(number), place, place + 8)
            found.append(time.perf_counter() - begun)
        return 1e3 * statistics.median(found)

    tracemalloc.stop()
    within, other = median_ms(lambda number: 0), median_ms(lambda number: number)
    tracemalloc.start()
    order = BlockOrder(sizes, 16, 0)
    for number, place in enumerate(places):
        order.rows(number, place, place + 8)
    peak = tracemalloc.get_traced_memory()[1]
    print(f"\n{order.num_rows:,} rows in {len(sizes):,} row groups: a seek takes {within:.2f} ms in an epoch, {other:.2f} ms "
          f"into another, and {peak / 2**20:.1f} MB at most")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        datasets.config.HF_DATASETS_CACHE = Path(name) / "cache"
        datasets.disable_progress_bars()
        write(Path(name))
        seeking()
        rates(Path(name))
        waiting(Path(name))

"""Runs over data that is never here as a whole: from a store with troubles, through kills, on any number of processes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from range_server import RangeServer
from ranks import Ranks

TASK = """
import os, signal
import datasets
import torch
from samestep import Mix, Parquet, Task
from samestep.sources.parquet import store

store._FIRST_WAIT_S = 0.02
datasets.config.HF_DATASETS_CACHE = os.path.abspath("cache")


class Streamed(Task):
    urls: list[str]
    cache: str = "600KB"
    window: int | None = 4
    mixed: bool = False
    width: int = 256

    def data(self, split):
        if split == "eval":
            return Parquet(self.urls[:1], cache=self.cache, window=2)
        source = Parquet(self.urls, cache=self.cache, window=self.window)
        return Mix([(source, 0.75), (Parquet(self.urls[1], cache=self.cache, window=1), 0.25)]) if self.mixed else source

    def model(self):
        return torch.nn.Linear(self.width, 1)

    def loss(self, model, batch):
        if model.training:
            with open(os.environ.get("SEEN", os.devnull), "a") as file:
                file.write(" ".join(map(str, batch["n"].tolist())) + "\\n")
            fuse = os.environ.get("FUSE")
            if fuse and os.environ.get("RANK", "0") == fuse.split(":")[0] and int(fuse.split(":")[1]) in batch["n"].tolist():
                os.kill(os.getpid(), signal.SIGKILL)
        return (model(batch["x"]).squeeze(1) - batch["n"] / 3000).square().sum(), len(batch["n"])
"""
CONFIG: dict[str, Any] = {
    "task": "streamed.py:Streamed", "global_batch_size": 60, "micro_batch_size": 10, "epochs": 1,
    "optimizer": {"name": "adam", "lr": 1e-3}, "evaluate": {"every": 20}, "checkpoint": {"every": 10},
    "track": {"every": 1, "wandb": "off"}, "audit": False,  # each row is to be seen once
}  # fmt: skip


def write(folder: Path, files: int, rows: int, width: int, group: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(files):
        x = rng.standard_normal(rows * width, dtype=np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x), width)
        table = pa.table({"x": lists, "n": pa.array(np.arange(number * rows, (number + 1) * rows))})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=group, compression="none")


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


class Place:
    """A folder with the task, a store beside it, and ways to start runs over it.

    Args:
        fields: of the task, besides the files' addresses.
    """

    def __init__(self, folder: Path, ranks: Ranks, server: RangeServer, files: int, **fields: Any) -> None:
        self.folder, self._ranks = folder, ranks
        (folder / "streamed.py").write_text(TASK)
        fields |= {"urls": [f"{server.url}/{number}.parquet" for number in range(files)]}
        (folder / "run.yaml").write_text(json.dumps({**CONFIG, "with": fields}))

    def start(self, run: str, size: int, *words: str, **env: str) -> list[int]:
        """The exit codes of the ranks."""
        job = {
            "folder": str(self.folder),
            "name": f"said-{run}",
            "world_size": size,
            "words": ["run.yaml", "--run", run, *words],
        }
        answer = self._ranks.ask({**job, "env": env})
        assert not answer["stuck"]
        assert "Traceback" not in "".join(err for _, err in answer["said"]), answer["said"]
        found: list[int] = answer["codes"]
        return found

    def said(self, run: str) -> str:
        return "".join((self.folder / f"said-{run}-0.{name}").read_text() for name in ("out", "err"))

    def weights(self, run: str) -> str:
        state = json.loads((self.folder / "runs" / run / "state.json").read_text())
        assert state["status"] == "done"
        return str(state["weights"])

    def seen(self) -> list[int]:
        """What a start with SEEN=seen.txt trained on, in that order."""
        return [int(number) for line in (self.folder / "seen.txt").read_text().splitlines() for number in line.split()]

    def kept(self) -> list[int]:
        """The bytes of row groups on the disk, of each source that has some."""
        folders = (path for path in (self.folder / "cache/samestep-parquet").glob("rows-*/*") if path.is_dir())
        return [sum(_size(file) for file in folder.glob("*.arrow")) for folder in folders]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def test_rows_from_a_store_in_trouble_train_to_the_same_bits_on_any_number_of_processes_and_through_kills(
    tmp_path: Path, ranks: Ranks
) -> None:
    write(tmp_path / "store", files=4, rows=750, width=256, group=50)  # 3 MB, in 60 row groups of 50 KB
    with RangeServer(tmp_path / "store", share=0.15) as server:
        place = Place(tmp_path, ranks, server, 4)
        assert place.start("one", 1, SEEN="seen.txt") == [0]
        seen = place.seen()
        assert sorted(seen) == list(range(3000))
        assert seen != sorted(seen)
        assert place.start("two", 2, "workers=1") == [0, 0]
        assert -9 in place.start("three", 3, FUSE=f"1:{seen[1710]}")
        assert -9 in place.start("three", 2, FUSE=f"0:{seen[2405]}")
        assert place.start("three", 1) == [0]
        assert place.weights("one") == place.weights("two") == place.weights("three")
        mixed = ("steps=45", "epochs=null", "with.mixed=true")
        assert -9 in place.start("mixed", 2, *mixed, FUSE=f"0:{seen[1000]}")
        assert place.start("mixed", 1, *mixed) == [0]
        assert place.start("mixed-3", 3, *mixed) == [0, 0, 0]
        assert place.weights("mixed") == place.weights("mixed-3") != place.weights("one")
        assert 0 < max(place.kept()) <= 600_000
        asked = [last for command, _, last in server.requests if command == "GET" and last]
        assert len(asked) > 300  # far more than 60 row groups: the cache is too small for them all
        words = place.said("one")
        assert words.count("it is asked again") == 1
        assert "data: train: 4 files, 3000 rows in 60 row groups; up to 600KB of them on each machine's disk" in words
        (tmp_path / "store/3.parquet").write_bytes((tmp_path / "store/2.parquet").read_bytes())
        assert place.start("three", 1, "epochs=2") == [2]
        assert "/3.parquet with the checksum " in place.said("three")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_gigabytes_behind_a_cache_of_200_mb(tmp_path: Path, ranks: Ranks) -> None:
    """Prints its figures: `bash tests/run.sh -m long tests/unit/sources/test_streams.py -s`."""
    write(tmp_path / "store", files=8, rows=125_000, width=512, group=1000)
    assert sum(file.stat().st_size for file in (tmp_path / "store").iterdir()) > 2 * 10**9
    most = [0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            most[0] = max([most[0], *place.kept()])

    with RangeServer(tmp_path / "store", share=0.05) as server:
        place = Place(tmp_path, ranks, server, 8, cache="200MB", window=None, width=512)
        words = ("global_batch_size=3000", "micro_batch_size=500", "evaluate={every: 100, batches: 2}", "checkpoint.every=50")
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        sizes = {"one": [1], "two": [2], "three": [3], "killed": [2, 3, 1]}
        for run, each in sizes.items():
            for number, size in enumerate(each):
                # of which rank the row is: a step's first micro-batch is rank 0's, the third of six rank 1's of three
                is_last, before, began = number == len(each) - 1, len(server.requests), time.monotonic()
                fuse = {} if is_last else {"FUSE": f"{number}:{place.seen()[351_000 * (number + 1) + 1000 * number]}"}
                codes = place.start(run, size, *words, **fuse, **({"SEEN": "seen.txt"} if run == "one" else {}))
                assert set(codes) == {0} if is_last else -9 in codes
                row = json.loads((tmp_path / "runs" / run / "metrics.jsonl").read_text().splitlines()[-2])
                print(f"\n{run}, {size} processes: {time.monotonic() - began:.0f} s, {len(server.requests) - before} requests, "
                      f"at step {row['step']}, at most {most[0] / 1e6:.0f} MB on the disk", flush=True)  # fmt: skip
        ended.set()
        looking.join()
        seen = place.seen()
        assert sorted(seen[:1_000_000]) == list(range(1_000_000))
        assert seen[1_000_000:] == 4 * seen[:500]  # of the last step's micro-batches four have no rows, and count for nothing
        assert most[0] <= 200_000_000
        assert len({place.weights(run) for run in sizes}) == 1
        print(f"weights {place.weights('one')[:16]} in all four")

"""Runs over data that is never here as a whole: from a store with troubles, through kills, on any number of processes."""

from __future__ import annotations

import json
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
from samestep.batches import store

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
    "track": {"every": 1, "wandb": "off"},
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


def weights_of(folder: Path, run: str) -> str:
    state = json.loads((folder / "runs" / run / "state.json").read_text())
    assert state["status"] == "done"
    return str(state["weights"])


def test_rows_from_a_store_in_trouble_train_to_the_same_bits_on_any_number_of_processes_and_through_kills(
    tmp_path: Path, ranks: Ranks
) -> None:
    write(tmp_path / "store", files=4, rows=750, width=256, group=50)  # 3 MB, in 60 row groups of 50 KB
    (tmp_path / "streamed.py").write_text(TASK)
    with RangeServer(tmp_path / "store", share=0.15) as server:
        fields = {"urls": [f"{server.url}/{number}.parquet" for number in range(4)]}
        (tmp_path / "run.yaml").write_text(json.dumps({**CONFIG, "with": fields}))

        def start(run: str, size: int, *words: str, **env: str) -> list[int]:
            job = {
                "folder": str(tmp_path),
                "name": f"said-{run}",
                "world_size": size,
                "words": ["run.yaml", "--run", run, *words],
            }
            answer = ranks.ask({**job, "env": env})
            assert not answer["stuck"]
            assert "Traceback" not in "".join(err for _, err in answer["said"]), answer["said"]
            found: list[int] = answer["codes"]
            return found

        assert start("one", 1, SEEN="seen.txt") == [0]
        seen = [int(number) for line in (tmp_path / "seen.txt").read_text().splitlines() for number in line.split()]
        assert sorted(seen) == list(range(3000))
        assert seen != sorted(seen)
        assert start("two", 2, "workers=1") == [0, 0]
        assert -9 in start("three", 3, FUSE=f"1:{seen[1710]}")
        assert -9 in start("three", 2, FUSE=f"0:{seen[2405]}")
        assert start("three", 1) == [0]
        assert len({weights_of(tmp_path, run) for run in ("one", "two", "three")}) == 1
        mixed = ("steps=45", "epochs=null", "with.mixed=true")
        assert -9 in start("mixed", 2, *mixed, FUSE=f"0:{seen[1000]}")
        assert start("mixed", 1, *mixed) == [0]
        assert start("mixed-3", 3, *mixed) == [0, 0, 0]
        assert weights_of(tmp_path, "mixed") == weights_of(tmp_path, "mixed-3") != weights_of(tmp_path, "one")
        folders = [path for path in (tmp_path / "cache/samestep-parquet").glob("rows-*/*") if path.is_dir()]
        assert folders
        for folder in folders:
            assert sum(file.stat().st_size for file in folder.glob("*.arrow")) <= 600_000
        asked = [last for command, _, last in server.requests if command == "GET" and last]
        assert len(asked) > 300  # far more than 60 row groups: the cache is too small for them all
        words = (tmp_path / "said-one-0.out").read_text() + (tmp_path / "said-one-0.err").read_text()
        assert words.count("it is asked again") == 1
        assert "data: train: 4 files, 3000 rows in 60 row groups; up to 600KB of them on each machine's disk" in words
        (tmp_path / "store/3.parquet").write_bytes((tmp_path / "store/2.parquet").read_bytes())
        answer = ranks.ask(
            {"folder": str(tmp_path), "name": "other", "world_size": 1, "words": ["run.yaml", "--run", "three", "epochs=2"]}
        )
        assert answer["codes"] == [2]
        assert "/3.parquet with the checksum " in answer["said"][0][1]

"""A checkpoint that ranks write their rows of is, byte for byte, the one that a single process writes."""

from __future__ import annotations

import collections
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from samestep.checkpoint import Checkpoints, Saved, SharedCheckpoints, read, sharded, verify
from samestep.checkpoint.state import Cuts
from samestep.control import StoreBoard
from samestep.errors import TrainingError
from samestep.run.folder import RunFolder

WORLD_SIZE = 3
WHOLE = {
    "a.weight": torch.arange(7 * 5, dtype=torch.float32).view(7, 5),
    "b.weight": torch.arange(2, dtype=torch.bfloat16),  # the last rank has none of its rows
    "norm.running_mean": torch.arange(4, dtype=torch.float64),  # a buffer, whole everywhere
}
STATE = {"state.0.step": torch.tensor(3.0), "state.0.exp_avg": WHOLE["a.weight"] + 100}
CUT = {"a.weight", "b.weight", "state.0.exp_avg"}


def rows_of(tensors: dict[str, torch.Tensor], rank: int) -> tuple[dict[str, torch.Tensor], Cuts]:
    rows: dict[str, torch.Tensor] = {}
    cuts: Cuts = {}
    for name, tensor in tensors.items():
        each = -(-len(tensor) // WORLD_SIZE) if name in CUT else 0
        first = min(rank * each, len(tensor)) if name in CUT else 0
        rows[name] = tensor[first : first + each].clone() if name in CUT else tensor
        if name in CUT:
            cuts[name] = (list(tensor.shape), first)
    return rows, cuts


def part(rank: int) -> Saved:
    (weights, weight_cuts), (state, state_cuts) = rows_of(WHOLE, rank), rows_of(STATE, rank)
    return Saved(3, weights, state, {"ties": {}}, None, weight_cuts, state_cuts)


class Ranks:
    """Three ranks' checkpoints of one run, each in a thread."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.folder.create()
        self.folder.continue_start(1)
        self.server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        boards = [StoreBoard("127.0.0.1", self.server.port, WORLD_SIZE, 1) for _ in range(WORLD_SIZE)]
        self.of = [SharedCheckpoints(self.folder, 2, rank, WORLD_SIZE, board) for rank, board in enumerate(boards)]
        self.errors: dict[int, BaseException] = {}

    def save(self, ranks: range = range(WORLD_SIZE)) -> None:
        def one(rank: int) -> None:
            try:
                self.of[rank].save(part(rank))
            except BaseException as error:
                self.errors[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        self.threads = threads

    def join(self) -> None:
        for thread in self.threads:
            thread.join(timeout=20)
            assert not thread.is_alive()


def test_the_files_are_those_of_one_process(tmp_path: Path) -> None:
    alone = RunFolder(tmp_path / "alone")
    alone.create()
    alone.continue_start(1)
    expected = Checkpoints(alone, 2).save(Saved(3, WHOLE, STATE, {"ties": {}}))
    ranks = Ranks(tmp_path / "shared")
    ranks.save()
    ranks.join()
    assert not ranks.errors
    found = ranks.folder.checkpoints / expected.name
    assert verify(found) == 3
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    for name in ("weights.safetensors", "optimizer.safetensors", "manifest.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    assert torch.equal(read(found, mapped=True).weights["a.weight"], WHOLE["a.weight"])
    assert [path.name for path in ranks.folder.checkpoints.iterdir()] == [expected.name]


def test_rows_that_the_disk_holds_otherwise_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(tmp_path)
    write = SharedCheckpoints._write_rows

    def spoilt(self: SharedCheckpoints, path: Path, *found: Any) -> str:
        digest = write(self, path, *found)
        if self._rank == 1 and path.name == "weights.safetensors":
            content = bytearray(path.read_bytes())
            content[-len(WHOLE["norm.running_mean"]) * 8 - 4 - 60] ^= 1  # in the rows of rank 1
            path.write_bytes(content)
        return digest

    monkeypatch.setattr(SharedCheckpoints, "_write_rows", spoilt)
    ranks.save()
    ranks.join()
    assert "rank 1 wrote into weights.safetensors are not what the disk holds" in str(ranks.errors[0])
    assert not [*ranks.folder.checkpoints.glob("*step-*")]


def test_a_rank_that_cannot_write_is_told_and_the_next_save_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(tmp_path)
    write = SharedCheckpoints._write_rows

    def refused(self: SharedCheckpoints, *words: Any) -> str:
        if self._rank == 2 and self._turn == 1:
            raise OSError("no room on its machine")
        return write(self, *words)

    monkeypatch.setattr(SharedCheckpoints, "_write_rows", refused)
    ranks.save()
    ranks.join()
    assert "rank 2 could not write its rows: OSError: no room on its machine" in str(ranks.errors[0])
    assert not [*ranks.folder.checkpoints.glob("*step-*")]
    ranks.errors.clear()
    ranks.save()
    ranks.join()
    assert not ranks.errors
    assert verify(ranks.folder.checkpoints / "step-00000003") == 3


def test_nobody_waits_for_a_rank_that_has_died(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path)
    ranks.save(range(2))
    for checkpoints in ranks.of:
        checkpoints.given_up.set()
    ranks.join()
    assert isinstance(ranks.errors[0], TrainingError)
    assert not [*ranks.folder.checkpoints.glob("*step-*")]


class Counting:
    """A store that counts what it is asked."""

    def __init__(self, store: Any, asked: collections.Counter[str]) -> None:
        self._store, self._asked = store, asked

    def __getattr__(self, name: str) -> Any:
        self._asked[name] += 1
        return getattr(self._store, name)


@pytest.mark.timeout(120)
def test_of_a_thousand_ranks_each_asks_the_store_a_handful_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a save but its files, by as many threads: who waits is told, and asks no second time."""
    number = 1024
    monkeypatch.setattr(sharded, "_SLICE_S", 60.0)  # however slow this machine is
    monkeypatch.setattr(SharedCheckpoints, "_write_rows", lambda *words: "digest")
    monkeypatch.setattr(sharded, "read_parts", lambda *words: ("whole", dict.fromkeys(range(number), "digest")))
    folder = RunFolder(tmp_path)
    folder.create()
    folder.continue_start(1)
    store = dist.HashStore()  # type: ignore[attr-defined]  # in this process: a thousand connections take minutes to make
    asked: collections.Counter[str] = collections.Counter()
    monkeypatch.setattr(dist, "TCPStore", lambda *words, **more: Counting(store, asked))
    ranks = [SharedCheckpoints(folder, 2, rank, number, StoreBoard("", 0, number, 1)) for rank in range(number)]
    errors: list[BaseException] = []

    def save(rank: int, step: int) -> None:
        try:
            ranks[rank].save(Saved(step, {}, {}, {"ties": {}}, None, {}, {}))
        except BaseException as error:
            errors.append(error)

    for step in (3, 4):
        asked.clear()
        keys = store.num_keys()
        threads = [threading.Thread(target=save, args=(rank, step)) for rank in reversed(range(number))]
        for thread in threads[:-1]:
            thread.start()
        while asked["wait"] < number - 1:
            time.sleep(0.01)
        began = time.monotonic()
        threads[-1].start()
        for thread in threads:
            thread.join()
        print(f"a save of {number} ranks: {time.monotonic() - began:.2f} s, {dict(asked)}")
        assert errors == []
        assert sum(asked.values()) <= 4 * number + 8
    assert store.num_keys() - keys <= 4  # ranks write over what they wrote

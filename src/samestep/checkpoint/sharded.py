"""A checkpoint that every rank of a sharded run writes its own rows of, into the same two files: nothing is gathered.

Rank 0 lays the files out, every rank writes its rows where they belong, and rank 0 reads all of it back from the disk before it
writes the manifest. So what stands there is the checkpoint of a run on one process, byte for byte.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import xxhash

from samestep.checkpoint.files import Checkpoints
from samestep.checkpoint.reading import read_parts
from samestep.checkpoint.state import Cuts, Saved
from samestep.checkpoint.tensors import header
from samestep.control import StoreBoard
from samestep.errors import TrainingError
from samestep.exact import row_cuts
from samestep.run.folder import RunFolder

_SLICE_S = 1.0  # of a wait, after which a rank looks whether another has died
_PATIENCE_S = 600.0
_OVER = "over"


class SharedCheckpoints(Checkpoints):
    """`Checkpoints` of a run whose ranks save together: each calls `save` as often as the others.

    Args:
        board: where the ranks tell each other how far a save has come; there is no collective in it. At any number of ranks one
            asks it a handful of times a save: rank 0 posts that all may write, and the last to have written that all have.
    """

    def __init__(self, folder: RunFolder, keep: int, rank: int, world_size: int, board: StoreBoard) -> None:
        super().__init__(folder, keep)
        self._rank, self._world_size, self._board = rank, world_size, board
        self._turn, self._kind = 0, "save"
        self.given_up = threading.Event()  # a rank has died, and the others wait for nobody

    def continue_over(self, board: StoreBoard) -> None:
        """After a death: the next save is the first of those that live, who tell each other over another board."""
        self._board, self._turn, self._kind = board, 0, "rescue"
        self.given_up.clear()

    def save(self, saved: Saved) -> Path:
        """As of `Checkpoints` on rank 0; on any other write this rank's rows, and return once they are on disk."""
        self._turn += 1
        if self._rank == 0:
            try:
                return super().save(saved)
            finally:  # whoever has not begun by now need not: it failed, or the checkpoint stood there already
                with contextlib.suppress(RuntimeError):  # without a store nobody waits there
                    self._board.post(f"save-{self._turn}", _OVER)
        folder = self._folder / self._temporary(saved.step)
        if self._awaited(f"save-{self._turn}", lambda: [0]) == _OVER:
            raise TrainingError("rank 0 needs no rows for it any more")
        try:
            digests = {name: self._write_rows(folder / name, *found) for name, found in saved.files.items()}
        except BaseException as error:
            self._tell({"error": f"{type(error).__name__}: {error}"})
            raise
        self._tell(digests)
        return folder

    def _read_back(self, final: Path) -> None:
        """Rank 0 has done that before it wrote the manifest."""

    def _temporary(self, step: int) -> str:
        return f".step-{step:08d}.start-{self._run.start}.{self._kind}-{self._turn}.tmp"

    def _needed_bytes(self, saved: Saved) -> int:
        return sum(_size(*found) for found in saved.files.values())

    def _write_tensors(self, saved: Saved, folder: Path) -> dict[str, str]:
        for name, (tensors, cuts) in saved.files.items():
            with (folder / name).open("wb") as file:
                file.write(header(_shapes(tensors, cuts)))
                file.truncate(_size(tensors, cuts))
        self._board.post(f"save-{self._turn}", "ready")
        own = {name: self._write_rows(folder / name, *found) for name, found in saved.files.items()}
        self._tell(own)
        self._awaited(f"rows-{self._turn}", lambda: sorted(set(range(self._world_size)) - self._told().keys()))
        everyones = self._told()
        for rank, words in sorted(everyones.items()):
            if "error" in words:
                raise OSError(f"rank {rank} could not write its rows: {words['error']}")
        found = {}
        for name, (tensors, cuts) in saved.files.items():
            lengths = list(self._lengths(tensors, cuts))
            found[name], parts = read_parts(folder / name, len(header(_shapes(tensors, cuts))), lengths)
            for rank, words in sorted(everyones.items()):
                if parts.get(rank, xxhash.xxh3_128().hexdigest()) != words[name]:
                    raise OSError(f"the rows that rank {rank} wrote into {name} are not what the disk holds")
        return found

    def _tell(self, words: dict[str, str]) -> None:
        """Say what this rank wrote, under a key that its next save writes over: a long run must not fill the store."""
        self._board.write("rows", self._rank, json.dumps([self._turn, words]))
        self._board.arrive(f"rows-{self._turn}")

    def _told(self) -> dict[int, dict[str, str]]:
        """What ranks have said in this save."""
        told = {rank: json.loads(text) for rank, text in self._board.read("rows").items()}
        return {rank: words for rank, (turn, words) in told.items() if turn == self._turn}

    def _awaited(self, topic: str, missing: Callable[[], list[int]]) -> str:
        """What is posted there. Raises TrainingError once a rank has died, with those that are `missing`."""
        until = time.monotonic() + _PATIENCE_S
        while (found := self._board.posted(topic, _SLICE_S)) is None:
            if self.given_up.is_set() or time.monotonic() > until:
                raise TrainingError(f"rank {', '.join(map(str, missing()))} did not come to write its rows")
        return found

    def _write_rows(self, path: Path, tensors: dict[str, torch.Tensor], cuts: Cuts) -> str:
        """Write this rank's rows where they belong, durably; returns their checksum. Rank 0's are also what is not cut."""
        digest = xxhash.xxh3_128()
        # To write alone: who may read too has pages read, and written back whole, with a neighbour's rows in them.
        with os.fdopen(os.open(path, os.O_WRONLY), "wb", buffering=0) as file:
            offset = len(header(_shapes(tensors, cuts)))
            for name, tensor in tensors.items():
                shape, first = cuts.get(name, (list(tensor.shape), 0))
                if tensor.numel() and (name in cuts or self._rank == 0):
                    view = tensor.reshape(-1).view(torch.uint8).numpy().data
                    digest.update(view)
                    file.seek(offset + first * (tensor.nbytes // len(tensor) if name in cuts else 0))
                    while view:
                        view = view[file.write(view) :]
                offset += _nbytes(tensor, shape)
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _lengths(self, tensors: dict[str, torch.Tensor], cuts: Cuts) -> Iterator[tuple[int, int]]:
        """Whose bytes follow each other in a file: pairs of a rank and their number."""
        for name, tensor in tensors.items():
            if name not in cuts:
                yield 0, tensor.nbytes
                continue
            shape, _ = cuts[name]
            row_bytes = _nbytes(tensor, [1, *shape[1:]])
            for rank, (start, stop) in enumerate(itertools.pairwise(row_cuts(shape[0], self._world_size))):
                yield rank, (stop - start) * row_bytes


def _shapes(tensors: dict[str, torch.Tensor], cuts: Cuts) -> dict[str, tuple[torch.dtype, list[int]]]:
    return {name: (tensor.dtype, cuts[name][0] if name in cuts else list(tensor.shape)) for name, tensor in tensors.items()}


def _size(tensors: dict[str, torch.Tensor], cuts: Cuts) -> int:
    shapes = _shapes(tensors, cuts)
    return len(header(shapes)) + sum(_nbytes(tensor, shapes[name][1]) for name, tensor in tensors.items())


def _nbytes(tensor: torch.Tensor, shape: list[int]) -> int:
    return tensor.element_size() * torch.Size(shape).numel()

"""A checkpoint that every rank of a sharded run writes its own rows of, into the same two files: nothing is gathered.

Rank 0 lays the files out, every rank writes its rows where they belong, and rank 0 reads all of it back from the disk before it
writes the manifest. So what stands there is the checkpoint of a run on one process, byte for byte.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import xxhash

from samestep.checkpoint.files import Checkpoints
from samestep.checkpoint.reading import read_parts
from samestep.checkpoint.state import Cuts, Saved
from samestep.checkpoint.tensors import header
from samestep.control import Board
from samestep.errors import TrainingError
from samestep.exact import row_cuts
from samestep.run.folder import RunFolder

_POLL_S = 0.05
_PATIENCE_S = 600.0


class SharedCheckpoints(Checkpoints):
    """`Checkpoints` of a run whose ranks save together: each calls `save` as often as the others.

    Args:
        board: where the ranks tell each other how far a save has come; there is no collective in it.
    """

    def __init__(self, folder: RunFolder, keep: int, rank: int, world_size: int, board: Board) -> None:
        super().__init__(folder, keep)
        self._rank, self._world_size, self._board = rank, world_size, board
        self._turn = 0
        self.given_up = threading.Event()  # a rank has died, and the others wait for nobody

    def save(self, saved: Saved) -> Path:
        """As of `Checkpoints` on rank 0; on any other write this rank's rows, and return once they are on disk."""
        self._turn += 1
        if self._rank == 0:
            try:
                return super().save(saved)
            finally:  # whoever has not begun by now need not: it failed, or the checkpoint stood there already
                self._board.write(f"save-{self._turn}", 0, "over")
        folder = self._folder / self._temporary(saved.step)
        self._wait_for(f"save-{self._turn}", {0})
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
        return f".step-{step:08d}.start-{self._run.start}.save-{self._turn}.tmp"

    def _needed_bytes(self, saved: Saved) -> int:
        return sum(_size(*found) for found in saved.files.values())

    def _write_tensors(self, saved: Saved, folder: Path) -> dict[str, str]:
        for name, (tensors, cuts) in saved.files.items():
            with (folder / name).open("wb") as file:
                file.write(header(_shapes(tensors, cuts)))
                file.truncate(_size(tensors, cuts))
        self._board.write(f"save-{self._turn}", 0, "ready")
        own = {name: self._write_rows(folder / name, *found) for name, found in saved.files.items()}
        self._tell(own)
        told = self._wait_for(f"rows-{self._turn}", set(range(self._world_size)))
        everyones = {rank: json.loads(text) for rank, text in told.items()}
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
        self._board.write(f"rows-{self._turn}", self._rank, json.dumps(words))

    def _wait_for(self, topic: str, ranks: set[int]) -> dict[int, str]:
        until = time.monotonic() + _PATIENCE_S
        while True:
            found = self._board.read(topic)
            if found.get(0) == "over":
                raise TrainingError("rank 0 needs no rows for it any more")
            if found.keys() >= ranks:
                return found
            if self.given_up.is_set() or time.monotonic() > until:
                missing = ", ".join(map(str, sorted(ranks - found.keys())))
                raise TrainingError(f"rank {missing} did not come to write its rows")
            time.sleep(_POLL_S)

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

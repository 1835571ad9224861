"""Rows of a source, read here or in a loader process, each with random numbers of its own."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Any

from torch.utils.data import DataLoader, Dataset

from samestep.randomness.seeding import seed_all

_OF_A_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
LOADING = 1  # sets the loading's random numbers apart from the forward's
_LONGEST_FOLDER = 70  # bytes; what multiprocessing appends to it comes to 33, and a socket's path has at most 107 (unix(7))


def begin_worker(worker: int) -> None:
    """A loader process ends when its rank does, and never before: who stops a run may well signal all of its processes.

    It hands its tensors over at a socket in the temporary folder; were that path too long, we would wait for ever.
    """
    for number in _OF_A_STOP:
        signal.signal(number, signal.SIG_IGN)
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"


class _Seeded(Dataset[Any]):
    """A source's rows, each read with random numbers of its own: the same in whatever process."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getitem__(self, number: int) -> Any:
        seed_all(number, 0, 0, LOADING)
        return self._source[number]


def read_some(source: Any, numbers: list[int], apart: bool) -> list[Any]:
    """Rows of a source, read here, or in a process of their own."""
    rows = _Seeded(source)
    if not apart:
        return [rows[number] for number in numbers]
    loader: DataLoader[Any] = DataLoader(
        rows, sampler=numbers, batch_size=None, num_workers=1, collate_fn=_as_they_are, worker_init_fn=begin_worker
    )
    return list(loader)


def _as_they_are(row: Any) -> Any:
    return row

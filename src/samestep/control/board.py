"""A board that every rank can write on without a collective: what it needs is the launcher's store, not the other ranks."""

from __future__ import annotations

import contextlib
import datetime
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch.distributed as dist

from samestep.control.agreement import everyones

_PATIENCE = datetime.timedelta(seconds=5)
_ALIVE_S = 2.0
_CUT_OFF_S = 5.0
_SIGNS = (
    "Connection closed by peer",
    "Connection reset",
    "Connection refused",
    "DistBackendError",
    "Broken pipe",
    "Timed out waiting",
    "Read timeout",
    "Socket Timeout",
)


class Board(Protocol):
    """Short texts by rank, for those who ask."""

    def write(self, topic: str, rank: int, text: str) -> None: ...

    def read(self, topic: str) -> dict[int, str]: ...

    def read_one(self, topic: str, rank: int) -> str | None: ...


class NoBoard:
    """The board of a process without peers."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[int, str]] = {}

    def write(self, topic: str, rank: int, text: str) -> None:
        self._texts.setdefault(topic, {})[rank] = text

    def read(self, topic: str) -> dict[int, str]:
        return self._texts.get(topic, {})

    def read_one(self, topic: str, rank: int) -> str | None:
        return self.read(topic).get(rank)


class StoreBoard:
    """The board in the launcher's store, over a client of its own: a wait on a shared one would hold up the others."""

    def __init__(self, host: str, port: int, world_size: int, start: int) -> None:
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, timeout=_PATIENCE, wait_for_workers=False
        )
        self._world_size, self._prefix = world_size, f"samestep/{start}"

    def write(self, topic: str, rank: int, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # a silent store is a verdict of its own: nobody is read there
            self._store.set(self._key(topic, rank), text)

    def read(self, topic: str) -> dict[int, str]:
        with contextlib.suppress(RuntimeError):
            ranks = self._written(topic, range(self._world_size))
            texts = self._store.multi_get([self._key(topic, rank) for rank in ranks]) if ranks else []
            return {rank: text.decode() for rank, text in zip(ranks, texts, strict=True)}
        return {}

    def read_one(self, topic: str, rank: int) -> str | None:
        key = self._key(topic, rank)
        with contextlib.suppress(RuntimeError):
            return self._store.get(key).decode() if self._store.check([key]) else None
        return None

    def post(self, topic: str, text: str) -> None:
        """Write what is for all, under one key. Raises RuntimeError where the store is gone."""
        self._store.set(f"{self._prefix}/{topic}", text)

    def posted(self, topic: str, within_s: float) -> str | None:
        """What is posted there, once it is: the store says so, and is asked once. None if it is not within so many seconds."""
        until = time.monotonic() + within_s
        try:
            self._store.wait([f"{self._prefix}/{topic}"], datetime.timedelta(seconds=within_s))
            return str(self._store.get(f"{self._prefix}/{topic}").decode())
        except RuntimeError:
            time.sleep(max(0.0, until - time.monotonic()))  # of a store that is gone it comes at once
            return None

    def arrive(self, topic: str) -> None:
        """Once a rank: the last of them posts it. Raises RuntimeError where the store is gone."""
        if self._store.add(f"{self._prefix}/{topic}/arrived", 1) == self._world_size:
            self.post(topic, "all")

    def _key(self, topic: str, rank: int) -> str:
        return f"{self._prefix}/{topic}/{rank}"

    def _written(self, topic: str, ranks: range) -> list[int]:
        """Those who have written: a few questions to the store, which all ranks ask at once after a death, and not one each."""
        if self._store.check([self._key(topic, rank) for rank in ranks]):
            return list(ranks)
        half = len(ranks) // 2
        return self._written(topic, ranks[:half]) + self._written(topic, ranks[half:]) if half else []


class NodeStore:
    """A store for the ranks of one node, which outlives the other nodes. All ranks make theirs together.

    Args:
        node: its ranks; the first has the store.
    """

    def __init__(self, node: Sequence[int], rank: int, start: int) -> None:
        self._num_ranks, self._start, self._store = len(node), start, None
        port = 0
        if rank == node[0]:
            listening = socket.create_server(("127.0.0.1", 0))
            port = listening.getsockname()[1]
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
            )
        self.port = everyones(port)[node[0]]

    def connect(self) -> StoreBoard:
        """The node's board, on which a rank goes by its place there. Raises RuntimeError where the store is gone."""
        return StoreBoard("127.0.0.1", self.port, self._num_ranks, self._start)


def make_board(address: tuple[str, int] | None, world_size: int, start: int) -> Board:
    """The board of a start, given where the launcher's store is; a private one where there is none."""
    if address is None or world_size == 1:
        return NoBoard()
    try:
        return StoreBoard(*address, world_size, start)
    except RuntimeError:
        return NoBoard()


def is_victim(error: BaseException) -> bool:
    """Whether this rank failed only because a peer had: its collective found the other end gone."""
    text = f"{type(error).__name__} {error}"
    return any(sign in text for sign in _SIGNS)


def survivor(board: Board, rank: int, finished: int, claim: Callable[[], bool]) -> bool:
    """Whether this rank is the one to save: the lowest of those alive that have finished the most steps.

    No collective is in it, for a peer is dead: each rank that lives writes its steps on the board, and reads it later.

    Args:
        claim: true for the first caller of all ranks. It decides where the board is silent too, its host having died; that
            takes longer, so that a rank that was cut off comes after those that still hear each other.
    """
    board.write("finished", rank, str(finished))
    time.sleep(_ALIVE_S)
    alive = {other: int(text) for other, text in board.read("finished").items()}
    if rank not in alive:
        time.sleep(_CUT_OFF_S)
        return claim()
    return min(alive, key=lambda other: (-alive[other], other)) == rank and claim()

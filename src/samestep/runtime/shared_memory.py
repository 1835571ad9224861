"""Memory that the ranks of one machine share: small messages go through it without a thread having to wake up.

A gloo collective wakes four threads on its way. On a virtual machine that takes up to a millisecond, which is several times a
small model's whole forward and backward.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import secrets
import sys
import time
import weakref
from collections.abc import Callable

import torch

from samestep.runtime.node import node_name

_LINE = 64  # bytes
_SPIN_S, _YIELD_S = 20e-6, 200e-6  # waiting turns from one to the next, and then to sleeping
_LONGEST_SLEEP_S = 0.002
_LOOK_AFTER_S = 0.05  # whether the others live
_IS_FIT = sys.platform == "linux" and platform.machine() == "x86_64"  # processors that show each other stores in their order


class _Abort:
    """Tears all that wait here out of it; set from another thread."""

    is_set = False
    longest_wait_s = 1800.0  # as a collective's


abort = _Abort()


def offer(num_bytes: int, world_size: int) -> tuple[str, int] | None:
    """Make memory for a `Channel`: an address for the others, and a handle. None where there is no room for it.

    It is a file without a name: however the ranks end, nothing stays behind.
    """
    if not _IS_FIT:
        return None
    name = f"samestep-{secrets.token_hex(16)}"
    try:
        handle = os.memfd_create(name)
    except OSError:
        return None
    try:
        os.posix_fallocate(handle, 0, _size(num_bytes, world_size))  # or a write that finds no room would kill
        return f"{node_name()} /proc/{os.getpid()}/fd/{handle} /memfd:{name}", handle
    except OSError:
        os.close(handle)
        return None


def accept(address: str) -> int | None:
    """A handle of what another rank has offered; None if that is on another machine, or out of reach."""
    node, path, name = address.rsplit(maxsplit=2)
    try:
        if node == node_name() and os.readlink(path).split()[0] == name:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        pass
    return None


def _size(num_bytes: int, world_size: int) -> int:
    return 2 * world_size * (_LINE + _lines(num_bytes))


def _lines(num_bytes: int) -> int:
    return -(-num_bytes // _LINE) * _LINE


class Channel:
    """Messages of all ranks to all ranks, one after the other. A rank may be one ahead, so there are two places for each.

    A rank's message is whole when its mark, on a cache line of its own, says its number. It locks a byte of the file, which
    the system unlocks when it dies.

    Args:
        handle: of what one rank has offered and the others have accepted, for as many bytes and ranks.
        num_bytes: of the longest message.

    Raises OSError where the system gives no lock or no memory.
    """

    def __init__(self, handle: int, num_bytes: int, rank: int, world_size: int) -> None:
        self._handle = handle
        self._rank, self._others = rank, [other for other in range(world_size) if other != rank]
        weakref.finalize(self, os.close, handle)  # which ends the lock
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        memory = mmap.mmap(handle, _size(num_bytes, world_size))
        self._marks = memoryview(memory).cast("Q")
        whole = torch.frombuffer(memory, dtype=torch.uint8)[2 * world_size * _LINE :]
        self._rows = whole.view(2, world_size, -1)
        self._count = 0

    def send(self, *parts: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Send bytes, of as many on every rank: what is returned waits for everyone's, (world_size, bytes), to be read alone.

        They stand until the next message but one is sent.
        """
        self._count += 1
        count, half = self._count, self._count % 2
        rows, end = self._rows[half], 0
        for part in parts:
            start, end = end, end + part.numel()
            rows[self._rank, start:end] = part
        first = half * len(rows)
        own = (first + self._rank) * (_LINE // 8)
        self._marks[own + 1] = end
        self._marks[own] = count

        def received() -> torch.Tensor:
            for other in self._others:
                place = (first + other) * (_LINE // 8)
                if self._marks[place] != count:
                    self._wait(place, count, other)
                if self._marks[place + 1] != end:
                    raise RuntimeError(f"rank {other} has sent {self._marks[place + 1]} bytes, and this one {end}")
            return rows[:, :end]

        return received

    def hear(self, sender: int) -> torch.Tensor:
        """What one rank sends to those that send nothing: (bytes,), to be read alone.

        It stands until that rank sends once more; it must have heard by then that all have read it.
        """
        self._count += 1
        half = self._count % 2
        place = (half * len(self._rows[half]) + sender) * (_LINE // 8)
        if self._marks[place] != self._count:
            self._wait(place, self._count, sender)
        return self._rows[half, sender, : self._marks[place + 1]]

    def _wait(self, place: int, count: int, other: int) -> None:
        begun = looked = time.monotonic()
        while self._marks[place] != count:
            waited = (now := time.monotonic()) - begun
            if self._marks[place] > count:
                raise RuntimeError(f"rank {other} went on before this one had read what it sent")
            if abort.is_set:
                raise RuntimeError("torn out of waiting for another rank: Connection closed by peer")
            if waited > _YIELD_S:
                time.sleep(min(waited / 8, _LONGEST_SLEEP_S))
            elif waited > _SPIN_S:
                os.sched_yield()
            if waited > abort.longest_wait_s:
                raise RuntimeError(f"Timed out waiting for rank {other} after {waited:.0f} s")
            if now - looked > _LOOK_AFTER_S:
                looked = now
                if self._is_dead(other) and self._marks[place] != count:
                    raise RuntimeError(f"rank {other} has ended: Connection closed by peer")

    def _is_dead(self, other: int) -> bool:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, other)
        except OSError:
            return False
        fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, other)
        return True

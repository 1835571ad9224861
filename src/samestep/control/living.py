"""Which ranks live: asked by the watchdog's thread each second, for the main thread may wait for a device that cannot hear."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

import psutil

from samestep.control.board import Board


class Living:
    """Those of this machine are looked at as processes; of the others each rank hears the next one's beats.

    Whoever finds one dead writes it on the board, so that all know a second later. A second's work is the same at any number
    of ranks: this machine's processes, and two short questions to the store.

    Args:
        silent_s: how long the next rank may be silent, where only its beats are heard.
    """

    def __init__(self, board: Board, rank: int, world_size: int, host: str, silent_s: float) -> None:
        self._board, self._rank, self._world_size, self._host, self._silent_s = board, rank, world_size, host, silent_s
        self._near: dict[int, psutil.Process | None] = {}  # None where it was gone already
        self._hosts: dict[int, str] = {}
        self._heard, self._heard_at = "", time.monotonic()

    def announce(self) -> None:
        """Say where this rank is found."""
        own = psutil.Process()
        words = {"machine": _machine(), "pid": own.pid, "created": own.create_time(), "host": self._host}
        self._board.write("process", self._rank, json.dumps(words))

    def dead(self) -> dict[int, str]:
        """The ranks known to be dead, and their hosts; empty while all live, as far as is known."""
        if self._world_size == 1:
            return {}
        if len(self._hosts) < self._world_size:
            self._meet()
        if told := self._board.read_one("dead", 0):
            return {int(rank): str(host) for rank, host in json.loads(told).items()}
        found = {rank: self._hosts[rank] for rank, process in self._near.items() if _has_ended(process)}
        following = (self._rank + 1) % self._world_size
        if following in self._hosts and following not in self._near and self._is_silent(following):
            found[following] = self._hosts[following]
        if found:
            self._board.write("dead", 0, json.dumps(found))
        return found

    def _meet(self) -> None:
        here = _machine()
        for rank, text in self._board.read("process").items():
            words = json.loads(text)
            self._hosts[rank] = words["host"]
            if rank != self._rank and words["machine"] == here and rank not in self._near:
                self._near[rank] = None
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(words["pid"])
                    self._near[rank] = process if process.create_time() == words["created"] else None

    def _is_silent(self, rank: int) -> bool:
        heard = self._board.read_one("beat", rank)
        if heard is None or heard != self._heard:  # a store that says nothing is no sign of anything
            self._heard, self._heard_at = heard or "", time.monotonic()
        return time.monotonic() - self._heard_at > self._silent_s


def _has_ended(process: psutil.Process | None) -> bool:
    with contextlib.suppress(psutil.Error):
        return process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def _machine() -> str:
    """What tells the machines, and the containers on one, apart in which process numbers have a meaning."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()

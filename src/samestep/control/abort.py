"""When a rank is lost its silence looks like patience: those that live must be torn out of the collective they wait in."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
from collections.abc import Iterator, Set
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout, _world

from samestep.control.gate import gate
from samestep.runtime.shared_memory import abort

_ABORT_S = 5.0
_UNHURRIED_S = 30 * 86400.0


def abort_device_collectives() -> None:
    """End what the GPU waits for, if it waits for a peer: else nothing that is queued behind it could be read."""
    gate.shut()
    end_device_waits()


def end_device_waits() -> None:
    """NCCL's abort, which may itself hang: nobody waits long for it."""
    if dist.is_initialized() and "nccl" in dist.get_backend():
        ending = threading.Thread(target=_abort, name="aborting", daemon=True)
        ending.start()
        ending.join(_ABORT_S)


def _abort() -> None:
    """Of all groups at once, each of which has a communicator of its own: one by one they may wait for each other
    (PyTorch issue 119797)."""
    with contextlib.suppress(RuntimeError):
        first, *others = _groups()
        backend: Any = first._get_backend(torch.device("cuda"))
        if others:
            backend._group_start()
        for group in reversed([first, *others]):
            group.abort()
        if others:
            backend._group_end()


def _groups() -> list[dist.ProcessGroup]:
    """Those that this process is in, that of all ranks first."""
    return list(_world.pg_map)


def allow(seconds: float) -> None:
    """Let a collective take so long at least: whoever watches is to speak first, and his patience grows with the step."""
    if seconds > abort.longest_wait_s:
        _wait_at_most(2 * seconds)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Inside, a collective may take as long as it likes: what ranks wait for has no usual time."""
    usual_s = abort.longest_wait_s
    _wait_at_most(_UNHURRIED_S)
    try:
        yield
    finally:
        _wait_at_most(usual_s)


def _wait_at_most(seconds: float) -> None:
    abort.longest_wait_s = seconds
    for group in _groups() if dist.is_initialized() else ():
        _set_pg_timeout(datetime.timedelta(seconds=seconds), group)


def abort_collectives() -> None:
    """Let whoever waits for a GPU's collective, or in memory that ranks share, come out of it."""
    abort_device_collectives()
    abort.is_set = True  # only ranks that are all on one machine wait there


def break_connections(stores: Set[int], loopback: bool = False) -> None:
    """Make every collective of gloo's raise in the thread that waits for it. Stores stay within reach.

    Args:
        stores: their ports.
        loopback: break connections within this machine too.

    gloo (seen with torch 2.13) knows no abort, and notices nothing but its connections' end. A tracker's end too.
    """
    for connection in psutil.Process().net_connections("tcp"):
        ends = [end for end in (connection.laddr, connection.raddr) if end]
        if len(ends) != 2 or not stores.isdisjoint(end.port for end in ends):
            continue
        if loopback or not ends[1].ip.startswith("127."):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as peer:
                peer.shutdown(socket.SHUT_RDWR)

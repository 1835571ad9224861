"""When a node is lost its silence looks like patience: the ranks that live must be torn out of the collective they wait in."""

from __future__ import annotations

import contextlib
import os
import socket

import psutil
import torch.distributed as dist

from samestep.runtime.shared_memory import abort


def abort_device_collectives() -> None:
    """End what the GPU waits for, if it waits for a peer: else nothing that is queued behind it could be read."""
    if dist.is_initialized() and "nccl" in dist.get_backend():
        with contextlib.suppress(RuntimeError):
            dist.group.WORLD.abort()  # type: ignore[union-attr]


def break_collectives(store_port: int | None, loopback: bool = False) -> None:
    """Make every collective under way raise in the thread that waits for it. The launcher's store stays within reach.

    Args:
        loopback: break connections within this machine too.

    NCCL can abort; gloo (seen with torch 2.13) goes on waiting then, and notices nothing but its connections' end.
    """
    abort_device_collectives()
    abort.is_set = True  # only ranks that are all on one machine wait there
    for connection in psutil.Process().net_connections("tcp"):
        ends = [end for end in (connection.laddr, connection.raddr) if end]
        if len(ends) != 2 or store_port in (ends[0].port, ends[1].port):
            continue
        if loopback or not ends[1].ip.startswith("127."):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as peer:
                peer.shutdown(socket.SHUT_RDWR)

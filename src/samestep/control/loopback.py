"""The launcher's store, through which ranks find each other: on one machine it is for that machine alone."""

from __future__ import annotations

import socket
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous as rendezvous

_LOOPBACK = ("127.0.0.1", "localhost")


def keep_stores_to_this_machine() -> None:
    """Have torch's launcher, in this process, listen at 127.0.0.1 where all its ranks are here.

    By itself it listens everywhere, and the store hands what it holds to whoever asks: it knows no password.
    """
    rendezvous.TCPStore = _store  # type: ignore[attr-defined, assignment]


def _store(host: str, port: int, world_size: int, is_master: bool, *rest: Any, **more: Any) -> dist.TCPStore:  # type: ignore[name-defined]
    if is_master and host in _LOOPBACK:
        listening = socket.create_server(("127.0.0.1", port), backlog=1024)
        more |= {"master_listen_fd": listening.detach()}  # the store closes it
    return dist.TCPStore(host, port, world_size, is_master, *rest, **more)  # type: ignore[attr-defined]

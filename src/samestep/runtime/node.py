"""What tells machines apart."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path


def node_name() -> str:
    """The same for the processes of one machine, and another for each that has a network of its own on the same kernel.

    A host's name alone may be that of several; tests make nodes up by _SAMESTEP_NODE.
    """
    if made_up := os.environ.get("_SAMESTEP_NODE"):
        return made_up
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # where there is no Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/net").st_ino))
    return "/".join(parts)

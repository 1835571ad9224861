"""Who it is that saves after a death: one rank that has all of the model, or all ranks of a node that have it among them."""

from __future__ import annotations

import contextlib
import json
import time

from samestep.checkpoint import Saver, SharedSaver
from samestep.control import Board, survivor
from samestep.exact import ShardedModel
from samestep.run.folder import RunFolder
from samestep.runtime import Runtime

_ALL_HERE_S = 15.0  # until each rank of a node has come out of its collective
_CHOSEN_S = 20.0


def is_chosen(
    saver: Saver,
    sharded: ShardedModel | None,
    folder: RunFolder,
    runtime: Runtime,
    board: Board,
    finished: int,
) -> bool:
    """Whether this rank is one of those to save step `finished`. No collective is in it."""
    if runtime.world_size == 1:
        return True
    if sharded is None:
        return survivor(board, runtime.rank, finished, folder.claim_save)
    assert isinstance(saver, SharedSaver)
    assert saver.node is not None
    standing: dict[int, str] = {}
    with contextlib.suppress(RuntimeError):  # its store has died with a rank of it
        node = saver.node.connect()
        node.write("finished", sharded.rank, str(finished))
        until = time.monotonic() + _ALL_HERE_S
        while len(standing := node.read("finished")) < sharded.world_size and time.monotonic() < until:
            time.sleep(0.1)
    if set(standing.values()) != {str(finished)} or len(standing) < sharded.world_size:
        words = "not all ranks of this node" if len(standing) < sharded.world_size else "the ranks of this node do not all"
        print(f"step {finished} is not saved here: {words} hold it. Another node's, or an earlier save stands", flush=True)
        return False
    if sharded.rank == 0:
        node.post("chosen", json.dumps(survivor(board, runtime.rank, finished, folder.claim_save)))
    if node.posted("chosen", _CHOSEN_S) != "true":
        return False
    saver.continue_over(node)
    return True

"""What saves a run: rank 0 alone, or, where each rank has its rows alone, all of them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from samestep.checkpoint import Checkpoints, NoCopies, Saved, Saver, SharedCheckpoints, SharedSaver, Slab, capture, size_of
from samestep.control import NodeStore, StoreBoard, make_board
from samestep.errors import TrainingError, UsageError
from samestep.exact import ShardedModel
from samestep.loop import Training
from samestep.run.best import as_found
from samestep.run.folder import RunFolder
from samestep.runtime import Runtime
from samestep.session.elsewhere import make_copies

_MOST_COPIES = 20
_SAVED_BYTES_PER_S = 200e6  # what a slow disk takes


def make_saver(run: Training, folder: RunFolder, kind: dict[str, str], runtime: Runtime, start: int) -> Saver:
    def best_that_is_kept(step: int) -> int | None:
        """The best by its metric that is on disk; a survivor, which has saved nothing before, asks there."""
        if run.evaluation.best.step is None or run.evaluation.best.step == step or checkpoints.has(run.evaluation.best.step):
            return run.evaluation.best.step
        return run.evaluation.best.saved_step if runtime.is_main else checkpoints.best_step()

    slab = Slab(run.optimizer.device)
    if runtime.is_main or run.sums.sharded is not None:
        slab.reserve(_state_bytes(run))

    def take(step: int) -> Saved:
        proof = run.checks.proof.take(step)  # first: it tries after_step, which may not write what is being copied
        values = {
            "best": run.evaluation.convergence.best,
            "waited": run.evaluation.convergence.waited,
            "evaluations": list(run.evaluation.plateau.counted) if run.evaluation.plateau else [],
            "best_metric": run.evaluation.best.value,
            "best_step": best_that_is_kept(step),
            "owes_evaluation": run.evaluation.is_owed,
            "rows": list(run.reports.tracker.recent),
            "kind": kind,
            "data": run.batches.facts,
        }
        state = _whole_copy(run, step, values, slab)
        state.proof, run.optimizer.copied = proof, state.arrived
        return state

    def saved(state: Saved, longest_s: float) -> None:
        rows = [row for row in state.values["rows"] if "loss" in row]
        loss = rows[-1]["loss"] if rows else None
        folder.write_state(step=state.step, loss=loss, saving_s=round(longest_s, 2), best=_best(run, folder, state))
        run.evaluation.best.saved_step = state.values["best_step"]

    before = folder.read_state()
    stays = _staying(run, before)
    copies = make_copies(run.config, folder, stays, run.reports.tracker.line) if runtime.is_main else NoCopies()

    longest_s = before.get("saving_s") or 2.0 + _state_bytes(run) / _SAVED_BYTES_PER_S
    if runtime.is_main:
        folder.write_state(saving_s=round(longest_s, 2))  # for the launcher, whose patience is longer
    settings, say = run.config.checkpoint, run.reports.tracker.line if runtime.is_main else print
    checkpoints: Checkpoints
    saver: Saver
    if (sharded := run.sums.sharded) is not None:
        board = make_board(runtime.store, sharded.world_size, start)
        if not isinstance(board, StoreBoard):
            raise UsageError("shard: there is no store over which the ranks could save together; start them with torchrun, say")
        checkpoints = shared = SharedCheckpoints(folder, settings.keep, sharded.rank, sharded.world_size, board)
        told = (saved, say) if sharded.rank == 0 else (lambda *_: None, lambda _: None)
        node = _node_store(run, sharded, runtime.rank, start)
        whose = {"is_main": runtime.is_main, "writes": sharded.node == 0}
        saver = SharedSaver(settings, shared, take, *told, longest_s, **whose, node=node)
    else:
        checkpoints = Checkpoints(folder, settings.keep)
        saver = Saver(settings, checkpoints, take, saved, say, longest_s)
    checkpoints.stays = lambda step: stays(step) or copies.holds(step)
    saver.copies = copies
    return saver


def _staying(run: Training, state: dict[str, Any]) -> Callable[[int], bool]:
    """Whether the checkpoint of a step is kept for ever: others may branch from it, or this run, a branch, began with it."""
    origin = state.get("parent", {}).get("step")
    return lambda step: step == origin or run.config.checkpoint.is_milestone(step)


def _node_store(run: Training, sharded: ShardedModel, rank: int, start: int) -> NodeStore | None:
    """For the ranks of a node that has a whole model: the watch breaks no connection with it."""
    if sharded.across is None:
        return None
    node = NodeStore(sharded.nodes[sharded.node], rank, start)
    run.watch.stores.add(node.port)
    return node


def _best(run: Training, folder: RunFolder, state: Saved) -> dict[str, Any] | None:
    """The best step so far and its value, for state.json."""
    best, known = state.values["best_step"], folder.read_state().get("best")
    if best is not None and run.config.checkpoint.best and (known is None or known["step"] != best):
        known = as_found(run.config.checkpoint.best, best, state.values["best_metric"])
    return known


def _whole_copy(run: Training, step: int, values: dict[str, Any], slab: Slab) -> Saved:
    """A copy of what a step left, also where a main thread that was left in a forward writes buffers meanwhile."""
    for _ in range(_MOST_COPIES):
        state = capture(step, run.model, run.optimizer.inner, run.optimizer.scaler, values, slab, run.sums.sharded)
        if run.sums.statistics.is_between_steps():
            return state
        run.sums.statistics.roll_back()
    raise TrainingError(f"the buffers of step {step} are still being written")


def _state_bytes(run: Training) -> int:
    """What a save holds once there is an optimizer's state: AdamW's, the largest usual; a sharded rank has its rows alone."""
    sharded = run.sums.sharded
    tensors = [shard.local for shard in sharded.shards] if sharded else [*run.model.parameters(), *run.model.buffers()]
    trained = [parameter for group in run.optimizer.inner.param_groups for parameter in group["params"]]
    counts = [torch.zeros(())] * len(trained)
    return size_of([*tensors, *trained, *trained, *counts])

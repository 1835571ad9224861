"""A model that is cut over the ranks, with the optimizer that was made for it whole; or a refusal, by name."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping

import torch
from torch import nn

from samestep.config import Config
from samestep.errors import UsageError
from samestep.exact import Shard, ShardedModel, everyone, nodes_of, refuse_uncuttable
from samestep.optimizer.build import PartOptimizers
from samestep.optimizer.fused import FusedStep
from samestep.session.blocks import repeated_blocks
from samestep.task import Task

_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1 << 22  # mallopt(3)

# Each number of their state and of their step belongs to one number of a parameter, and is the same however that is cut.
_ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


def cut_over(config: Config) -> list[list[int]]:
    """The ranks that have one model among them, each its rows; none where every process has all of it.

    Raises UsageError on every rank where nodes are to have a model each, and have unequally many ranks.
    """
    group = everyone()
    if group is None or not config.shard:
        return []
    nodes = nodes_of(group)
    if config.shard != "node":
        nodes = [sorted(rank for ranks in nodes for rank in ranks)]
    if len(sizes := sorted({len(ranks) for ranks in nodes})) > 1:
        raise UsageError(
            f"shard: found node, and nodes with {' and '.join(map(str, sizes))} processes; start as many on each, "
            "or write shard=true"
        )
    return nodes if sizes != [1] else []


def shard(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, nodes: list[list[int]]) -> ShardedModel:
    """Cut `model`, which is whole and on the host, over each node's ranks, and let `optimizer` step this rank's rows."""
    if device.type == "cpu":
        _give_memory_back()
    group = everyone()
    assert group is not None
    sharded = ShardedModel(model, repeated_blocks(model), device, group, nodes if len(nodes) > 1 else None)
    shard_optimizer(optimizer, sharded.swap())
    return sharded


def _give_memory_back() -> None:
    """Have large tensors return to the system when they go: glibc would keep ever larger ones, twice a model's size in all."""
    with contextlib.suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def refuse_unshardable(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise UsageError for what could not be sharded, at whatever size, so that one process tells."""
    lines = []
    if task.overrides("after_step"):
        lines.append("shard: the task has an after_step, which changes whole parameters; leave one of them out")
    for part in optimizer.parts if isinstance(optimizer, PartOptimizers) else [optimizer]:
        lines += _against(part, is_ours=not task.overrides("optimizer"))
    if lines:
        raise UsageError(*dict.fromkeys(lines))
    refuse_uncuttable(model, repeated_blocks(model))


def _against(optimizer: torch.optim.Optimizer, is_ours: bool) -> list[str]:
    """Why cutting its parameters would change a bit of this optimizer's step."""
    kind = type(optimizer).__name__
    if kind not in _ELEMENTWISE or not type(optimizer).__module__.startswith("torch.optim."):
        words = ", ".join(map(str.lower, _ELEMENTWISE))
        return [f"shard: {kind} may need whole parameters to step; write one of {words}"]
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    is_whole_lines = is_ours and FusedStep.fits(optimizer)
    if is_fused and kind != "Adagrad" and not is_whole_lines:
        return [f"shard: torch's fused kernel of {kind} rounds the end of a tensor in another way; leave fused out"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not is_whole_lines and any(parameter.element_size() == 2 for parameter in parameters):
        return [
            f"shard: {kind} without a fused kernel rounds parameters of 16 bits by their place; write adamw without amsgrad, "
            "foreach and fused, or precision: bf16 over float32"
        ]
    return []


def shard_optimizer(optimizer: torch.optim.Optimizer, shards: Mapping[nn.Parameter, Shard]) -> None:
    """Let an optimizer that was made for whole parameters step this rank's rows of them, with its rows of their state."""
    states = {shards[parameter]: state for parameter, state in optimizer.state.items() if isinstance(parameter, nn.Parameter)}
    for group in optimizer.param_groups:
        group["params"] = [shards[parameter].local for parameter in group["params"]]
    optimizer.state.clear()
    for shard, state in states.items():
        optimizer.state[shard.local] = {
            key: shard.cut(value).to(shard.local.device, copy=True) if getattr(value, "shape", None) == shard.shape else value
            for key, value in state.items()
        }

"""Activation checkpointing of the kind whose backward calls a backward, which no sum over hooks can follow."""

from __future__ import annotations

from typing import Any

import torch

from samestep.errors import UsageError


def refuse_reentrant(loss: torch.Tensor) -> None:
    """Raise UsageError if a backward within the backward would come, which fires a parameter's hooks more than once."""
    seen: set[Any] = set()
    left = [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise UsageError("task: found activation checkpointing with use_reentrant=True; write use_reentrant=False")
        seen.add(node)
        left += [following for following, _ in node.next_functions]

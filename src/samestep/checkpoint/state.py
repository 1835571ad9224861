"""What a checkpoint holds: the state after some finished steps, copied off the device and put back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from samestep.checkpoint.tensors import DTYPES
from samestep.errors import UsageError


@dataclass
class Saved:
    """What a checkpoint holds: finished steps, tensors by name, and the rest as plain values."""

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    values: dict[str, Any]
    arrived: torch.cuda.Event | None = None  # when the copies from a GPU are all there

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.weights.values(), *self.optimizer.values()))


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the state_dict sorted by name: name, dtype and shape as text, then the contiguous CPU bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def refuse_unsavable(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise UsageError for what a checkpoint could not hold, before there is anything to lose."""
    kinds = {name: getattr(tensor, "dtype", type(tensor).__name__) for name, tensor in model.state_dict().items()}
    lines = [
        f"task: {name!r} is {kind}, which a checkpoint cannot hold; write register_buffer(…, persistent=False)"
        for name, kind in kinds.items()
        if kind not in DTYPES
    ]
    for group in optimizer.state_dict()["param_groups"]:
        for key, value in group.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                lines.append(f"task: the optimizer's {key!r} is a {type(value).__name__}; a checkpoint holds numbers and texts")
    if lines:
        raise UsageError(*lines)


def capture(
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    values: dict[str, Any],
    into: Saved | None = None,
) -> Saved:
    """Copy the state after `step` finished steps to the CPU; tied weights are stored once.

    Args:
        into: an earlier copy that is not needed any more, whose memory is used again: fresh pages cost as much as the copy.
    """
    kept_weights, kept_optimizer = (into.weights, into.optimizer) if into else ({}, {})
    on_gpu = False
    weights: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    owners: dict[object, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        spot = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and spot in owners:
            ties[name] = owners[spot]
        else:
            owners[spot] = name
            weights[name] = _copied(tensor, kept_weights.get(name))
            on_gpu = on_gpu or tensor.is_cuda
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{key}"] = _copied(value, kept_optimizer.get(f"{number}.{key}"))
            else:
                plain[f"{number}.{key}"] = value
    arrived = torch.cuda.Event() if on_gpu else None
    if arrived is not None:
        arrived.record()
    return Saved(
        step,
        weights,
        tensors,
        {
            **values,
            "ties": ties,
            "optimizer": {"plain": plain, "groups": state["param_groups"]},
            "scaler": scaler.state_dict() if scaler else None,
        },
        arrived,
    )


def _copied(tensor: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """A contiguous copy on the CPU; from a GPU it arrives while the next step runs, which is ordered behind it."""
    if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return kept.copy_(tensor.detach(), non_blocking=True)


def restore(
    saved: Saved,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Put a checkpoint's state into a model, and into its optimizer and scaler where given."""
    weights = {**saved.weights, **{name: saved.weights[owner] for name, owner in saved.values["ties"].items()}}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"the checkpoint does not fit the model: {' '.join(str(error).split())}") from None
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        for name, value in (*saved.optimizer.items(), *saved.values["optimizer"]["plain"].items()):
            number, _, key = name.partition(".")
            # A copy: every tensor that enters a kernel starts its own memory.
            state.setdefault(int(number), {})[key] = value.clone() if isinstance(value, torch.Tensor) else value
        optimizer.load_state_dict({"state": state, "param_groups": saved.values["optimizer"]["groups"]})
    if scaler is not None and saved.values["scaler"]:
        scaler.load_state_dict(saved.values["scaler"])

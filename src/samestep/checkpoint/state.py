"""What a checkpoint holds: the state after some finished steps, copied off the device and put back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from samestep.checkpoint.slab import Slab
from samestep.checkpoint.tensors import DTYPES
from samestep.checkpoint.tree import Unsavable, from_tree, to_tree
from samestep.errors import UsageError
from samestep.exact import Shard, ShardedModel

Cuts = dict[str, tuple[list[int], int]]  # of tensors that are rows of larger ones: their whole shape, and the first row


@dataclass
class Saved:
    """What a checkpoint holds: finished steps, tensors by name, and the rest as plain values."""

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    values: dict[str, Any]
    arrived: torch.cuda.Event | None = None  # when the copies from a GPU are all there
    weight_cuts: Cuts = field(default_factory=dict)
    optimizer_cuts: Cuts = field(default_factory=dict)
    proof: torch.Tensor | None = None  # fingerprints of the next step's first micro-batch, where it was computed

    @property
    def files(self) -> dict[str, tuple[dict[str, torch.Tensor], Cuts]]:
        """The tensors by their files, and which of them are rows."""
        return {
            "weights.safetensors": (self.weights, self.weight_cuts),
            "optimizer.safetensors": (self.optimizer, self.optimizer_cuts),
        }

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.weights.values(), *self.optimizer.values()))


def weights_hash(weights: torch.nn.Module | Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over the state_dict sorted by name: name, dtype and shape as text, then the contiguous CPU bytes."""
    digest = hashlib.sha256()
    tensors: Iterable[tuple[str, torch.Tensor]]
    tensors = sorted(weights.state_dict().items()) if isinstance(weights, torch.nn.Module) else weights
    for name, tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def refuse_unsavable(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise UsageError for what a checkpoint could not hold, before there is anything to lose."""
    lines = []
    parameters = {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        if kind not in DTYPES:
            write = "another dtype" if name in parameters else "register_buffer(…, persistent=False)"
            lines.append(f"task: {name!r} is {kind}, which a checkpoint cannot hold; write {write}")
    try:
        to_tree(optimizer.state_dict(), "", {})
    except Unsavable as error:
        lines.append(
            f"task: the optimizer's {error}, which a checkpoint cannot hold; it holds numbers, texts, tensors, and lists, "
            "tuples and dicts of them"
        )
    if lines:
        raise UsageError(*lines)


def capture(
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    values: dict[str, Any],
    slab: Slab | None = None,
    sharded: ShardedModel | None = None,
) -> Saved:
    """Copy the state after `step` finished steps to the CPU; tied weights are stored once.

    Args:
        sharded: of the model, where this rank has its rows alone, and `optimizer` steps them.
        slab: where to; what an earlier save has there is not needed any more. Fresh pages cost as much as the copy.
    """
    weights: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    owners: dict[object, str] = {}
    shards = {name: shard for shard in (sharded.shards if sharded else []) for name in shard.names}
    weight_cuts: Cuts = {}
    for name, found_tensor in sorted(model.state_dict().items()):
        shard = shards.get(name)
        tensor = found_tensor if shard is None else shard.local
        spot = shard or (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if (shard or tensor.numel()) and spot in owners:
            ties[name] = owners[spot]
            continue
        owners[spot] = name
        weights[name] = tensor
        if shard is not None:
            weight_cuts[name] = (list(shard.shape), shard.first_row)
    found: dict[str, torch.Tensor] = {}
    tree = to_tree(optimizer.state_dict(), "", found)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    still = [name for name in weights if name in parameters]
    moving = [name for name in weights if name not in parameters]  # which a forward may write
    slab = slab or Slab(next((tensor.device for tensor in weights.values() if tensor.is_cuda), torch.device("cpu")))
    copied, arrived = slab.copy([*found.values(), *(weights[name] for name in still)], [weights[name] for name in moving])
    copies = dict(zip([*still, *moving], copied[len(found) :], strict=True))
    return Saved(
        step,
        {name: copies[name] for name in weights},
        dict(zip(found, copied, strict=False)),
        {
            **values,
            "ties": ties,
            "optimizer": tree,
            "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
            "evaluating": [name for name, module in model.named_modules() if not module.training],
            "scaler": scaler.state_dict() if scaler else None,
        },
        arrived,
        weight_cuts,
        _optimizer_cuts(optimizer, found, sharded),
    )


def _optimizer_cuts(optimizer: torch.optim.Optimizer, found: dict[str, torch.Tensor], sharded: ShardedModel | None) -> Cuts:
    """Which of an optimizer's tensors are this rank's rows of a larger one."""
    of_rows = {
        id(value): (list(shard.shape), shard.first_row)
        for shard in (sharded.shards if sharded else [])
        for value in optimizer.state.get(shard.local, {}).values()
        if getattr(value, "shape", None) == shard.local.shape
    }
    return {name: of_rows[id(tensor)] for name, tensor in found.items() if id(tensor) in of_rows}


def restore(
    saved: Saved,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
    sharded: ShardedModel | None = None,
) -> None:
    """Put a checkpoint's state into a model, and into its optimizer and scaler where given.

    Args:
        sharded: of the model, where this rank has its rows alone: of the checkpoint too no more than these is read.
    """
    weights = {**saved.weights, **{name: saved.weights[owner] for name, owner in saved.values["ties"].items()}}
    if sharded is not None:
        _restore_rows(weights, sharded)
    else:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(f"the checkpoint does not fit the model: {' '.join(str(error).split())}") from None
    branch = saved.values.get("branch", {"optimizer": True, "options": []})
    if optimizer is not None and branch["optimizer"]:
        own = [{key: group[key] for key in branch["options"] if key in group} for group in optimizer.param_groups]
        _restore_optimizer(saved, optimizer, {shard.local: shard for shard in sharded.shards} if sharded else {})
        for group, options in zip(optimizer.param_groups, own, strict=True):
            group.update(options)
    if scaler is not None and saved.values["scaler"]:
        scaler.load_state_dict(saved.values["scaler"])


def _restore_rows(weights: dict[str, torch.Tensor], sharded: ShardedModel) -> None:
    shards = {name: shard for shard in sharded.shards for name in shard.names}
    now = sharded.model.state_dict()
    for name in {**now, **weights}:
        if name not in now or name not in weights or now[name].shape != weights[name].shape:
            raise UsageError(f"the checkpoint does not fit the model: it has another {name}, or none")
    with torch.no_grad():
        for name, tensor in weights.items():
            if name in shards:
                shards[name].local.copy_(shards[name].cut(tensor))
            else:
                now[name].copy_(tensor)


def restore_modes(saved: Saved, model: torch.nn.Module) -> None:
    """Freeze and set modes as they were: after_step may have changed what model() makes."""
    frozen, evaluating = set(saved.values["frozen"]), set(saved.values["evaluating"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, module in model.named_modules():
        module.training = name not in evaluating


def _restore_optimizer(saved: Saved, optimizer: torch.optim.Optimizer, shards: dict[torch.nn.Parameter, Shard]) -> None:
    """Put an optimizer's state back as it was; torch's own way casts it to the parameters' dtype, and breaks up texts."""
    device = optimizer.param_groups[0]["params"][0].device
    counts_there = bool(optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))
    was_on_gpu = saved.values.get("kind", {}).get("device") == "cuda"

    by_number = [p for group in optimizer.param_groups for p in group["params"]]

    def cut(name: str) -> torch.Tensor:
        """The tensor, or this rank's rows of it: `state.3.exp_avg` belongs to the third parameter from 0."""
        whole = saved.optimizer[name]
        kind, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        is_known = kind == "state" and number.isdigit() and int(number) < len(by_number)
        shard = shards.get(by_number[int(number)]) if is_known else None
        return shard.cut(whole) if shard is not None and whole.shape == shard.shape else whole

    def tensor(name: str, on_cpu: bool) -> torch.Tensor:
        # A copy: every tensor that enters a kernel starts its own memory. What lay on the host beside a GPU lies there again.
        stays = on_cpu and (was_on_gpu or (name.endswith(".step") and not counts_there))
        return cut(name).clone() if stays else cut(name).to(device, copy=True)

    state = from_tree(saved.values["optimizer"], tensor)
    own = type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict
    try:
        optimizer.load_state_dict(state if own else {"state": {}, "param_groups": state["param_groups"]})
    except (ValueError, KeyError) as error:
        raise UsageError(f"the checkpoint does not fit the optimizer: {error}; write the same, or another --run NAME") from None
    if not own:
        optimizer.state.clear()
        for key, entries in state["state"].items():
            optimizer.state[by_number[key] if key in range(len(by_number)) else key] = entries

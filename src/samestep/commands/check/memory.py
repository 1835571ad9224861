"""How much memory and disk a run needs, and the largest micro-batch for which the memory suffices."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import psutil
import torch

from samestep.batches import Batches
from samestep.checks import Recompute
from samestep.config.preflight import Line, room, shown_bytes
from samestep.exact import exchange_bytes
from samestep.loop import Training
from samestep.session.blocks import repeated_blocks
from samestep.task import Batch

_ROWS_MEASURED = (2, 4)  # by which the memory of any number of rows is reckoned
_FILLED = 0.9  # of what is free: allocators leave gaps


def needs(run: Training, activations: float, here: int, leaves: int | None = None) -> dict[str, float]:
    """The bytes that a process needs, by what for.

    Args:
        activations: of one micro-batch.
        here: the processes that share a step, or that a sharded model is cut over.
        leaves: of the exact sum; by default the config's.
    """
    gradients = sum(p.nbytes for p in run.model.parameters() if p.requires_grad)
    copies = int(math.log2(leaves or run.config.num_leaves)) if run.config.reduce == "exact" else 0  # of the sum, at most
    parts = {
        "parameters": sum(tensor.nbytes for tensor in run.model.state_dict().values()),
        "gradients": gradients * (1 + copies),
        "optimizer": _optimizer_bytes(run),
    }
    if run.config.shard and here > 1:
        parts = {name: number // here for name, number in parts.items()} | {"gathered": _gathered_bytes(run.model)}
    elif here > 1:
        is_exact = run.config.reduce == "exact"
        parts["exchange"] = exchange_bytes(gradients, leaves or run.config.num_leaves, here) if is_exact else gradients
    return {**parts, "activations": activations}


def _gathered_bytes(model: torch.nn.Module) -> int:
    """Of a sharded model: what is outside its blocks, and the largest block and its gradients, as sent and as gathered."""
    blocks = [sum(p.nbytes for p in block.parameters()) for block in repeated_blocks(model)]
    rest = sum(p.nbytes for p in model.parameters()) - sum(blocks)
    return 2 * rest + 4 * max(blocks, default=0)


def activation_bytes(run: Training, compute: Callable[[], torch.Tensor]) -> tuple[int, torch.Tensor]:
    """What a forward inside `compute` keeps for its backward, besides the model's own tensors; and what `compute` returns."""
    own = {p.untyped_storage().data_ptr() for p in [*run.model.parameters(), *run.model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    return sum(kept.values()), result


def _optimizer_bytes(run: Training) -> int:
    """Of the optimizer's state, as a step leaves it: tried on a copy of the smallest parameter of each group."""
    total, optimizer = 0.0, run.optimizer.inner
    for group in optimizer.param_groups:
        one = torch.nn.Parameter(min(group["params"], key=lambda p: p.numel()).detach().clone())
        one.grad = torch.zeros_like(one)
        state: list[torch.Tensor] = [one, one]  # where it can't be tried, of Adam's size
        with contextlib.suppress(Exception):  # one of the task's own may want more than its groups
            tried = type(optimizer)([one], **{key: value for key, value in group.items() if key in optimizer.defaults})
            tried.step()
            state = [value for value in tried.state[one].values() if isinstance(value, torch.Tensor)]
        each = sum(value.nbytes for value in state if value.shape == one.shape) / max(one.nbytes, 1)
        total += each * sum(p.nbytes for p in group["params"])
    return int(total)


def memory(run: Training, parts: dict[str, float], here: int) -> Line:
    """Whether the memory suffices, of the device for one process or of this machine for all of them."""
    device, total = run.optimizer.device, sum(parts.values())
    on_gpu = device.type == "cuda"
    there = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    wanted = total if on_gpu else total * here
    shown = ", ".join(f"{name} {shown_bytes(number)}" for name, number in parts.items())
    for_all = "" if on_gpu or here == 1 else f", {shown_bytes(wanted)} for {here}"
    of = f"of {shown_bytes(there)} {'on the device' if on_gpu else 'here'}"
    words = f"about {shown_bytes(total)} a process ({shown}){for_all}, {of}"
    if wanted > there:
        return Line("error", "memory", f"{words}; write a smaller micro_batch_size or model, precision=bf16, or fewer leaves")
    return Line("warning" if wanted > 0.8 * there else "ok", "memory", words)


def fitting(run: Training, here: int, most: int) -> Line:
    """The largest micro_batch_size that fits: a divisor of global_batch_size that leaves each process a share.

    What a row needs is measured on few, so that nothing is exhausted; on a GPU the size that comes of it is tried.

    Args:
        here, most: the processes that share this machine's memory, and those that share a step.
    """
    config, whole = run.config, run.config.global_batch_size
    sizes = [size for size in range(1, whole // most + 1) if whole % size == 0 and whole // size % (config.leaves or 1) == 0]
    few, more = (_measured(run, rows) for rows in _ROWS_MEASURED)
    each = (more - few) / (_ROWS_MEASURED[1] - _ROWS_MEASURED[0])
    fixed = few - _ROWS_MEASURED[0] * each
    there = _free(run, here)

    def total(size: int) -> float:
        leaves = config.leaves or whole // size
        return sum(needs(run, fixed + each * size, most, leaves).values())

    fits = [size for size in sizes if total(size) <= _FILLED * there]
    while fits and run.optimizer.device.type == "cuda" and not _can_be_computed(run, fits[-1]):
        fits.pop()
    words = f"{shown_bytes(each)} for each row of a micro-batch, and {shown_bytes(there)} free for a process"
    if not fits:
        return Line("error", "fit", f"no micro_batch_size fits: {words}; write a smaller model, or precision=bf16")
    best = fits[-1]
    words = f"micro_batch_size={best} is the largest divisor of {whole} that fits {most} process{'es' * (most > 1)} ({words})"
    if best == config.micro_batch_size:
        return Line("ok", "fit", f"{words}; it stands there already")
    level = "ok" if best > config.micro_batch_size else "error"
    return Line(level, "fit", f"{words}; write it in a new run: it is part of the maths")


class _Resized:
    """Micro-batches with another number of rows: the first ones, or those again and again."""

    def __init__(self, batches: Batches, num_rows: int) -> None:
        self._batches, self._num_rows = batches, num_rows

    def again(self, step: int, index: int) -> Batch:
        batch = self._batches.again(step, index)
        there = len(next(iter(batch.values())))
        rows = torch.arange(self._num_rows) % there
        resized = ((name, tensor[rows.to(tensor.device)] if len(tensor) == there else tensor) for name, tensor in batch.items())
        return type(batch)(resized)


def _resized(run: Training, num_rows: int) -> Recompute:
    batches: Any = _Resized(run.batches, num_rows)
    return run.checks.recompute.over(batches)


def _measured(run: Training, num_rows: int) -> int:
    """The bytes that a forward and backward of so many rows need on top of all that stays."""
    recompute, device = _resized(run, num_rows), run.optimizer.device
    if device.type != "cuda":
        return activation_bytes(run, lambda: recompute.prints(0, 0))[0]
    recompute.prints(0, 0).tolist()  # kernels take their work space at their first call
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    recompute.prints(0, 0).tolist()
    gradients = sum(p.nbytes for p in run.model.parameters() if p.requires_grad)  # counted as such
    return max(0, torch.cuda.max_memory_allocated(device) - before - gradients)


def _can_be_computed(run: Training, num_rows: int) -> bool:
    try:
        _resized(run, num_rows).prints(0, 0).tolist()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _free(run: Training, here: int) -> float:
    """What one process may fill, the model's own tensors included, which are there by now."""
    own = sum(tensor.nbytes for tensor in run.model.state_dict().values())
    device = run.optimizer.device
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused + own)
    return float((psutil.virtual_memory().available + own) / here)


def disk(run: Training, optimizer: float) -> Line:
    config = run.config
    size = sum(tensor.nbytes for tensor in run.model.state_dict().values()) + optimizer
    most = size * (config.checkpoint.keep + 1 + bool(config.checkpoint.best))
    free, known = room(config.runs)
    words = f"checkpoints of {shown_bytes(size)}, at most {shown_bytes(most)} at a time, and {known}"
    if most > free:
        return Line("error", "disk", f"{words}; make room, write runs=FOLDER elsewhere, or checkpoint.keep=1")
    return Line("ok", "disk", words)

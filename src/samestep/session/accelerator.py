"""Accelerate's part of a run, and torch's switches for the same bits each time."""

from __future__ import annotations

import datetime

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from samestep.config import Config
from samestep.errors import UsageError
from samestep.runtime import has_rank
from samestep.session.attention import choose_attention

_HAS_TF32 = (8, 0)  # compute capability: Ampere
_COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate's part: place, wrap, cast, launch. Nothing of it scales, accumulates, shuffles or saves."""
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if not on_cpu:
        choose_attention(config.attention, exact=config.reduce == "exact")
        choose_multiplication(config.precision)
    if on_cpu and config.precision == "fp16":
        raise UsageError("precision: found fp16 without a GPU, where gradients would underflow in silence; write bf16 or no")
    torch.set_num_threads(config.threads)
    if config.reduce == "exact":
        # torch.use_deterministic_algorithms also sets inductor's flag, and imports all of inductor to do so (1.5 s).
        (torch.use_deterministic_algorithms if config.compile else torch._C._set_deterministic_algorithms)(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs a pass over every new tensor
        torch.backends.cudnn.benchmark = False
    backend = "cpu:gloo,cuda:nccl" if has_rank() and not on_cpu else None  # with one Accelerate asks a group for its size
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=config.autocast,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=_COLLECTIVE_TIMEOUT)],
    )


def choose_multiplication(precision: str) -> None:
    """Have GPUs multiply matrices and convolve in TF32 where the config says so. Raises UsageError where they have none."""
    if precision != "tf32":
        return
    if torch.cuda.get_device_capability() < _HAS_TF32:
        raise UsageError(f"precision: found tf32, which {torch.cuda.get_device_name()} does not have; write no, or fp16")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True

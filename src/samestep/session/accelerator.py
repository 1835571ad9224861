"""Accelerate's part of a run, and torch's switches for the same bits each time."""

from __future__ import annotations

import datetime

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from samestep.config import Config
from samestep.errors import UsageError
from samestep.runtime import has_rank

_COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate's part: place, wrap, cast, launch. Nothing of it scales, accumulates, shuffles or saves."""
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and config.precision == "fp16":
        raise UsageError("precision: found fp16 without a GPU, where gradients would underflow in silence; write bf16 or no")
    torch.set_num_threads(config.threads)
    if config.reduce == "exact":
        # torch.use_deterministic_algorithms also sets inductor's flag, and imports all of inductor to do so (1.5 s).
        (torch.use_deterministic_algorithms if config.compile else torch._C._set_deterministic_algorithms)(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs a pass over every new tensor
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # attention has one kernel or the other, not what fits today
        torch.backends.cuda.enable_cudnn_sdp(False)
    backend = "cpu:gloo,cuda:nccl" if has_rank() and not on_cpu else None  # with one Accelerate asks a group for its size
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=config.precision,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=_COLLECTIVE_TIMEOUT)],
    )

"""How fast a run could be: what a step has to compute, against what its devices compute a second."""

from __future__ import annotations

import contextlib

import torch
from torch.utils.flop_counter import FlopCounterMode

from samestep.checks import Recompute
from samestep.loop import Training
from samestep.session.build import float_dtype
from samestep.tracking import peak_flops


def find_step_at_peak(run: Training, world_size: int) -> None:
    """Have rows show `mfu`, model FLOPs utilization, on GPUs of a known kind; Chowdhery et al., 2022 (PaLM), appendix B."""
    device = run.optimizer.device
    if device.type != "cuda":
        return
    dtype = float_dtype(run.model) if run.config.precision == "no" else torch.bfloat16
    peak = peak_flops(torch.cuda.get_device_name(device), dtype)
    if peak is not None:
        with contextlib.suppress(Exception):  # a forward that the counter cannot follow trains all the same
            run.reports.pace.step_at_peak_s = micro_batch_flops(run) * run.config.micro_batches / (peak * world_size)


def micro_batch_flops(run: Training) -> int:
    """Floating-point operations of a micro-batch's forward and backward, as torch counts them; nothing of them stays."""
    recompute = Recompute(run.config.seed, run.task, run.model, run.accelerator, run.gradients, run.statistics, run.batches)
    # Compiled blocks step aside: the counter sees operators, and not what they were compiled to.
    eager = torch.compiler.set_stance("force_eager") if run.config.compile else contextlib.nullcontext()
    with eager, FlopCounterMode(display=False) as counter:
        recompute.prints(run.first_step, run.gradients.share[0])
    return int(counter.get_total_flops())

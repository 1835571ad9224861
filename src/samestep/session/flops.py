"""How fast a run could be: what a step has to compute, against what its devices compute a second."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from samestep.loop import Training
from samestep.session.build import float_dtype
from samestep.tracking import peak_flops


def find_step_at_peak(run: Training, world_size: int) -> None:
    """Have rows show `mfu`, model FLOPs utilization, on GPUs of a known kind; Chowdhery et al., 2022 (PaLM), appendix B."""
    device = run.optimizer.device
    if device.type != "cuda" or run.sums.sharded is not None:  # no rank runs a forward alone there
        return
    dtype = float_dtype(run.model) if run.config.autocast == "no" else torch.bfloat16
    peak = peak_flops(torch.cuda.get_device_name(device), dtype)
    if peak is not None:
        with contextlib.suppress(Exception):  # a forward that the counter cannot follow trains all the same
            run.reports.pace.step_at_peak_s = micro_batch_flops(run) * run.config.micro_batches / (peak * world_size)


def micro_batch_flops(run: Training) -> int:
    """Floating-point operations of a micro-batch's forward and backward, as torch counts them; nothing of them stays."""
    # Compiled blocks step aside: the counter sees operators, and not what they were compiled to.
    eager = torch.compiler.set_stance("force_eager") if run.config.compile else contextlib.nullcontext()
    counter = _Counter()
    with eager, counter:
        run.checks.recompute.prints(run.first_step, run.sums.gradients.share[0])
    return counter.flops


class _Counter(TorchDispatchMode):
    """torch.utils.flop_counter's formulas, without what its mode imports: torch's compiler, seconds of every start."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0


def _count(counter: _Counter, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    result = func(*args, **(kwargs or {}))
    if (formula := flop_registry.get(getattr(func, "_overloadpacket", func))) is not None:
        counter.flops += int(formula(*args, **(kwargs or {}), out_val=result))
    return result


_Counter.__torch_dispatch__ = _count  # type: ignore[assignment]  # in the class's body torch would wrap it, to the same end

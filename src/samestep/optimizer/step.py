"""Clipping, and the step at its rate that may not count."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator

import torch

from samestep.config import Schedule
from samestep.control import decided_by_main
from samestep.exact import Scalar, as_float, is_finite, ratio, total_norm
from samestep.optimizer.fused import FusedStep
from samestep.optimizer.schedules import make_rate
from samestep.randomness.seeding import seed_all

_STEPPING = 3  # sets a step's random numbers apart from the forward's


def leave_dynamo_out() -> None:
    """Keep the first optimizer of a process from importing torch._dynamo, which takes longer than the rest of a start.

    torch wraps some of Optimizer's methods so that a compiled program leaves them alone, and imports dynamo to do so when
    they are first called. Outside compiled programs the wrapped method is the method itself: what torch would cache there
    after the import is put there before. A torch built differently is left as it is.
    """
    for value in vars(torch.optim.Optimizer).values():
        method = getattr(value, "__wrapped__", None)
        if method is not None and "__dynamo_disable" not in vars(method) and value.__module__ == "torch.optim.optimizer":
            vars(method)["__dynamo_disable"] = method


def _plain_step(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """The optimizer's step without the wrappers that import torch._dynamo, where nothing hangs on them."""
    step = inspect.unwrap(type(optimizer).step)
    own = type(optimizer).__module__.startswith("torch.optim.")
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if not own or hooks or optimizer.defaults.get("differentiable"):
        return optimizer.step
    return lambda: step(optimizer)


@functools.lru_cache(maxsize=1)  # without clipping one step's weight is the next one's
def _as_tensor(divisor: float) -> torch.Tensor:
    """What torch divides a gradient of shape () by in float64; by a Python float it would be float32."""
    return torch.tensor(divisor, dtype=torch.float64)


def divide_and_clip(
    grads: list[torch.Tensor],
    weight: Scalar,
    clip: float | None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    fused: FusedStep | None = None,
) -> Scalar:
    """Divide the summed gradients by the step's weight, and clip them by their norm; on a GPU all of it stays there.

    Returns the norm before clipping, as `exact.total_norm` defines it; `reduce` is as there. `fused` divides in its next step
    instead.
    """
    if not grads:
        return weight * 0
    norm = ratio(total_norm(grads, reduce), weight)
    divisor = weight
    if clip is not None:
        over = norm / clip
        divisor = weight * (over.clamp(min=1.0) if isinstance(over, torch.Tensor) else max(over, 1.0))
    by = divisor.to(torch.float64) if isinstance(divisor, torch.Tensor) else _as_tensor(divisor)
    if by.is_cuda and all(grad.dtype == torch.float32 for grad in grads):
        by = by.float()  # of one dtype it is a kernel or two, of two dtypes one for each gradient
    if fused is not None:
        fused.divisor = by
    else:
        torch._foreach_div_(grads, by)
    return norm


class GatedOptimizer:
    """An optimizer whose step counts only if the loss and the gradients are finite, decided on the device.

    Args:
        scaler: fp16's loss scaler, which gates by itself: a step that overflows is skipped and the scale lowered.
        fresh: the run begins here, so that `scaler` has no scale of an earlier start's.
        seed: for the random numbers that an optimizer of one's own may draw.
        is_ours: made from the config, so that nobody else adds to its groups or lays another state into it.

    It must be made before a checkpoint is laid over the optimizer: until then the groups' rates are the schedule's base.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Schedule, num_steps: int, scaler: torch.amp.GradScaler | None,
        fresh: bool = True, seed: int = 0, is_ours: bool = False,
    ) -> None:  # fmt: skip
        self.inner = optimizer
        self.scaler = scaler
        self._is_fresh = fresh
        self._turn = threading.Lock()  # held while the weights are between two steps, and for good after an error there
        self.rate = make_rate(schedule, num_steps, seed)
        self._base = [float(group["lr"]) for group in optimizer.param_groups]
        self._seed = None if type(optimizer).__module__.startswith("torch.optim.") else seed
        self._plain_step = _plain_step(optimizer) if scaler is None else optimizer.step
        self.fused: FusedStep | None = None  # which divides the gradients too
        if is_ours and scaler is None and FusedStep.fits(optimizer):
            self._plain_step = self.fused = FusedStep(optimizer)
        self.device: torch.device = optimizer.param_groups[0]["params"][0].device
        self.counts: torch.Tensor | bool = True  # whether the last step did
        self.copied: torch.cuda.Event | None = None  # when a save has read what the next step writes
        self._counted: torch.Tensor | int = 0
        self._on_device = bool(optimizer.defaults.get("fused")) and any(
            parameter.is_cuda for group in optimizer.param_groups for parameter in group["params"]
        )

    def fit_scale(self, weight: Scalar, micro_batches: int) -> None:
        """Before a run's first backward in fp16: fit the scale to sums over a step, of whose size rank 0's weight tells.

        It starts at 65,536 over the power of two next to a step's weight: a mean's usual start, for a sum over it. (At 65,536
        the sum over 8,192 tokens overflowed for nine steps.)
        """
        if self.scaler is None or not self._is_fresh or self.scaler._scale is not None:
            return
        whole = decided_by_main(lambda: as_float(weight)) * micro_batches
        self.scaler._init_scale = 65536.0 / 2.0 ** round(math.log2(max(whole, 1.0)))

    def zero_grad(self) -> None:
        if type(self.inner).zero_grad is not torch.optim.Optimizer.zero_grad:
            self.inner.zero_grad(set_to_none=True)
            return
        for group in self.inner.param_groups:  # what torch's own does, without the profiler's range around it
            for parameter in group["params"]:
                parameter.grad = None

    def _step(self) -> None:
        with torch.no_grad():
            self._plain_step()

    def unscale(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.inner)

    def step(self, step: int, loss: Scalar, norm: Scalar) -> float:
        """Step at the rate of `step` (from 0) if both scalars are finite. Returns the first group's rate.

        Under fp16 an infinite norm is an overflow: that step is skipped too, and counts, with a lower scale for the next.
        """
        factor = self.rate(step)  # the user's own function, maybe; while it fails the weights are whole
        self._turn.acquire()
        self._stepped(step, factor, loss, norm)
        self._turn.release()
        return self._base[0] * factor

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside, the state is between two steps: after an error here there is nothing to save."""
        self._turn.acquire()
        yield
        self._turn.release()

    def hold(self, patience_s: float) -> bool:
        """Let no further step begin, in whatever thread; False if one is under way and does not end in time."""
        return self._turn.acquire(timeout=patience_s)

    def _stepped(self, step: int, factor: float, loss: Scalar, norm: Scalar) -> None:
        if self.copied is not None:
            torch.cuda.current_stream().wait_event(self.copied)
            self.copied = None
        for group, base in zip(self.inner.param_groups, self._base, strict=True):
            group["lr"] = base * factor
        if self._seed is not None:
            seed_all(self._seed, step, 0, _STEPPING, device=self.device)
        counts = self.counts = is_finite(loss if self.scaler is not None else loss + norm)
        if self.scaler is not None:
            for found_inf in self.scaler._found_inf_per_device(self.inner).values():
                found_inf.add_(~is_finite(loss + norm))  # of all gradients: of sharded ones each rank has some
            self.scaler.step(self.inner)
            self.scaler.update()
        elif self._on_device:
            self.inner.found_inf = torch.logical_not(counts).float()  # type: ignore[attr-defined,arg-type]  # the kernels read it
            self._step()
        elif counts:  # one wait for the device; on a CPU there is nothing to wait for
            self._step()
        self._counted += counts

    @property
    def counted(self) -> int:
        """The steps that counted, since this start. On a GPU this waits for all that is queued there."""
        return int(self._counted)

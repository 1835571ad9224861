"""Adam's fused step without what torch does again before each: the same kernels on the same tensors, sorted once."""

from __future__ import annotations

from collections.abc import Callable

import torch

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class FusedAdam:
    """Steps a fused Adam or AdamW of torch's own that nobody else has, whose moments stay the same tensors once there are any.

    In each of its steps torch sorts parameters, gradients and moments by device and dtype, in Python: on a small model that
    takes several times as long as the kernel. Where a parameter has no gradient, torch's own step is taken.

    Args:
        step: torch's own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, step: Callable[[], object]) -> None:
        self._optimizer, self._step = optimizer, step
        self._sorted: list[list[list[torch.Tensor]]] | None = None  # for each group its parameters and their _MOMENTS

    @staticmethod
    def fits(optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is one of these classes itself, and each of its groups asks for the plain fused kernel."""
        return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and all(
            group["fused"] and not group["amsgrad"] and not any(isinstance(beta, torch.Tensor) for beta in group["betas"])
            for group in optimizer.param_groups
        )

    def __call__(self) -> None:
        grads = [[parameter.grad for parameter in group["params"]] for group in self._optimizer.param_groups]
        is_whole = not any(grad is None for found in grads for grad in found)
        if self._sorted is None or not is_whole:
            self._step()
            if is_whole:
                self._sorted = self._sort()
            return
        found_inf = getattr(self._optimizer, "found_inf", None)
        for group, of_group, (parameters, averages, squares, steps) in zip(
            self._optimizer.param_groups, grads, self._sorted, strict=True
        ):
            torch._foreach_add_(steps, 1)
            is_decoupled = isinstance(self._optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay")
            kernel = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
            kernel(
                parameters, of_group, averages, squares, [], steps, amsgrad=False, lr=group["lr"], beta1=group["betas"][0],
                beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"], maximize=group["maximize"],
                grad_scale=None, found_inf=found_inf,
            )  # fmt: skip
            if found_inf is not None:
                torch._foreach_sub_(steps, [found_inf] * len(steps))

    def _sort(self) -> list[list[list[torch.Tensor]]] | None:
        """None where a group has several devices or dtypes, or another state than this."""
        groups = []
        for group in self._optimizer.param_groups:
            parameters: list[torch.Tensor] = group["params"]
            states = [self._optimizer.state.get(parameter, {}) for parameter in parameters]
            alike = {(tensor.device, tensor.dtype) for tensor in parameters}
            if len(alike) != 1 or not all(set(state) == set(_MOMENTS) for state in states):
                return None
            groups.append([parameters, *([state[name] for state in states] for name in _MOMENTS)])
        return groups

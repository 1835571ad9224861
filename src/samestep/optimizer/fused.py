"""The fused steps of Adam, AdamW and SGD, in which no cut of a parameter into pieces changes a bit.

torch's kernels for CPUs go through a tensor in vectors, and what is behind the last whole one is rounded in another way. Where
that is depends on how a tensor was cut. So here they see memory of whole cache lines alone: those are whole vectors, and there
the kernels split a tensor among threads. What does not fill its last line is stepped in a buffer that is filled up with zeros.
"""

from __future__ import annotations

import collections
from typing import Any

import torch

_LINE_BYTES = 64
_MOMENTS = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}


class FusedStep:
    """Steps a fused optimizer of torch's own that nobody else has, with the same kernels and the same state as its own step.

    In each of its steps torch sorts parameters, gradients and moments by device and dtype, in Python: on a small model that
    takes several times as long as the kernel. Here it is done once, and again where a checkpoint has brought another state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.divisor: torch.Tensor | None = None  # of the gradients, for the next step: a scalar, float32 or float64
        self._state: object = None
        self._sets: list[_Set] = []

    @staticmethod
    def fits(optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is one of these classes itself, and each of its groups asks for the plain fused kernel."""
        return type(optimizer) in _MOMENTS and all(
            group["fused"]
            and not group.get("amsgrad")
            and not group.get("dampening")
            and not any(isinstance(beta, torch.Tensor) for beta in group.get("betas", ()))
            for group in optimizer.param_groups
        )

    def __call__(self) -> None:
        """Divide the gradients, and step every parameter that has one; it wants `torch.no_grad`."""
        if self._optimizer.state is not self._state:
            self._state = self._optimizer.state
            self._sets = [alike for group in self._optimizer.param_groups for alike in self._sets_of(group)]
        found_inf = getattr(self._optimizer, "found_inf", None)
        for alike in self._sets:
            alike.step(found_inf, self.divisor)
        self.divisor = None

    def _sets_of(self, group: dict[str, Any]) -> list[_Set]:
        alike: dict[object, list[torch.Tensor]] = {}
        spots: collections.Counter[int] = collections.Counter()  # those of one memory are stepped one after the other
        for parameter in group["params"]:
            spot = parameter.data_ptr() if parameter.numel() else 0
            alike.setdefault((parameter.device, parameter.dtype, spots[spot] if spot else 0), []).append(parameter)
            spots[spot] += 1
        return [_Set(self._optimizer, group, parameters) for parameters in alike.values()]


class _Set:
    """The parameters of a group that are of one device and one dtype: one call of a kernel."""

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        self._group, self._parameters, self._state = group, parameters, optimizer.state
        self._names = _MOMENTS[type(optimizer)] if group.get("momentum", True) else ()
        self._is_sgd = isinstance(optimizer, torch.optim.SGD)
        is_decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay")
        self._adam = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
        self._counts = torch.zeros(len(parameters), device=parameters[0].device)  # of steps, for Adam: added to all at once
        self._lanes: list[_Lane | None] = [None] * len(parameters)
        self._choose([False] * len(parameters))

    def _choose(self, have_grads: list[bool]) -> None:
        """Lay out what the kernel gets where these parameters have a gradient."""
        self._have_grads = have_grads
        self._live: list[_Lane] = []
        for place, has_grad in enumerate(have_grads):
            if has_grad:
                lane = self._lanes[place] = self._lanes[place] or self._lane(place)
                self._live.append(lane)
        self._stepped = [lane.stepped for lane in self._live]
        self._moments = [list(moments) for moments in zip(*(lane.moments for lane in self._live), strict=True)]
        self._steps = [self._counts[place] for place, has_grad in enumerate(have_grads) if has_grad]
        self._counted = [self._counts] if all(have_grads) else self._steps
        apart = [lane for lane in self._live if lane.stepped is not lane.parameter]
        self._homes, self._away = [lane.parameter for lane in apart], [lane.view for lane in apart]

    def _lane(self, place: int) -> _Lane:
        parameter = self._parameters[place]
        if not self._names and self._is_sgd:
            return _Lane(parameter, {}, ())
        state = self._state[parameter]
        if not self._is_sgd:
            self._counts[place] = state.get("step", 0.0)
            state["step"] = self._counts[place]
        return _Lane(parameter, state, self._names)

    def step(self, found_inf: torch.Tensor | None, divisor: torch.Tensor | None) -> None:
        have_grads = [parameter.grad is not None for parameter in self._parameters]
        if have_grads != self._have_grads:
            self._choose(have_grads)
        if not self._live:
            return
        grads, arriving, places = [], self._homes.copy(), self._away.copy()
        for lane in self._live:
            grad = lane.parameter.grad
            assert grad is not None
            if lane.grad is None and grad.stride() == lane.parameter.stride():
                grads.append(grad)
                continue
            flat, view = lane.room_for_grad()
            grads.append(flat)
            arriving.append(grad)
            places.append(view)
        if divisor is not None and (places or grads[0].dtype != torch.float32):
            torch._foreach_div_([lane.parameter.grad for lane in self._live if lane.parameter.grad is not None], divisor)
            divisor = None
        if places:
            torch._foreach_copy_(places, arriving)
        self._kernel(grads, found_inf, divisor.float() if divisor is not None else None)
        if self._homes:
            torch._foreach_copy_(self._homes, self._away)

    def _kernel(self, grads: list[torch.Tensor], found_inf: torch.Tensor | None, scale: torch.Tensor | None) -> None:
        """`scale`: a float32 by which the kernel divides; it writes the quotients into `grads`, rounded as a division's."""
        group = self._group
        if self._is_sgd:
            torch._fused_sgd_(
                self._stepped, grads, self._moments[0] if self._moments else [], weight_decay=group["weight_decay"],
                momentum=group["momentum"], lr=group["lr"], dampening=0.0, nesterov=group["nesterov"],
                maximize=group["maximize"], is_first_step=False, grad_scale=scale, found_inf=found_inf,
            )  # fmt: skip
            return
        torch._foreach_add_(self._counted, 1)
        averages, squares = self._moments
        self._adam(
            self._stepped, grads, averages, squares, [], self._steps, amsgrad=False, lr=group["lr"], beta1=group["betas"][0],
            beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"], maximize=group["maximize"],
            grad_scale=scale, found_inf=found_inf,
        )  # fmt: skip
        if found_inf is not None:
            torch._foreach_sub_(self._counted, [found_inf] * len(self._counted))


class _Lane:
    """What the kernel gets for one parameter: itself, or a buffer of whole lines, and moments of the same layout.

    The moments that lie in `state` are of the parameter's shape, and stay where the kernel finds them.
    """

    def __init__(self, parameter: torch.Tensor, state: dict[str, torch.Tensor], names: tuple[str, ...]) -> None:
        self.parameter = parameter
        line = _LINE_BYTES // parameter.element_size()
        is_dense = torch.empty_like(parameter, device="meta").stride() == parameter.stride()
        self._size = -(-parameter.numel() // line) * line
        self._is_whole = parameter.is_cuda or (is_dense and self._size == parameter.numel())
        self.stepped, self.view = (parameter, parameter) if self._is_whole else self._room()
        self.grad: tuple[torch.Tensor, torch.Tensor] | None = None if self._is_whole else self._room()
        self.moments = []
        for name in names:
            there = state.get(name)
            if there is not None and self._is_whole and there.stride() == parameter.stride():
                self.moments.append(there)
                continue
            flat, view = self._room()
            if there is not None:
                view.copy_(there)
            state[name] = view
            self.moments.append(flat)

    def _room(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros for the kernel, and as a tensor of the parameter's shape."""
        if self._is_whole:
            zeros = torch.zeros_like(self.parameter)
            return zeros, zeros
        flat = self.parameter.new_zeros(self._size)
        return flat, flat[: self.parameter.numel()].view(self.parameter.shape)

    def room_for_grad(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.grad = self.grad or self._room()
        return self.grad

"""The optimizer that a config names or a task makes; or a refusal, where no checkpoint could hold it."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from samestep.config import Config, Optimizer
from samestep.errors import UsageError, nearest
from samestep.optimizer.fused import FusedStep
from samestep.task import Task

_FUSED = {"Adam", "AdamW", "SGD"}  # on every device that samestep trains on
_OF_16_BITS = (torch.float16, torch.bfloat16)


class PartOptimizers(torch.optim.Optimizer):
    """Several optimizers, each of its own part of a model, stepped together: one list of groups, one state, for a checkpoint.

    Args:
        parts: with no parameter in common.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self._steps = [FusedStep(part) if FusedStep.fits(part) else part.step for part in parts]
        fused = all(part.defaults.get("fused") for part in parts)
        super().__init__([group for part in parts for group in part.param_groups], {"fused": fused})
        for part in parts:
            self.state.update(part.state)
        self._share()

    def _share(self) -> None:
        """Let each part step from this one's groups and state, which a restored checkpoint replaces."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        found_inf = getattr(self, "found_inf", None)
        for part, step in zip(self.parts, self._steps, strict=True):
            if found_inf is not None:
                part.found_inf = found_inf  # type: ignore[attr-defined]
            with torch.no_grad():
                step()


def build_optimizer(
    config: Config, task: Task, model: torch.nn.Module, steps_on: torch.device | None = None
) -> torch.optim.Optimizer:
    """The task's own optimizer, or the config's over all trainable parameters; UsageError names a wrong argument.

    With an `after_step` it has the frozen ones too, for that may free them: without a gradient they are never stepped.

    Args:
        steps_on: the device of its steps; by default the model's.
    """
    if task.overrides("optimizer"):
        optimizer = task.optimizer(model, config)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UsageError(f"task: optimizer() returned {type(optimizer).__name__}; return a torch.optim.Optimizer")
        inner = [key for key, value in vars(optimizer).items() if _holds_optimizers(value)]
        if inner and type(optimizer).state_dict is torch.optim.Optimizer.state_dict:
            raise UsageError(
                f"task: the optimizer holds others in its {inner[0]}, whose state no checkpoint would hold; write one for each "
                "named part in the config, return one with param groups, or write state_dict() and load_state_dict() for all"
            )
        _refuse_what_cannot_be_kept(optimizer, model)
        _refuse_a_step_that_is_none(optimizer, steps_on)
        return optimizer
    may_thaw = task.overrides("after_step")
    trains = {p for p in model.parameters() if p.requires_grad or (may_thaw and p.is_floating_point())}
    wanted = config.optimizers
    shares = _shares(list(wanted), model, trains)
    device = steps_on or next(iter(trains)).device
    fused = all(_takes_fused(each, shares[key], device) for key, each in wanted.items())
    made = [_made(each, shares[key], key, fused) for key, each in wanted.items()]
    for key, optimizer in zip(wanted, made, strict=True):
        _refuse_what_cannot_be_kept(optimizer, model)
        _refuse_a_step_that_is_none(optimizer, steps_on)
        if len(made) > 1 and not type(optimizer).__module__.startswith("torch.optim."):
            raise UsageError(f"{key}.name: a part can have torch.optim's own alone; write optimizer(model, config) in the task")
    return made[0] if len(made) == 1 else PartOptimizers(made)


def _shares(keys: list[str], model: torch.nn.Module, trains: set[torch.nn.Parameter]) -> dict[str, list[torch.nn.Parameter]]:
    """The parameters of each `optimizer.PART`, or of the whole model.

    Raises UsageError where a part is no module, or a parameter that trains is in none of them or in two.
    """
    modules = dict(model.named_modules())
    owners: dict[torch.nn.Parameter, str] = {}
    shares: dict[str, list[torch.nn.Parameter]] = {}
    for key in keys:
        part = key.removeprefix("optimizer").removeprefix(".")
        if part not in modules:
            close = nearest(part, modules) or ", ".join(name for name, _ in model.named_children())
            raise UsageError(f"{key}: the model has no such part; write one of its modules: {close}")
        shares[key] = [parameter for parameter in modules[part].parameters() if parameter in trains]
        if not shares[key]:
            raise UsageError(f"{key}: that part has no trainable parameter; leave it out")
        for parameter in shares[key]:
            if parameter in owners:
                raise UsageError(f"{key}: it has parameters in common with {owners[parameter]}; write parts that have none")
            owners[parameter] = key
    left = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in owners]
    if left:
        words = left[0] + (f" and {len(left) - 1} more" if len(left) > 1 else "")
        raise UsageError(f"optimizer: no part has {words}; write an optimizer for {left[0].partition('.')[0]} too")
    return shares


def _takes_fused(wanted: Optimizer, parameters: list[torch.nn.Parameter], device: torch.device) -> bool:
    fits = _optimizer_class(wanted.name, "optimizer").__name__ in _FUSED and all(p.is_floating_point() for p in parameters)
    is_plain = not wanted.arguments.get("dampening") and not {"fused", "foreach", "differentiable"} & set(wanted.arguments)
    # On a CPU `FusedStep` lacks it, and torch's own kernel gives other bits where a tensor is cut.
    is_served = not wanted.arguments.get("amsgrad") or device.type == "cuda"
    return fits and is_plain and is_served and not _is_none(_optimizer_class(wanted.name, "optimizer"), parameters, device)


def _is_none(optimizer_class: type, parameters: list[torch.nn.Parameter], device: torch.device) -> bool:
    """Whether a fused step changes nothing, and its momentum is rubbish: SGD's on a CPU, of 16 bits, in torch up to 2.13.

    PyTorch issue 191763, pull request 192545.
    """
    is_short = any(parameter.dtype in _OF_16_BITS for parameter in parameters)
    return is_short and device.type == "cpu" and issubclass(optimizer_class, torch.optim.SGD)


def _refuse_a_step_that_is_none(optimizer: torch.optim.Optimizer, steps_on: torch.device | None) -> None:
    parameters = [parameter for group in optimizer.param_groups if group.get("fused") for parameter in group["params"]]
    if parameters and _is_none(type(optimizer), parameters, steps_on or parameters[0].device):
        words = "torch's fused SGD leaves parameters of 16 bits as they are on a CPU (PyTorch issue 191763)"
        raise UsageError(f"optimizer: {words}; write fused=False")


def _made(wanted: Optimizer, parameters: list[torch.nn.Parameter], key: str, fused: bool) -> torch.optim.Optimizer:
    """An optimizer as the config says; `fused`: with one kernel a step, if it takes that."""
    optimizer_class, arguments = checked_optimizer(wanted, key), wanted.arguments
    if fused:
        arguments["fused"] = True
    try:
        optimizer = optimizer_class(parameters, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{key}: {optimizer_class.__name__} says {error}") from None
    is_sgd = optimizer_class is torch.optim.SGD
    if is_sgd and arguments.get("fused") and arguments.get("momentum") and not arguments.get("dampening"):
        # torch's fused SGD fails where a parameter's first gradient comes later than another's; from zeros it is the same.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _refuse_what_cannot_be_kept(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Raise UsageError for an optimizer that needs more than gradients to step, or whose state nobody could save."""
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(f"optimizer: {name} calls the loss again in its step (a closure); write one that steps from gradients")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise UsageError("optimizer: SparseAdam steps sparse gradients alone; write adam, and sparse=False in the embeddings")
    if getattr(optimizer.step, "_wrapped_by_lr_sched", False) or any("initial_lr" in group for group in optimizer.param_groups):
        raise UsageError(
            "task: a torch learning-rate scheduler hangs on the optimizer, whose place no checkpoint would hold; write "
            "schedule: in the config, and leave it out of optimizer()"
        )
    if any(not isinstance(group.get("lr"), (int, float, torch.Tensor)) for group in optimizer.param_groups):
        raise UsageError(f"optimizer: {name} has a group without an lr; write one: the schedule is a factor of it")
    known = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in known:
                raise UsageError(
                    f"task: the optimizer has a parameter of shape {tuple(parameter.shape)} that the model lacks, and no "
                    "checkpoint would hold it; make it a part of the model"
                )


def _holds_optimizers(value: object) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return any(_holds_optimizers(entry) for entry in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, torch.optim.Optimizer)


def checked_optimizer(wanted: Optimizer, key: str = "optimizer") -> type[torch.optim.Optimizer]:
    """The class that a config names under `key`; UsageError if there is none, or it takes no such argument."""
    optimizer_class = _optimizer_class(wanted.name, key)
    accepted = [name for name in inspect.signature(optimizer_class).parameters if name != "params"]
    for name in wanted.arguments:
        if name not in accepted:
            close = nearest(name, accepted)
            raise UsageError(
                f"{key}.{name}: {optimizer_class.__name__} takes no such argument; "
                + (f"did you mean {close}?" if close else f"it takes {', '.join(accepted)}")
            )
    return optimizer_class


def _optimizer_class(name: str, key: str) -> type[torch.optim.Optimizer]:
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if ":" not in name:
        found = known.get(name.lower())
        if found is None:
            close = nearest(name.lower(), known)
            hint = f"did you mean {close}?" if close else f"write module:Class or one of {', '.join(sorted(known))}"
            raise UsageError(f"{key}.name: torch.optim has no {name!r}; {hint}")
        return found
    module, _, attribute = name.partition(":")
    try:
        loaded: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{key}.name: found {name!r}, which does not load ({error}); write module:Class") from None
    optimizer_class: type[torch.optim.Optimizer] = loaded
    return optimizer_class

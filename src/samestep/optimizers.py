"""The optimizer that a config names or a task makes; or a refusal, where no checkpoint could hold it."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from samestep.config import Config
from samestep.errors import UsageError, nearest
from samestep.task import Task

_FUSED = {"Adam", "AdamW", "SGD"}  # on every device that samestep trains on


def build_optimizer(config: Config, task: Task, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The task's own optimizer, or the config's over all trainable parameters; UsageError names a wrong argument.

    With an `after_step` it has the frozen ones too, for that may free them: without a gradient they are never stepped.
    """
    if task.overrides("optimizer"):
        optimizer = task.optimizer(model, config)
    else:
        optimizer_class, arguments = checked_optimizer(config), config.optimizer.arguments
        may_thaw = task.overrides("after_step")
        parameters = [p for p in model.parameters() if p.requires_grad or (may_thaw and p.is_floating_point())]
        fits = optimizer_class.__name__ in _FUSED and all(parameter.is_floating_point() for parameter in parameters)
        fits = fits and not arguments.get("dampening")
        if fits and not {"fused", "foreach", "differentiable"} & set(arguments):
            arguments["fused"] = True  # one kernel a step
        try:
            optimizer = optimizer_class(parameters, **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"optimizer: {optimizer_class.__name__} says {error}") from None
        is_sgd = optimizer_class is torch.optim.SGD
        if is_sgd and arguments.get("fused") and arguments.get("momentum") and not arguments.get("dampening"):
            # torch's fused SGD fails where a parameter's first gradient comes later than another's; from zeros it is the same.
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    _refuse_what_cannot_be_kept(optimizer, model)
    return optimizer


def _refuse_what_cannot_be_kept(optimizer: object, model: torch.nn.Module) -> None:
    """Raise UsageError for an optimizer that needs more than gradients to step, or whose state nobody could save."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"task: optimizer() returned {type(optimizer).__name__}; return a torch.optim.Optimizer")
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
    inner = [key for key, value in vars(optimizer).items() if _holds_optimizers(value)]
    if inner and type(optimizer).state_dict is torch.optim.Optimizer.state_dict:
        raise UsageError(
            f"task: the optimizer holds others in its {inner[0]}, whose state no checkpoint would hold; return one optimizer "
            "with param groups, or write state_dict() and load_state_dict() that cover them"
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


def checked_optimizer(config: Config) -> type[torch.optim.Optimizer]:
    """The class that a config names; UsageError if there is none, or it takes no such argument."""
    optimizer_class = _optimizer_class(config.optimizer.name)
    accepted = [name for name in inspect.signature(optimizer_class).parameters if name != "params"]
    for name in config.optimizer.arguments:
        if name not in accepted:
            close = nearest(name, accepted)
            raise UsageError(
                f"optimizer.{name}: {optimizer_class.__name__} takes no such argument; "
                + (f"did you mean {close}?" if close else f"it takes {', '.join(accepted)}")
            )
    return optimizer_class


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
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
            raise UsageError(f"optimizer.name: torch.optim has no {name!r}; {hint}")
        return found
    module, _, attribute = name.partition(":")
    try:
        loaded: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"optimizer.name: found {name!r}, which does not load ({error}); write module:Class") from None
    optimizer_class: type[torch.optim.Optimizer] = loaded
    return optimizer_class

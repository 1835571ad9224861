"""The model of a run and its optimizer, laid out on the device as they stood at the run's last save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from accelerate import Accelerator
from torch import nn

from samestep.checkpoint import Checkpoints, Saved, read, refuse_unsavable, restore, restore_modes
from samestep.checks import Checks, look
from samestep.config import Config
from samestep.control import Watchdog, everyones
from samestep.errors import UsageError
from samestep.exact import ShardedModel
from samestep.optimizer.build import build_optimizer
from samestep.optimizer.step import GatedOptimizer, leave_dynamo_out
from samestep.randomness.seeding import seed_all
from samestep.run.folder import RunFolder
from samestep.session.blocks import compile_blocks, recompute_blocks
from samestep.task import Task

_AFTER_STEP = 4  # sets after_step's random numbers apart from the forward's


def make_model(
    config: Config, task: Task, device: torch.device, is_fresh: bool, steps_on: torch.device | None = None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The task's model on the device, with its optimizer, both new. Raises UsageError for what cannot do.

    Args:
        is_fresh: no checkpoint is to be laid over it.
        steps_on: where it will be trained, if that is another device.
    """
    seed_all(config.seed)
    model = task.model()
    _refuse_unfit(model)
    model.to(device)
    if config.init and is_fresh:
        _begin_from(config.init, model)
    if not config.compile:
        leave_dynamo_out()
    return model, build_optimizer(config, task, model, steps_on)


def lay_out(
    config: Config,
    task: Task,
    accelerator: Accelerator,
    saved: Saved | None,
    all_steps: int,
    model: nn.Module,
    torch_optimizer: torch.optim.Optimizer,
    sharded: ShardedModel | None,
) -> GatedOptimizer:
    """Lay the state of `saved`, if any, over a model and its optimizer, of which this rank may have its rows alone."""
    optimizer = GatedOptimizer(
        torch_optimizer,
        config.schedule,
        all_steps,
        accelerator.scaler,
        fresh=saved is None,
        seed=config.seed,
        is_ours=not task.overrides("optimizer"),
    )
    if saved is not None:
        restore(saved, model, torch_optimizer, accelerator.scaler, sharded)
        if task.overrides("after_step"):
            restore_modes(saved, model)
    if config.compile:
        compile_blocks(model)
    if config.recompute:
        recompute_blocks(model)
    refuse_unsavable(model, torch_optimizer)
    return optimizer


def _refuse_unfit(model: object) -> None:
    """Raise UsageError for a model whose bits could not be kept, before it is trained."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"task: model() returned {type(model).__name__}; return a torch.nn.Module")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise UsageError(f"task: the parameter {name} has no shape yet; write the layer with its sizes, and not a lazy one")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("task: the model has no trainable parameter; return a torch.nn.Module with some from model()")
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise UsageError(
                f"task: {name} is a SyncBatchNorm, whose statistics depend on the number of processes; write a BatchNorm: its "
                "running statistics are averaged over the whole step"
            )
        if getattr(module, "sparse", False) is True:
            raise UsageError(f"task: {name} has sparse gradients, which have no place in the ordered sum; write sparse=False")
        if getattr(module, "max_norm", None) is not None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            raise UsageError(
                f"task: {name} has a max_norm, with which the forward changes the weights; leave it out, and "
                "renormalise them in after_step"
            )


def refuse_unequal_models(model: nn.Module) -> None:
    """Raise UsageError on every rank if any has another model than rank 0: nothing lays one over the others."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    mine = {name: look(tensor.detach()) for name, tensor in tensors.items()}
    first, *others = everyones(mine)
    for rank, other in enumerate(others, 1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise UsageError(
                    f"task: model() made another {name} on rank {rank} than on rank 0; draw its numbers from torch, numpy or "
                    "random, which are seeded, and let nothing in it depend on the rank, the clock or the machine"
                )


def notes_on(model: nn.Module, stepped: list[nn.Parameter], sharded: ShardedModel | None) -> list[str]:
    """What is right, and may all the same not be meant."""
    notes = []
    known = {id(parameter) for parameter in stepped}
    known |= {id(shard.whole) for shard in (sharded.shards if sharded else []) if id(shard.local) in known}
    left = [name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in known]
    if left:
        notes.append(
            f"note: {len(left)} trainable parameters are in no group of the optimizer and stay as they are: {left[0]} …"
        )
    if not any(module.training for module in model.modules()):
        notes.append(
            "note: model() left the whole model in eval(): it trains without dropout; write model.train() there if not meant"
        )
    return notes


def make_change(config: Config, task: Task, model: nn.Module, device: torch.device) -> Callable[[int], None] | None:
    """The task's own `after_step`, if it has one, with its random numbers."""

    def change(step: int) -> None:
        seed_all(config.seed, step, 0, _AFTER_STEP, device=device)
        task.after_step(model, step + 1)

    return change if task.overrides("after_step") else None


def make_after_step(
    change: Callable[[int], None] | None,
    model: nn.Module,
    optimizer: GatedOptimizer,
    checks: Checks,
    first_step: int,
    watch: Watchdog,
) -> Callable[[int], None]:
    """What runs after each optimizer step, the same on every rank."""

    def after_step(step: int) -> None:
        if step == first_step:  # by now the optimizer shows what it keeps
            refuse_unsavable(model, optimizer.inner)
        if change is None:
            return
        with optimizer.stepping(), torch.no_grad():
            if optimizer.counts:  # on a GPU this waits: what is changed after no step would stay
                watch.at("running after_step")
                checks.after_step(step, lambda: change(step))
        watch.meeting()

    return after_step


def _begin_from(init: str, model: nn.Module) -> None:
    """Lay the weights of a run, or of a safetensors file, over a new model."""
    if Path(init).is_file():
        try:
            weights = safetensors.torch.load_file(init)
        except safetensors.SafetensorError as error:
            raise UsageError(f"init: {init} is no safetensors file ({error}); write a run or weights.safetensors") from None
        restore(Saved(0, weights, {}, {"ties": {}}), model)
        return
    path, _, _ = Checkpoints(RunFolder.found(init), keep=1).newest()
    if path is None:
        raise UsageError(f"init: the run {init} has no checkpoint; write a run that has, or a safetensors file")
    restore(read(path), model)

"""Builds the parts of a run from its config, in order."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from samestep.audit import Auditor, NoAudit
from samestep.batches import Batches, Plan, Rows
from samestep.checkpoint import Checkpoints, NullSaver, Saved, read, refuse_unsavable, restore
from samestep.compiling import compile_blocks
from samestep.config import Config
from samestep.control import StopFlag, Watchdog, first_on_each_machine
from samestep.errors import UsageError
from samestep.evaluation import Best, Convergence, Evaluator, refuse_unknown_metrics
from samestep.exact import FastSum, OrderedSum, Statistics, StepExchange
from samestep.loop import Training
from samestep.optim import GatedOptimizer, build_optimizer, leave_dynamo_out
from samestep.order import Order
from samestep.run_folder import RunFolder
from samestep.runtime import Runtime
from samestep.seeding import seed_all
from samestep.task import Task
from samestep.tracking import NullTracker, Reports, Tracker

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
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=config.precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=False),
            InitProcessGroupKwargs(backend=None if on_cpu else "cpu:gloo,cuda:nccl", timeout=_COLLECTIVE_TIMEOUT),
        ],
    )


@dataclass
class Plans:
    """What a run is built from, besides its config."""

    task: Task
    accelerator: Accelerator
    runtime: Runtime
    stop: StopFlag
    saved: Saved | None  # the checkpoint to go on from
    peers: list[str]  # each rank's host and device, for the audit's words
    num_steps: int | None = None  # to stop before the config's end
    watch: Watchdog = field(default_factory=Watchdog.off)


def build(config: Config, plans: Plans, make_tracker: Callable[[int], Tracker | NullTracker]) -> Training:
    """Build a run that goes on where `plans.saved` stands.

    Args:
        make_tracker: called with the number of steps once nothing can be wrong any more with data, model and optimizer.
    """
    task, accelerator, saved, device = plans.task, plans.accelerator, plans.saved, plans.accelerator.device
    train_rows = first_on_each_machine(plans.runtime.local_rank, lambda: _read_split(task, "train"))
    if train_rows is None:
        raise UsageError('data: data("train") returned None; return a datasets.Dataset')
    eval_rows = first_on_each_machine(plans.runtime.local_rank, lambda: _read_split(task, "eval"))

    seed_all(config.seed)
    bare = task.model()
    if not any(parameter.requires_grad for parameter in bare.parameters()):
        raise UsageError("task: the model has no trainable parameter; return a torch.nn.Module with some from model()")
    float_dtype = next((p.dtype for p in bare.parameters() if p.is_floating_point()), torch.float32)
    bare.to(device)
    if not config.compile:
        leave_dynamo_out()
    torch_optimizer = build_optimizer(config, task, bare)
    if saved is not None:
        restore(saved, bare, torch_optimizer, accelerator.scaler)
    elif config.init:
        _begin_from(config.init, bare)
    if config.compile:
        compile_blocks(bare)
    model = _wrapped(bare, accelerator)

    plan = Plan(Order(len(train_rows), config.seed), config.global_batch_size, config.micro_batch_size, config.drop_last)
    if not plan.steps_per_epoch:
        raise UsageError(f"drop_last: {len(train_rows)} rows are less than one global batch of {config.global_batch_size}")
    all_steps = config.steps or (config.epochs or 0) * plan.steps_per_epoch
    num_steps = plans.num_steps or all_steps
    first_step = saved.step if saved else 0
    gradients = (OrderedSum if config.reduce == "exact" else FastSum)(model, config.micro_batches, config.leaves)
    gradients.meeting, gradients.going_on = plans.watch.meeting, lambda: plans.watch.at("computing")
    num_parameters = sum(parameter.requires_grad for parameter in bare.parameters())
    rows = Rows(train_rows, task, config.seed, float_dtype)
    batches = Batches(rows, plan, gradients.share, device, config.seed, first_step, num_steps, config.workers)
    evaluator = None
    if eval_rows is not None:
        held_out = Rows(eval_rows, task, config.seed, float_dtype)
        evaluator = Evaluator(task, held_out, config.micro_batch_size, config.evaluate.batches, accelerator, config.seed)
    refuse_unknown_metrics(config, evaluator, bare)
    refuse_unsavable(bare, torch_optimizer)
    values = saved.values if saved else {}
    tracker = make_tracker(all_steps)
    return Training(
        config=config,
        task=task,
        model=model,
        bare_model=bare,
        accelerator=accelerator,
        optimizer=GatedOptimizer(torch_optimizer, config.schedule, all_steps, accelerator.scaler, saved is None),
        plan=plan,
        batches=batches,
        gradients=gradients,
        statistics=Statistics(bare, config.micro_batches, config.num_leaves, plans.runtime.world_size),
        exchange=StepExchange(config.micro_batches, config.num_leaves, num_parameters, plans.runtime.world_size, device),
        audit=Auditor(config, task, model, accelerator, gradients, plan, batches, plans.peers) if config.audit else NoAudit(),
        evaluator=evaluator,
        convergence=Convergence(config.converge, values.get("best"), values.get("waited", 0)),
        best=Best(config.checkpoint.best, values.get("best_metric"), values.get("best_step")),
        reports=Reports(tracker, config, plan.steps_per_epoch, num_steps),
        tracker=tracker,
        stop=plans.stop,
        saver=NullSaver(),
        watch=plans.watch,
        first_step=first_step,
        num_steps=num_steps,
        owes_evaluation=values.get("owes_evaluation", False),
    )


def _begin_from(init: str, model: torch.nn.Module) -> None:
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


def _wrapped(bare: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """The model as Accelerate wraps it for several processes; for one there is nothing to wrap, or to import (0.9 s)."""
    if accelerator.num_processes == 1:
        return bare
    with warnings.catch_warnings():  # newer torch has another name for broadcast_buffers, which Accelerate does not know
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: torch.nn.Module = accelerator.prepare_model(bare)
        return wrapped


def _read_split(task: Task, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    found = task.data(split)
    if found is None:
        return None
    if not isinstance(found, datasets.Dataset):
        raise UsageError(f'data: data("{split}") returned {type(found).__name__}; return a datasets.Dataset')
    if len(found) == 0:
        raise UsageError(f'data: data("{split}") has no rows')
    return found

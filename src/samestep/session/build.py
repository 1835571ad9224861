"""Builds the parts of a run from its config, in order."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from samestep.batches import Batches, Plan
from samestep.checkpoint import Ending, Saved
from samestep.checks import Auditor, Checks, NoAudit, NoProof, NoTwice, Proof, Purity, Recompute, Schedule, Twice
from samestep.config import Config
from samestep.control import StopFlag, Watchdog, agreed
from samestep.errors import UsageError
from samestep.evaluation import Best, Convergence, Evaluation, Evaluator, refuse_unknown_metrics
from samestep.exact import FastSum, OrderedSum, ShardedModel, ShardedSum, Statistics, StepExchange, StepSums, everyone
from samestep.loop import Training
from samestep.optimizer import GatedOptimizer, Plateau
from samestep.randomness.order import Order
from samestep.runtime import Runtime
from samestep.session.data import Data, notes_on_data, read_data, refuse_other_data
from samestep.session.model import lay_out, make_after_step, make_change, make_model, notes_on, refuse_unequal_models
from samestep.session.sharding import cut_over, refuse_unshardable, shard
from samestep.sources import make_rows
from samestep.task import Task
from samestep.tracking import NullTracker, Pace, Reports, Tracker


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
    data = find_data(config, plans)
    plan = make_plan(config, data.order(config.seed))
    config, all_steps = config.in_steps(plan.steps_per_epoch)
    first_step, num_steps = plans.saved.step if plans.saved else 0, plans.num_steps or all_steps
    model, optimizer, sharded = build_model(config, plans, all_steps)
    ending = Ending(plans.stop, plans.watch)
    sums = build_sums(config, plans, model, optimizer, sharded, plan, ending)
    batches = build_batches(config, plans, model, data, plan, sums, range(first_step, num_steps))
    evaluation = build_evaluation(config, plans, model, optimizer, data, sharded)
    change = make_change(config, plans.task, model, optimizer.device)
    checks = build_checks(config, plans, model, optimizer, sums, batches, evaluation, change, first_step, all_steps)
    look_ahead(config, model, evaluation, checks)
    tracker = make_tracker(all_steps)
    for note in notes(config, plans, model, optimizer, data, sharded):
        tracker.line(note)
    pace = Pace(plans.task.unit, plans.watch, optimizer.device, first_step)
    return Training(
        config=config,
        task=plans.task,
        model=model,
        # Where nothing is cast or scaled, Accelerate's are a context that does nothing and a division by one.
        autocast=contextlib.nullcontext if config.autocast == "no" else plans.accelerator.autocast,
        backward=torch.Tensor.backward if plans.accelerator.scaler is None else plans.accelerator.backward,
        optimizer=optimizer,
        after_step=make_after_step(change, model, optimizer, checks, first_step, plans.watch),
        batches=batches,
        sums=sums,
        checks=checks,
        evaluation=evaluation,
        reports=Reports(tracker, config, plan, num_steps, pace, sums.gradients.fingerprints, plans.task.overrides("unit")),
        ending=ending,
        watch=plans.watch,
        first_step=first_step,
        num_steps=num_steps,
    )


def find_data(config: Config, plans: Plans) -> Data:
    """The task's rows, which are those that the run began with."""
    data = read_data(plans.task, config, plans.runtime)
    if plans.saved is not None and keeps_rows(plans.saved):
        refuse_other_data(plans.saved.values["data"], data.facts)
    return data


def keeps_rows(saved: Saved) -> bool:
    """Whether what goes on from a checkpoint has its rows: a branch may have others."""
    return bool(saved.values.get("branch", {}).get("rows", True))


def make_plan(config: Config, order: Order) -> Plan:
    plan = Plan(order, config.global_batch_size, config.micro_batch_size, config.drop_last)
    if not plan.steps_per_epoch:
        raise UsageError(f"drop_last: {order.num_rows} rows are less than one global batch of {config.global_batch_size}")
    return plan


def build_model(config: Config, plans: Plans, all_steps: int) -> tuple[torch.nn.Module, GatedOptimizer, ShardedModel | None]:
    """The model and its optimizer as the run's last save has them, cut over the ranks where that is asked for."""
    task, accelerator, saved, device = plans.task, plans.accelerator, plans.saved, plans.accelerator.device
    nodes = cut_over(config)
    model, torch_optimizer = agreed(
        lambda: make_model(config, task, torch.device("cpu") if nodes else device, saved is None, device)
    )
    refuse_unequal_models(model)
    if config.shard:
        agreed(lambda: refuse_unshardable(task, model, torch_optimizer))
    sharded = shard(model, torch_optimizer, device, nodes) if nodes else None
    optimizer = agreed(lambda: lay_out(config, task, accelerator, saved, all_steps, model, torch_optimizer, sharded))
    return model, optimizer, sharded


def build_sums(
    config: Config,
    plans: Plans,
    model: torch.nn.Module,
    optimizer: GatedOptimizer,
    sharded: ShardedModel | None,
    plan: Plan,
    ending: Ending,
) -> StepSums:
    gradients = make_sum(config, model, optimizer, plans.watch, sharded)
    statistics = Statistics(model, gradients.shares, config.micro_batches, config.num_leaves)
    exchange = StepExchange(gradients.shares, config.micro_batches, len(gradients.parameters), optimizer.device)
    return StepSums(gradients, statistics, exchange, plan.counted, ending.flag if sharded else ending.asked, sharded)


def build_batches(
    config: Config, plans: Plans, model: torch.nn.Module, data: Data, plan: Plan, sums: StepSums, steps: range
) -> Batches:
    rows = make_rows(data.train, plans.task, config.seed, float_dtype(model))
    share, device = sums.gradients.share, plans.accelerator.device
    return Batches(rows, plan, share, device, config.seed, steps.start, steps.stop, config.workers, data.facts)


def build_checks(
    config: Config,
    plans: Plans,
    model: torch.nn.Module,
    optimizer: GatedOptimizer,
    sums: StepSums,
    batches: Batches,
    evaluation: Evaluation,
    change: Callable[[int], None] | None,
    first_step: int,
    all_steps: int,
) -> Checks:
    gradients, task = sums.gradients, plans.task
    share = max(map(len, gradients.shares))
    schedule = Schedule(first_step, all_steps - 1, share)
    recompute = Recompute(config.seed, task, model, plans.accelerator, gradients, sums.statistics, batches)
    purity = Purity(task, model, optimizer.inner, recompute, gradients, first_step, schedule, sums.sharded)
    if not config.is_audited:
        return Checks(NoAudit(), purity, recompute, NoTwice(), NoProof())
    audited = Schedule(first_step, all_steps - 1, share, config.audit.every if config.audit else None)
    audit = Auditor(audited, batches.plan, recompute, gradients, plans.runtime.rank, plans.peers)
    twice = Twice(model, schedule, recompute, gradients)
    if sums.sharded:
        return Checks(audit, purity, recompute, twice, NoProof())
    recorded = plans.saved.values.get("proof") if plans.saved else None
    evaluate = functools.partial(evaluation.evaluator.prints, model) if evaluation.evaluator else None
    after_step = (lambda step: twice.tried(lambda: change(step))) if change else None
    proof = Proof(recompute, purity, evaluate, after_step, gradients.share[0], recorded)
    return Checks(audit, purity, recompute, twice, proof)


def build_evaluation(
    config: Config,
    plans: Plans,
    model: torch.nn.Module,
    optimizer: GatedOptimizer,
    data: Data,
    sharded: ShardedModel | None,
) -> Evaluation:
    """Where the "eval" split stands: what earlier evaluations have come to is in the checkpoint."""
    values = plans.saved.values if plans.saved else {}
    rows, accelerator = data.held_out, plans.accelerator
    plateau = optimizer.rate if isinstance(optimizer.rate, Plateau) else None
    if plateau is not None:
        for step, value in values.get("evaluations", []):
            plateau.count(step, value)
    return Evaluation(
        evaluator=None if rows is None else make_evaluator(config, plans.task, accelerator, model, rows, sharded),
        convergence=Convergence(config.converge, values.get("best"), values.get("waited", 0)),
        best=Best(config.checkpoint.best, values.get("best_metric"), values.get("best_step")),
        plateau=plateau,
        every=config.evaluate.every,
        is_owed=values.get("owes_evaluation", False),
    )


def look_ahead(config: Config, model: torch.nn.Module, evaluation: Evaluation, checks: Checks) -> None:
    """Refuse now what would only show at the first evaluation."""

    def look() -> None:
        with checks.evaluation():
            refuse_unknown_metrics(config, evaluation.evaluator, model)

    agreed(look)


def notes(
    config: Config, plans: Plans, model: torch.nn.Module, optimizer: GatedOptimizer, data: Data, sharded: ShardedModel | None
) -> list[str]:
    before = plans.saved.values["data"] if plans.saved and keeps_rows(plans.saved) else data.facts
    found = [*notes_on_data(before, data.facts), *notes_on(model, stepped_by(optimizer), sharded)]
    if config.audit is False:
        words = "a task that remembers earlier micro-batches, or a device that computes wrongly, is not seen"
        found.append(f"note: audit is off: {words}")
    return found


def make_sum(
    config: Config, model: torch.nn.Module, optimizer: GatedOptimizer, watch: Watchdog, sharded: ShardedModel | None
) -> OrderedSum:
    """The gradients' sum over micro-batches and ranks; the watchdog hears when it waits for others."""
    if sharded is not None:
        summed = ShardedSum(sharded, config.micro_batches, config.num_leaves, stepped_by(optimizer))
        summed.meeting, summed.going_on = watch.meeting, lambda: watch.at("computing")
        return summed
    kind = OrderedSum if config.reduce == "exact" else FastSum
    gradients = kind(model, config.micro_batches, config.leaves, everyone(), stepped_by(optimizer))
    if gradients.exchange is not None:
        gradients.exchange.meeting = watch.meeting
        gradients.exchange.going_on = lambda: watch.at("computing")
    return gradients


def stepped_by(optimizer: GatedOptimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.inner.param_groups for parameter in group["params"]]


def make_evaluator(
    config: Config, task: Task, accelerator: Accelerator, model: torch.nn.Module, rows: Any, sharded: ShardedModel | None = None
) -> Evaluator:
    held_out = make_rows(rows, task, config.seed, float_dtype(model))
    size, batches = config.micro_batch_size, config.evaluate.batches
    return Evaluator(task, held_out, size, batches, accelerator, config.seed, sharded, config.is_audited)


def float_dtype(model: torch.nn.Module) -> torch.dtype:
    """What columns of float64 become: the model's own."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

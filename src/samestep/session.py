"""Builds the parts of a run from its config, in order, trains, and takes them down."""

from __future__ import annotations

import datetime
import random
import string
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from samestep import config as configuration
from samestep.batches import Batches, Plan, Rows
from samestep.checkpoint import Checkpoints, capture, read, restore, weights_hash
from samestep.config import Config
from samestep.control import StopFlag, agreed, decided_by_main, first_on_each_machine
from samestep.errors import UsageError
from samestep.evaluation import Convergence, Evaluator
from samestep.exact import FastSum, OrderedSum, Statistics, StepExchange, check_world_size
from samestep.loop import Training, train
from samestep.optim import GatedOptimizer, build_optimizer, leave_dynamo_out
from samestep.order import Order
from samestep.run_folder import RunFolder, write_atomically
from samestep.runtime import Runtime
from samestep.seeding import seed_all
from samestep.task import Task, load_task
from samestep.tracking import NullTracker, Reports, Tracker, cut_back

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
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=config.precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=False),
            InitProcessGroupKwargs(backend=None if on_cpu else "cpu:gloo,cuda:nccl", timeout=_COLLECTIVE_TIMEOUT),
        ],
    )


@dataclass
class Start:
    """What rank 0 found in the run folder, the same on every rank."""

    done: bool
    fresh: bool
    checkpoint: Path | None
    resumed_from: int
    wandb_id: str
    notes: list[str]


def run_training(config: Config, sources: dict[str, str], folder: RunFolder, runtime: Runtime, stop: StopFlag) -> None:
    """Train a run from wherever it stands to its end; `weights HASH` is the last line printed."""
    accelerator = make_accelerator(config)
    check_world_size(runtime.world_size, config.num_leaves)
    folder.path = decided_by_main(lambda: folder.path)  # a name made of the time may differ from rank to rank
    task = agreed(lambda: load_task(config.task, config.fields))
    start = decided_by_main(lambda: _open_run(config, folder, runtime))
    try:
        say = print if runtime.is_main else _say_nothing
        if start.done:
            state = folder.read_state()
            say(f"{folder.name} is done already, at step {state['step']}")
            say(f"weights {state['weights']}", flush=True)
            return
        say(f"resumed from step {start.resumed_from}" if start.checkpoint else "fresh", f"({folder.path})", flush=True)
        for note in start.notes:
            say(note, flush=True)
        _train(config, sources, folder, runtime, stop, task, accelerator, start)
    except UsageError:
        if runtime.is_main and start.fresh:
            folder.discard()
        raise
    finally:
        folder.release()


def _say_nothing(*words: object, **options: object) -> None: ...


def _open_run(config: Config, folder: RunFolder, runtime: Runtime) -> Start:
    """Take the run folder and find where the run stands; only rank 0 does this."""
    folder.take(runtime.host)
    try:
        state = folder.read_state()
        notes: list[str] = []
        if state and folder.config.exists():
            before, _ = configuration.load_config(folder.config)
            refused, notes = configuration.changes_on_resume(before, config)
            if refused:
                raise UsageError(*refused)
            if state.get("status") == "done" and (config.steps, config.epochs) == (before.steps, before.epochs):
                return Start(True, False, None, state["step"], state["wandb"], notes)
        checkpoint, step, passed_over = Checkpoints(folder, config.checkpoint.keep).newest()
        return Start(False, not state, checkpoint, step, state.get("wandb") or _new_id(), notes + passed_over)
    except BaseException:
        folder.release()
        raise


def _new_id() -> str:
    return "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=8))


def _train(
    config: Config,
    sources: dict[str, str],
    folder: RunFolder,
    runtime: Runtime,
    stop: StopFlag,
    task: Task,
    accelerator: Accelerator,
    start: Start,
) -> None:
    device = accelerator.device
    saved = read(start.checkpoint) if start.checkpoint else None
    train_rows = first_on_each_machine(runtime.local_rank, lambda: _read_split(task, "train"))
    if train_rows is None:
        raise UsageError('data: data("train") returned None; return a datasets.Dataset')
    eval_rows = first_on_each_machine(runtime.local_rank, lambda: _read_split(task, "eval"))

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
        restore(saved, bare, torch_optimizer)
    model = _wrapped(bare, accelerator)
    if saved is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(saved.values["scaler"])

    plan = Plan(Order(len(train_rows), config.seed), config.global_batch_size, config.micro_batch_size, config.drop_last)
    if not plan.steps_per_epoch:
        raise UsageError(f"drop_last: {len(train_rows)} rows are less than one global batch of {config.global_batch_size}")
    num_steps = config.steps or (config.epochs or 0) * plan.steps_per_epoch
    sum_class = OrderedSum if config.reduce == "exact" else FastSum
    gradients = sum_class(model, config.micro_batches, config.leaves)
    num_parameters = sum(parameter.requires_grad for parameter in bare.parameters())
    reading = Rows(train_rows, task, config.seed, float_dtype)
    evaluator = None
    if eval_rows is not None:
        evaluation_rows = Rows(eval_rows, task, config.seed, float_dtype)
        evaluator = Evaluator(task, evaluation_rows, config.micro_batch_size, config.evaluate.batches, accelerator, config.seed)
    values = saved.values if saved else {}
    if runtime.is_main:
        _begin(config, sources, folder, runtime, start)
    with _tracker(config, folder, runtime, start, num_steps, task.unit) as tracker:
        run = Training(
            config=config,
            task=task,
            model=model,
            bare_model=bare,
            accelerator=accelerator,
            optimizer=GatedOptimizer(torch_optimizer, config.schedule, num_steps, accelerator.scaler),
            plan=plan,
            batches=Batches(reading, plan, gradients.share, device, config.seed, start.resumed_from, num_steps, config.workers),
            gradients=gradients,
            statistics=Statistics(bare, config.micro_batches, config.num_leaves, runtime.world_size),
            exchange=StepExchange(config.micro_batches, num_parameters, runtime.world_size, device),
            evaluator=evaluator,
            convergence=Convergence(config.converge, values.get("best"), values.get("waited", 0)),
            reports=Reports(tracker, config, plan.steps_per_epoch, num_steps),
            tracker=tracker,
            stop=stop,
            save=lambda step: None,
            first_step=start.resumed_from,
            num_steps=num_steps,
        )
        if runtime.is_main:
            run.save = _Saver(run, folder)
        finished = train(run)
        run.save(finished)
        shown = task.show(bare.eval()) if runtime.is_main else ""
    if runtime.is_main:
        digest = weights_hash(bare)
        folder.write_state(status="done", reason="", step=finished, weights=digest, loss=tracker.last.get("loss"))
        if shown:
            print(shown)
        print(f"weights {digest}", flush=True)


def _wrapped(bare: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """The model as Accelerate wraps it for several processes; for one there is nothing to wrap, or to import (0.9 s)."""
    if accelerator.num_processes == 1:
        return bare
    with warnings.catch_warnings():  # newer torch has another name for broadcast_buffers, which Accelerate does not know
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: torch.nn.Module = accelerator.prepare_model(bare)
        return wrapped


def _begin(config: Config, sources: dict[str, str], folder: RunFolder, runtime: Runtime, start: Start) -> None:
    """Everything has been checked: from here on there is a run, and state.json says so."""
    folder.create()
    if start.fresh:
        write_atomically(folder.config, configuration.to_text(config, sources))
    restarts = 0 if start.fresh else folder.read_state().get("restarts", 0) + 1
    folder.write_state(
        status="running",
        reason="",
        step=start.resumed_from,
        world_size=runtime.world_size,
        restarts=restarts,
        weights=None,
        loss=folder.read_state().get("loss"),
        wandb=start.wandb_id,
        host=runtime.host,
        job=runtime.job,
    )


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


@contextmanager
def _tracker(
    config: Config, folder: RunFolder, runtime: Runtime, start: Start, num_steps: int, unit: str
) -> Iterator[Tracker | NullTracker]:
    if not runtime.is_main:
        yield NullTracker()
        return
    cut_back(folder, start.resumed_from)
    tracker = Tracker(config, folder, start.wandb_id, num_steps, start.resumed_from, unit)
    try:
        yield tracker
    finally:
        tracker.close()


class _Saver:
    """Saves a run as it stands after a step; rank 0's alone, and no collective is in it."""

    def __init__(self, run: Training, folder: RunFolder) -> None:
        self._run, self._folder = run, folder
        self._checkpoints = Checkpoints(folder, run.config.checkpoint.keep)

    def __call__(self, step: int) -> None:
        run = self._run
        values = {"best": run.convergence.best, "waited": run.convergence.waited}
        saved = capture(step, run.bare_model, run.optimizer.inner, run.optimizer.scaler, values)
        try:
            self._checkpoints.save(saved)
        except OSError as error:
            run.tracker.line(f"WARNING: step {step} could not be saved ({error}); training goes on, and tries again")
            return
        self._folder.write_state(step=step, loss=run.tracker.last.get("loss"))

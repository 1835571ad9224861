"""A run's parts, built and tried on one process: what its task does with a micro-batch, and what it needs for that."""

from __future__ import annotations

import contextlib
import time

import torch

from samestep.commands.check.doubled import doubled, mistaken
from samestep.commands.check.forecast import Times, saving_s, timed, whole_steps, words
from samestep.commands.check.memory import activation_bytes, disk, fitting, memory, needs
from samestep.config import Config
from samestep.config.preflight import Line
from samestep.control import StopFlag
from samestep.errors import TrainingError, UsageError
from samestep.loop import Training
from samestep.runtime import Runtime
from samestep.session import Plans, build, in_user_code, make_accelerator, mistake_behind
from samestep.session.attention import AttentionCalls
from samestep.session.build import float_dtype
from samestep.session.start import launched
from samestep.task.loading import load_task
from samestep.tracking import NullTracker, find_tracker

_LONG_STEP_S = 20.0


class _Noting(NullTracker):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def line(self, text: str) -> None:
        self.notes.append(text)


def look(config: Config, runtime: Runtime, here: int, fit: int) -> list[Line]:
    """Build the run and try a micro-batch, and a step where that takes seconds; the last line is of what went wrong.

    Args:
        here: the processes that this machine would start.
        fit: also find the largest micro_batch_size of which this many processes each have a share; 0 to leave that out.
    """
    lines: list[Line] = []
    noting = _Noting()
    began, run = time.time(), None
    try:
        accelerator, task = make_accelerator(config), load_task(config.task, config.fields)
        list(map(find_tracker, config.track.also))  # each is there
        plans = Plans(task, accelerator, runtime, StopFlag(), None, [runtime.host])
        run = build(config, plans, lambda num_steps: noting)
        lines += [Line("ok", "data", _rows(run)), Line("ok", "model", _model(run))]
        lines += [Line("warning", "model", note.removeprefix("note: ").removeprefix("WARNING: ")) for note in noting.notes]
        if fit:
            lines.append(fitting(run, here, fit))
        if lines[-1].level != "error":
            _try(run, lines, here, (began - launched(), time.time() - began))
    except UsageError as error:
        lines += [Line("error", *(line.split(": ", 1) if ": " in line else ("task", line))) for line in error.lines]
    except TrainingError as error:
        lines.append(Line("error", "step", str(error)))
    except Exception as error:
        mistake = mistake_behind(error, config)
        words = "; ".join(mistake.lines) if mistake else in_user_code(error)
        lines.append(Line("error", "task", words.removeprefix("task: ")))
    finally:
        if run is not None:
            run.batches.close()  # or this process would wait for its loader processes, and they for what it asks next
    return lines


def _try(run: Training, lines: list[Line], here: int, start_s: tuple[float, float]) -> None:
    """Args: start_s: what a start took so far, before and while the run was built."""
    seconds, activations = _trial(run, lines)
    parts = needs(run, activations, here)
    lines += [*_attention(run), *_precision(run), *_optimizer(run)]
    lines += [_doubled(run), memory(run, parts, here), disk(run, parts["optimizer"])]
    evaluator, evaluated = run.evaluation.evaluator, None
    if evaluator is not None:
        with run.checks.evaluation():
            names = sorted(evaluator.names(run.model, wanted=set()))
        lines.append(Line("ok", "evaluation", f"gives {', '.join(names)}"))
        evaluated = timed(run, lambda: evaluator.names(run.model, wanted=set()))
    step = _step(run, seconds, lines)
    saving = saving_s(run.config, parts["parameters"] + parts["optimizer"])
    lines.append(Line("ok", "time", words(run, Times(*start_s, seconds, step, evaluated, saving), here, evaluator)))


def _attention(run: Training) -> list[Line]:
    """Which kernels a micro-batch's attention takes; compiled blocks step aside, as nobody hears of it inside them."""
    eager = torch.compiler.set_stance("force_eager") if run.config.compile else contextlib.nullcontext()
    calls = AttentionCalls()
    with eager, calls:
        run.checks.recompute.prints(0, 0)
    return [Line("ok", "attention", words) for words in calls.lines()]


def _precision(run: Training) -> list[Line]:
    device = run.optimizer.device
    has_it = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if run.config.precision != "no" or float_dtype(run.model) != torch.float32 or not has_it:
        return []
    words = "float32; precision=tf32 multiplies in a tenth of the time here, with 10 bits of a fraction for 23"
    return [Line("ok", "precision", words)]


def _optimizer(run: Training) -> list[Line]:
    """What one that a task makes costs on a GPU, if it has no fused kernels: those ask on the device whether a step counts."""
    optimizer = run.optimizer.inner
    if not run.task.overrides("optimizer") or optimizer.defaults.get("fused") or run.config.device == "cpu":
        return []
    name = type(optimizer).__name__
    takes_it = type(optimizer).__module__.startswith("torch.optim.") and "fused" in optimizer.defaults
    advice = f"write {name}(…, fused=True)" if takes_it else f"{name} has none; Adam, AdamW, SGD and Adagrad of torch do"
    words = f"{name} without fused kernels: on a GPU each step waits for the gradients before it is launched; {advice}"
    return [Line("ok", "optimizer", words)]


def _rows(run: Training) -> str:
    plan = run.batches.plan
    rows, steps = plan.order.num_rows, plan.steps_per_epoch
    return f"{rows:,} rows to train on, {steps:,} steps an epoch, {run.num_steps:,} steps in all"


def _model(run: Training) -> str:
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in run.model.parameters()) - trainable
    return f"{trainable:,} parameters" + (f" and {frozen:,} frozen ones" if frozen else "")


def _trial(run: Training, lines: list[Line]) -> tuple[float, int]:
    """A micro-batch forward and backward, three times. Returns seconds, and bytes kept for the backward."""
    recompute = run.checks.recompute
    activations, first = activation_bytes(run, lambda: recompute.prints(0, 0))
    again = recompute.prints(0, 0).tolist()  # waits for a device
    begun = time.perf_counter()
    recompute.prints(0, 0).tolist()
    seconds = time.perf_counter() - begun
    if first.tolist() == again:
        lines.append(Line("ok", "micro-batch", f"{seconds * 1e3:.3g} ms forward and backward, the same bits twice"))
    else:
        what = "losses" if first.tolist()[0] != again[0] else "gradients"
        words = f"the same micro-batch twice gives two {what}: an unseeded random call, or state that a forward leaves"
        lines.append(Line("error", "bits", f"{words}; draw from torch, numpy or random, which are seeded"))
    return seconds, activations


def _step(run: Training, seconds: float, lines: list[Line]) -> float:
    """What a whole step takes on one process, in seconds: tried, or by its micro-batches."""
    by_micro_batches = seconds * run.config.micro_batches
    if by_micro_batches > _LONG_STEP_S:
        words = f"not tried: its {run.config.micro_batches} micro-batches would take long on one process"
        lines.append(Line("ok", "step", words))
        return by_micro_batches
    took = whole_steps(run, by_micro_batches)
    lines.append(Line("ok", "step", "a whole one was taken"))
    return took


def _doubled(run: Training) -> Line:
    try:
        (total, weight), grown, heavier = doubled(run, run.checks.recompute.rows(0, 0))
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        return Line("warning", "loss", f"could not be tried on each row twice ({type(error).__name__}: {error})")
    if words := mistaken(grown, heavier):
        return Line("error", "loss", words)
    if abs(grown - 2) > 0.05:
        return Line("warning", "loss", f"is {grown:.3g} times as much over each row twice: a part of it is no sum over rows")
    return Line("ok", "loss", f"is a sum: {total / weight:.4g} for each of {weight:g}")

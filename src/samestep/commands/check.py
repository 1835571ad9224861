"""`samestep check`: what would go wrong with a config, found in seconds, before anything is queued."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from samestep.batches import on_device
from samestep.checks import Recompute
from samestep.commands import verify
from samestep.config import Config, load_config
from samestep.control import StopFlag
from samestep.errors import SamestepError, TrainingError, UsageError, place_in_user_code
from samestep.evaluation import evaluating
from samestep.loop import Training, train
from samestep.randomness.seeding import seed_all
from samestep.runtime import prepare_environment, processes_here, read_runtime
from samestep.session import Plans, build, make_accelerator
from samestep.task import checked_loss, load_task
from samestep.tracking import NullTracker, find_tracker, wandb_mode

_SIZES_SHOWN = (1, 2, 4, 8, 16, 32, 64)
_LONG_STEP_S = 20.0


@dataclass
class Line:
    """One thing that was looked at. `level` is ok, warning or error; an error's text says what to write."""

    level: str
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what:<11} {self.text}"


class _Noting(NullTracker):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def line(self, text: str) -> None:
        self.notes.append(text)


def check(config_path: str, processes: str | None, bits: bool, overrides: tuple[str, ...]) -> list[Line]:
    """Look at the config, its task, a micro-batch, memory, disk and trackers.

    Args:
        processes: the world sizes asked about, `1,2,4`; by default what fits.
        bits: also run a few steps at several world sizes and compare the weights, as `samestep verify` does.

    Raises UsageError for mistakes in the config itself.
    """
    config, origins = load_config(config_path, overrides)
    typed = [key for key, origin in origins.items() if origin == "command line"]
    words = f"{len(origins) - len(typed)} values of {config_path}" + (f"; typed: {', '.join(typed)}" if typed else "")
    here = config.processes or processes_here(config.device, config.num_leaves)
    lines = [Line("ok", "config", words), *_sizes(config, processes, here)]
    runtime, noting = read_runtime(), _Noting()
    prepare_environment(runtime, config.threads)
    try:
        list(map(find_tracker, config.track.also))  # each is there
        accelerator, task = make_accelerator(config), load_task(config.task, config.fields)
        plans = Plans(task, accelerator, runtime, StopFlag(), None, [runtime.host])
        run = build(config, plans, lambda num_steps: noting)
        lines += [Line("ok", "data", _rows(run)), Line("ok", "model", _model(run))]
        lines += [Line("warning", "model", note.removeprefix("note: ").removeprefix("WARNING: ")) for note in noting.notes]
        seconds, activations = _trial(run, lines)
        state = _optimizer_bytes(run)
        lines += [_doubled(run), _memory(run, state, activations), _disk(run, state), _time(run, seconds, here)]
        if run.evaluator is not None:
            with run.purity.evaluation():
                names = sorted(run.evaluator.names(run.model, wanted=set()))
            lines.append(Line("ok", "evaluation", f"gives {', '.join(names)}"))
        lines.append(_step(run, seconds))
        if bits:
            lines.append(_bits(config_path, processes, overrides))
    except UsageError as error:
        lines += [Line("error", *(line.split(": ", 1) if ": " in line else ("task", line))) for line in error.lines]
    except TrainingError as error:
        lines.append(Line("error", "step", str(error)))
    except Exception as error:
        lines.append(Line("error", "task", f"{type(error).__name__}: {error}{place_in_user_code(error)}"))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "datasets"))
    return [*lines, Line("ok", "wandb", wandb_mode(config.track.wandb)), Line("ok", "versions", versions)]


def _sizes(config: Config, processes: str | None, here: int) -> list[Line]:
    try:
        asked = [int(word) for word in processes.split(",")] if processes else []
    except ValueError:
        raise UsageError(f"--processes: found {processes!r}; write numbers with commas between them, 1,2,4") from None
    lines, leaves = [], config.num_leaves
    for size in asked or sorted({here, *(size for size in _SIZES_SHOWN if size <= min(leaves, 2 * here))}):
        if 1 <= size <= leaves:
            most = math.ceil(leaves / size) * (config.micro_batches // leaves)
            words = f"{size}: {most} of {config.micro_batches} micro-batches of {config.micro_batch_size} rows each, at most"
            lines.append(Line("ok", "processes", words + (" (one for each device here)" if size == here else "")))
        else:
            words = f"found {size}, and a step has {leaves} leaves to share"
            lines.append(Line("error", "processes", f"{words}; write {leaves} or fewer, or a smaller micro_batch_size"))
    return lines


def _rows(run: Training) -> str:
    rows, steps = run.plan.order.num_rows, run.plan.steps_per_epoch
    return f"{rows:,} rows to train on, {steps:,} steps an epoch, {run.num_steps:,} steps in all"


def _model(run: Training) -> str:
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in run.model.parameters()) - trainable
    return f"{trainable:,} parameters" + (f" and {frozen:,} frozen ones" if frozen else "")


def _trial(run: Training, lines: list[Line]) -> tuple[float, int]:
    """A micro-batch forward and backward, three times. Returns seconds, and bytes kept for the backward."""
    config = run.config
    recompute = Recompute(config.seed, run.task, run.model, run.accelerator, run.gradients, run.statistics, run.batches)
    own = {p.untyped_storage().data_ptr() for p in [*run.model.parameters(), *run.model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        first = recompute.prints(0, 0)
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
    return seconds, sum(kept.values())


def _step(run: Training, seconds: float) -> Line:
    if seconds * run.config.micro_batches > _LONG_STEP_S:
        return Line("ok", "step", f"not tried: its {run.config.micro_batches} micro-batches would take long on one process")
    run.evaluator, run.num_steps = None, 1
    train(run)
    return Line("ok", "step", "a whole one was taken")


def _doubled(run: Training) -> Line:
    """Over each row twice, a sum is twice as much, and so is its weight."""
    batch = on_device(run.batches.again(0, 0), run.accelerator.device)
    found: list[tuple[float, float]] = []
    try:
        twice = type(batch)((name, torch.cat([tensor, tensor])) for name, tensor in batch.items())
        for each in (batch, twice):
            seed_all(run.config.seed, 0, 0, device=run.accelerator.device)
            with evaluating(run.model), torch.enable_grad(), run.autocast():
                total, weight, _ = checked_loss(run.task.loss(run.model, each))
            found.append((float(total.detach()), float(weight)))
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        return Line("warning", "loss", f"could not be tried on each row twice ({type(error).__name__}: {error})")
    grown, heavier = (twice / once if once else 2.0 for once, twice in zip(*found, strict=True))
    if abs(grown - 1) < 0.05 and abs(heavier - 2) < 0.05:
        return Line("error", "loss", "is the same over each row twice: a mean, where the sum belongs; write reduction='sum'")
    if abs(heavier - 1) < 0.05:
        return Line("error", "loss", "has the same weight over each row twice; return how many rows or tokens it sums over")
    if abs(grown - 2) > 0.05:
        return Line("warning", "loss", f"is {grown:.3g} times as much over each row twice: a part of it is no sum over rows")
    return Line("ok", "loss", f"is a sum: {found[0][0] / found[0][1]:.4g} for each of {found[0][1]:g}")


def _optimizer_bytes(run: Training) -> int:
    """Of the optimizer's state, as a step leaves it: tried on a copy of the smallest parameter of each group."""
    total, optimizer = 0.0, run.optimizer.inner
    for group in optimizer.param_groups:
        one = torch.nn.Parameter(min(group["params"], key=lambda p: p.numel()).detach().clone())
        one.grad = torch.zeros_like(one)
        state: list[torch.Tensor] = [one, one]  # where it can't be tried, of Adam's size
        with contextlib.suppress(Exception):  # one of the task's own may want more than its groups
            tried = type(optimizer)([one], **{key: value for key, value in group.items() if key in optimizer.defaults})
            tried.step()
            state = [value for value in tried.state[one].values() if isinstance(value, torch.Tensor)]
        each = sum(value.nbytes for value in state if value.shape == one.shape) / max(one.nbytes, 1)
        total += each * sum(p.nbytes for p in group["params"])
    return int(total)


def _memory(run: Training, optimizer: int, activations: int) -> Line:
    gradients, leaves = sum(p.nbytes for p in run.model.parameters() if p.requires_grad), run.config.num_leaves
    copies = int(math.log2(leaves)) if run.config.reduce == "exact" else 0  # of the ordered sum, at most
    parts = {
        "parameters": sum(tensor.nbytes for tensor in run.model.state_dict().values()),
        "gradients": gradients * (1 + copies),
        "optimizer": optimizer,
        "activations": activations,
    }
    device, total = run.accelerator.device, sum(parts.values())
    on_gpu = device.type == "cuda"
    there = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    shown = ", ".join(f"{name} {_size(number)}" for name, number in parts.items())
    words = f"about {_size(total)} a process ({shown}), of {_size(there)} {'on the device' if on_gpu else 'here'}"
    if total > there:
        return Line("error", "memory", f"{words}; write a smaller micro_batch_size or model, precision=bf16, or fewer leaves")
    return Line("warning" if total > 0.8 * there else "ok", "memory", words)


def _time(run: Training, seconds: float, here: int) -> Line:
    step = seconds * math.ceil(run.config.micro_batches / here)
    words = f"{step * 1e3:.3g} ms a step on {here} process{'es' if here > 1 else ''}, {_duration(step * run.num_steps)} in all"
    return Line("ok", "time", f"at least {words}, by the micro-batch tried")


def _disk(run: Training, optimizer: int) -> Line:
    config = run.config
    size = sum(tensor.nbytes for tensor in run.model.state_dict().values()) + optimizer
    most = size * (config.checkpoint.keep + 1 + bool(config.checkpoint.best))
    here = Path(config.runs).absolute()
    folder = next(place for place in (here, *here.parents) if place.exists())
    free = shutil.disk_usage(folder).free
    words = f"checkpoints of {_size(size)}, at most {_size(most)} at a time, and {_size(free)} free in {folder}"
    if most > free:
        return Line("error", "disk", f"{words}; make room, write runs=FOLDER elsewhere, or checkpoint.keep=1")
    return Line("ok", "disk", words)


def _bits(config_path: str, processes: str | None, overrides: tuple[str, ...]) -> Line:
    try:
        return Line("ok", "bits", verify.verify(config_path, processes, 3, overrides).splitlines()[-1])
    except SamestepError as error:
        return Line("error", "bits", str(error).splitlines()[-1])


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds > 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"

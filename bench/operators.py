"""Operators of a training step beside a plain loop's: `python bench/operators.py NAME [KEY=VALUE …]`, JSON on standard output.

What a GPU would launch is counted on a CPU, without views: deep models, narrow tensors, each step of one or of several
micro-batches. The plain loop is what a reader would write: fused optimizer, autocast, `clip_grad_norm_`. NAME is one of
`operator_models.MODELS`. --as-on-a-gpu: the step's numbers stay tensors, and its norm is taken by Triton's kernels, whose
launches are counted and left out.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from samestep.config import Config, load_config
from samestep.control import StopFlag, leave_together
from samestep.exact import norm, norm_kernels
from samestep.loop import Training, train
from samestep.runtime import read_runtime
from samestep.session import Plans, build, make_accelerator
from samestep.task.loading import load_task
from samestep.tracking import NullTracker

sys.path.insert(0, str(Path(__file__).parent))
from operator_models import MODELS, loss_of, rows_of

STEPS = 10
CONFIG = Path(__file__).parent.parent / "configs/seed.yaml"
_FREE = {"aten._to_copy.default", "aten.lift_fresh.default", "aten.empty.memory_format", "aten.empty_like.default"}
_OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
_WORDS = {
    "gpt": ["precision=bf16", "optimizer={name: adamw, lr: 1e-3}"],
    "batchnorms": ["optimizer={name: sgd, lr: 1e-3, momentum: 0.9}"],
    "layernorms": ["optimizer={name: adamw, lr: 1e-3}", "clip=1.0"],
    "droppath": ["optimizer={name: adamw, lr: 1e-3}"],
    "masked": ["optimizer={name: adamw, lr: 1e-3}"],
}


class Operators(TorchDispatchMode):
    """Counts what is dispatched, but for views, which launch nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.namespace != "prim":
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Launches:
    """In a kernel's place: counts its launches."""

    def __init__(self, name: str, operators: Operators) -> None:
        self._name, self._operators = f"triton{name}", operators

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self._operators.counts[self._name] += 1
        return lambda *words, **more: None


def plain(config: Config, name: str) -> dict[str, float]:
    torch.manual_seed(0)
    model = MODELS[name]()
    arguments = {key: value for key, value in config.optimizers["optimizer"].arguments.items() if key != "name"}
    optimizer = _OPTIMIZERS[config.optimizers["optimizer"].name](model.parameters(), fused=True, **arguments)
    rows = rows_of(name, config.micro_batch_size)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(config.micro_batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                loss = loss_of(name, model, rows["x"], rows["y"], "mean") / config.micro_batches
            loss.backward()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()

    step()
    with Operators() as operators:
        for _ in range(STEPS):
            step()
    return _a_step(operators)


def samestep(config: Config, on_a_gpu: bool) -> dict[str, float]:
    accelerator, task = make_accelerator(config), load_task(config.task, config.fields)
    training = build(config, Plans(task, accelerator, read_runtime(), StopFlag(), None, ["here"]), lambda steps: NullTracker())
    training.evaluation.evaluator, training.first_step, training.num_steps = None, 0, 0
    if on_a_gpu:
        training.sums.exchange._on_host = False
        norm._on_host = lambda tensor: False
        norm._kernels = lambda: norm_kernels  # type: ignore[assignment]
        training.optimizer._on_device = True
        training.reports.post = lambda *numbers: None  # type: ignore[method-assign]  # they are read a step later
    operators = Operators()
    for name in ("_square_rows", "_add_to_bins", "_add_bins"):
        setattr(norm_kernels, name, Launches(name, operators))
    _go_on(training, 65)  # behind the 64th and before the 128th, in which what tasks do is looked at
    operators.counts.clear()
    with operators:
        _go_on(training, STEPS)
    return _a_step(operators)


def _go_on(training: Training, steps: int) -> None:
    training.first_step, training.num_steps = training.num_steps, training.num_steps + steps
    train(training)


def _a_step(operators: Operators) -> dict[str, float]:
    return {name: count / STEPS for name, count in operators.counts.most_common()}


def main() -> None:
    name, words = sys.argv[1], [word for word in sys.argv[2:] if not word.startswith("--")]
    keys = [
        f"task={Path(__file__).parent}/operator_models.py:Counted", f"with={{name: {name}}}", "device=cpu", "epochs=null",
        "global_batch_size=4", "micro_batch_size=4", "steps=1000000", "audit=false", "track={every: 1000000, wandb: 'off'}",
    ]  # fmt: skip
    config, _ = load_config(CONFIG, [*keys, *_WORDS[name], *words])
    ours = samestep(config, "--as-on-a-gpu" in sys.argv)
    theirs = plain(config, name)
    print(json.dumps({"samestep": sum(ours.values()), "plain": sum(theirs.values()), "of": ours, "of_plain": theirs}))
    leave_together()


torch.set_num_threads(1)
main()

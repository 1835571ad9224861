"""Prints what a training step of the tiny task does, as JSON: `python step_cost.py [KEY=VALUE …]`, counts for a single step.

Counts don't wobble as times do. The steps counted are not among those that the watch over forwards looks into.
"""

from __future__ import annotations

import collections
import json
import sys
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from samestep.config import load_config
from samestep.control import StopFlag
from samestep.loop import Training, train
from samestep.runtime import read_runtime
from samestep.session import Plans, build, make_accelerator
from samestep.task import load_task
from samestep.tracking import NullTracker

STEPS = 10


class Operators(TorchDispatchMode):
    """Counts torch's operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Calls:
    """Counts calls of Python functions whose file lies in samestep."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and "/samestep/" in frame.f_code.co_filename:
            self.counts[f"{frame.f_code.co_filename.rpartition('/samestep/')[2]}:{frame.f_code.co_name}"] += 1


def go_on(training: Training, steps: int) -> None:
    training.first_step, training.num_steps = training.num_steps, training.num_steps + steps
    train(training)


def main() -> None:
    words = ["device=cpu", "epochs=null", "steps=1000000", "with.samples=4096", "track.every=1000000", *sys.argv[2:]]
    config, _ = load_config(sys.argv[1], words)
    accelerator, task = make_accelerator(config), load_task(config.task, config.fields)
    training = build(config, Plans(task, accelerator, read_runtime(), StopFlag(), None, ["here"]), lambda steps: NullTracker())
    training.evaluator, training.first_step, training.num_steps = None, 0, 0
    go_on(training, 35)
    with Operators() as operators:
        go_on(training, STEPS)
    calls = Calls()
    sys.setprofile(calls)
    go_on(training, STEPS)
    sys.setprofile(None)
    found = {name: {key: count / STEPS for key, count in counts.most_common()} for name, counts in
             (("operators", operators.counts), ("calls", calls.counts))}  # fmt: skip
    print(json.dumps(found))


torch.set_num_threads(1)
main()

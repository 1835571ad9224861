"""Prints what a training step does, as JSON: `python step_cost.py CONFIG [--as-on-a-gpu] [--far] [KEY=VALUE …]`, for one step.

Counts don't wobble as times do. The steps counted are not among those that the watch over forwards looks into. Under torchrun
it is one rank's step. As on a GPU: the step's numbers stay tensors there, and whoever reads one waits for the device.
Far: as if each rank had a machine of its own.
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
from samestep.control import StopFlag, leave_together
from samestep.exact import norm
from samestep.loop import Training, train
from samestep.runtime import read_runtime, shared_memory
from samestep.session import Plans, build, make_accelerator
from samestep.task.loading import load_task
from samestep.tracking import NullTracker

STEPS = 10


class Operators(TorchDispatchMode):
    """Counts torch's operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: collections.Counter[str] = collections.Counter()
        self.messages: collections.Counter[str] = collections.Counter()
        self.sent: collections.Counter[str] = collections.Counter()  # bytes given to each kind of message

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        if func.namespace == "c10d":
            given = args[1] if isinstance(args[1], torch.Tensor) else args[0][0]  # after the tensor to fill, if there is one
            self.note(str(func), given)
        return func(*args, **(kwargs or {}))

    def note(self, kind: str, *parts: torch.Tensor) -> None:
        self.messages[kind] += 1
        self.sent[kind] += sum(part.nbytes for part in parts)


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


def stay_on_the_device(training: Training) -> None:
    training.sums.exchange._on_host = False
    norm._on_host = lambda tensor: False
    training.optimizer._on_device = True
    training.reports.post = lambda *numbers: None  # type: ignore[method-assign]  # they are read a step later


def main() -> None:
    given = [word for word in sys.argv[2:] if not word.startswith("--")]
    words = ["device=cpu", "epochs=null", "steps=1000000", "with.samples=4096", "track.every=1000000", *given]
    config, _ = load_config(sys.argv[1], words)
    accelerator, task = make_accelerator(config), load_task(config.task, config.fields)
    training = build(config, Plans(task, accelerator, read_runtime(), StopFlag(), None, ["here"]), lambda steps: NullTracker())
    training.evaluation.evaluator, training.first_step, training.num_steps = None, 0, 0
    if "--as-on-a-gpu" in sys.argv:
        stay_on_the_device(training)
    shared_memory._IS_FIT = "--far" not in sys.argv
    go_on(training, 65)  # behind the 64th, where what tasks do is looked at, and before the 100th
    send = shared_memory.Channel.send
    with Operators() as operators:
        shared_memory.Channel.send = lambda self, *parts: operators.note("near", *parts) or send(self, *parts)  # type: ignore[method-assign]
        go_on(training, STEPS)
    shared_memory.Channel.send = send  # type: ignore[method-assign]
    calls = Calls()
    sys.setprofile(calls)
    go_on(training, STEPS)
    sys.setprofile(None)
    if accelerator.is_main_process:
        counted = {"operators": operators.counts, "messages": operators.messages, "sent": operators.sent, "calls": calls.counts}
        found = {name: {key: count / STEPS for key, count in counts.most_common()} for name, counts in counted.items()}
        print(json.dumps(found))
    leave_together()


torch.set_num_threads(1)
main()

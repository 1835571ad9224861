"""Tasks that remember something, in a place of their own, and let it come into what a run is."""

from __future__ import annotations

import builtins
import contextvars
import functools
import itertools
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import nn

from samestep import Task

Batch = dict[str, torch.Tensor]
ROWS = 48


def counter() -> Callable[[], int]:
    calls = itertools.count(1)
    return lambda: next(calls)


def endless() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


COUNT = [0]
ITERATOR = itertools.count(1)
GENERATED = endless()
CLOSURE = counter()
NUMPY = np.random.Generator(np.random.Philox(1))
TORCH = torch.Generator().manual_seed(0)
CONTEXT: contextvars.ContextVar[int] = contextvars.ContextVar("calls", default=0)
ASKED: queue.Queue[int] = queue.Queue()
ANSWERED: queue.Queue[int] = queue.Queue()


class Descriptor:
    calls = 0

    def __get__(self, owner: Any, kind: Any) -> int:
        Descriptor.calls += 1
        return Descriptor.calls


class Owner:
    calls = 0
    described = Descriptor()


class Backward(torch.autograd.Function):
    """Its backward counts."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        Backward.calls += 1
        return grad


FORWARDS = itertools.count(1)
SEEN = [-9.0]  # the largest number of any row
LAST = [0.0]  # what the loss has left for others to read


@functools.cache
def cached() -> list[int]:
    return [0]


def default(calls: list[int] = [0]) -> int:  # noqa: B006
    calls[0] += 1
    return calls[0]


def of_a_list(calls: list[int]) -> int:
    calls[0] += 1
    return calls[0]


def of_an_object(holder: Any, name: str) -> int:
    setattr(holder, name, getattr(holder, name, 0) + 1)
    return int(getattr(holder, name))


def of_the_environment() -> int:
    os.environ["HIDDEN_CALLS"] = str(int(os.environ.get("HIDDEN_CALLS", "0")) + 1)
    return int(os.environ["HIDDEN_CALLS"])


def of_a_file() -> int:
    with open(f"calls-{os.getpid()}", "a+") as file:
        file.write("x")
        return file.tell()


def of_a_thread() -> int:
    def work() -> None:
        for calls in itertools.count(1):
            ASKED.get()
            ANSWERED.put(calls)

    if not hasattr(of_a_thread, "began"):
        of_a_thread.began = True  # type: ignore[attr-defined]
        threading.Thread(target=work, daemon=True).start()
    ASKED.put(0)
    return ANSWERED.get()


class Child:
    """Another process, which counts what it is asked."""

    def __init__(self) -> None:
        down, self._ask = os.pipe()
        self._answer, up = os.pipe()
        if os.fork() == 0:
            os.close(self._ask)
            for calls in itertools.count(1):
                if not os.read(down, 1):
                    os._exit(0)
                os.write(up, calls.to_bytes(4, "little"))
        os.close(down)
        os.close(up)

    def __call__(self) -> int:
        os.write(self._ask, b"?")
        return int.from_bytes(os.read(self._answer, 4), "little")


@functools.cache
def child() -> Child:
    return Child()


def of_numpys_generator() -> int:
    NUMPY.random(4)
    state: Any = NUMPY.bit_generator.state
    return int(state["state"]["counter"][0])


def of_torchs_generator() -> int:
    seed = TORCH.initial_seed() + 1
    TORCH.manual_seed(seed)
    return seed


def compiled(calls: list[int]) -> Any:
    calls[0] += 1
    return compiled_identity()


@functools.cache
def compiled_identity() -> Any:
    return torch.compile(lambda x: x * 1.0, backend="eager", dynamic=True)


def of_the_context() -> int:
    CONTEXT.set(CONTEXT.get() + 1)
    return CONTEXT.get()


COUNTS: dict[str, Callable[[Any, Any], int]] = {
    "task": lambda task, model: of_a_list(task._calls),
    "model": lambda task, model: of_an_object(model, "calls"),
    "layer": lambda task, model: of_an_object(model[0], "calls"),
    "module": lambda task, model: of_a_list(COUNT),
    "class": lambda task, model: of_an_object(Owner, "calls"),
    "task's class": lambda task, model: of_an_object(Hidden, "_counted"),
    "closure": lambda task, model: CLOSURE(),
    "iterator": lambda task, model: next(ITERATOR),
    "generator": lambda task, model: next(GENERATED),
    "cache": lambda task, model: of_a_list(cached()),
    "default": lambda task, model: default(),
    "descriptor": lambda task, model: int(Owner().described),
    "environment": lambda task, model: of_the_environment(),
    "file": lambda task, model: of_a_file(),
    "thread": lambda task, model: of_a_thread(),
    "process": lambda task, model: child()(),
    "numpy": lambda task, model: of_numpys_generator(),
    "torch": lambda task, model: of_torchs_generator(),
    "context": lambda task, model: of_the_context(),
    "builtins": lambda task, model: of_an_object(builtins, "_calls"),
    "library": lambda task, model: of_an_object(torch, "_calls"),
    "hook": lambda task, model: int(task._heard[0]),
    "backward": lambda task, model: Backward.calls,
    "data set": lambda task, model: int(task._rows.calls),
    "compiled": lambda task, model: int(task._compiled[0]),
}


class Counting:
    """A data set that knows how often it was asked."""

    def __init__(self, rows: list[dict[str, np.ndarray]]) -> None:
        self.rows, self.calls = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.rows[number]


class Hidden(Task):
    """Remembers in `place`, how often it was called or what it has seen, and from `onset` on lets that come into `what`.

    how: "counts" is another number each time, "flips" is one from then on, "keeps" is what the batch at `onset` held, and
    "nothing" comes into nothing.
    """

    place: str
    what: str
    how: str
    onset: int
    row: float = 9.0  # if a batch reaches that, it begins then
    _calls: Any = PrivateAttr(default_factory=lambda: [0])
    _heard: Any = PrivateAttr(default_factory=lambda: [0])
    _compiled: Any = PrivateAttr(default_factory=lambda: [0])
    _kept: Any = PrivateAttr(default_factory=dict)
    _rows: Any = None

    def data(self, split: str) -> Any:
        made = np.random.default_rng(0 if split == "train" else 1)
        count = ROWS if split == "train" else 6
        rows = [{"x": made.normal(size=3).astype(np.float32)} for _ in range(count)]
        found = Counting([{**row, "y": row["x"].sum(keepdims=True)} for row in rows])
        if split == "train" and self.place == "data set":
            self._rows = found
        return found

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        model.register_buffer("centre", torch.zeros(3))
        if self.place == "hook":
            model[0].register_forward_hook(lambda module, args, out: of_a_list(self._heard) and None)
        return model

    def value(self, model: Any, x: Any) -> float:
        """What comes of it, once more; never twice in one call."""
        calls = COUNTS[self.place](self, model)
        begun = calls > self.onset or self._has_seen(float(x.max()))
        if not begun or self.how == "nothing":
            return 0.0
        if self.how == "keeps":
            return float(self._kept.setdefault("first", float(x.reshape(-1)[0])))
        return 1.0 if self.how == "flips" else float(calls)

    def _has_seen(self, largest: float) -> bool:
        SEEN[0] = max(SEEN[0], largest)
        return SEEN[0] >= self.row

    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if self.what == "rows":
            return {**row, "x": row["x"] + np.float32(0.01 * self.value(nn.Identity(), row["x"]))}
        return row

    def loss(self, model: Any, batch: Batch) -> Any:
        if next(FORWARDS) == int(os.environ.get("HIDDEN_STOP", 0)):
            Path(f"counted-{os.getpid()}").write_text(str(COUNT[0]))
            os.kill(os.getpid(), signal.SIGTERM)
        x, scale = batch["x"], 0.0
        if self.what in ("loss", "after_step", "evaluation of training"):
            value = self.value(model, x)
            LAST[0] = value
            scale = 0.1 * value if self.what == "loss" else 0.0
        out = model(x)
        if self.place == "compiled":
            out = compiled(self._compiled)(out)
        if self.place == "backward":
            out = Backward.apply(out)  # type: ignore[no-untyped-call]
        errors = (out - batch["y"]) * (1 + scale) + model.centre.sum()
        return errors.square().sum(), len(x)

    def metrics(self, model: Any, batch: Batch) -> Any:
        total, weight = (model(batch["x"]) - batch["y"]).abs().sum(), len(batch["x"])
        if self.what == "evaluation":
            total = total * (1 + 0.1 * self.value(model, batch["x"]))
        if self.what == "evaluation of training":
            total = total * (1 + 0.1 * LAST[0])
        return {"error": (total, weight)}

    def after_step(self, model: Any, step: int) -> None:
        if self.what == "after_step":
            model.centre += 0.01 * LAST[0]

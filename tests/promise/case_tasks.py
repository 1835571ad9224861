"""Tasks of the kinds that users of other tools have reported, each of which once gave other numbers in silence, or hung."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import gather
from pydantic import PrivateAttr
from torch import nn

import samestep
from samestep import Task

Batch = dict[str, torch.Tensor]


def rows(number: int = 64) -> datasets.Dataset:
    x = torch.randn(number, 3, generator=torch.Generator().manual_seed(3))
    return datasets.Dataset.from_dict({"x": x.numpy(), "y": x.sum(1, keepdim=True).numpy()})


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


_steps_taken = [0]  # no attribute, whose change would be seen


class Base(Task):
    """A line to fit. `end` is "SIGNAL CALL": the process sends itself that signal in its so-manieth loss."""

    _calls: int = 0

    def data(self, split: str) -> Any:
        return rows() if split == "train" else None

    def model(self) -> nn.Module:
        return small()

    def loss(self, model: Any, batch: Batch) -> Any:
        self._calls += 1  # which reaches no number, and is nobody's business
        name, _, call = os.environ.get("CASE_END", " ").partition(" ")
        if name and self._calls == int(call):
            os.kill(os.getpid(), getattr(signal, name))
        errors = model(batch["x"]) - batch["y"]
        return errors.square().sum(), errors.numel()


# What must be the same at every world size


class Transformed(Base):
    def data(self, split: str) -> Any:
        def ten_times(batch: dict[str, Any]) -> dict[str, Any]:
            return {"x": [[10 * value for value in row] for row in batch["x"]], "y": batch["y"]}

        return rows().with_transform(ten_times) if split == "train" else None

    def loss(self, model: Any, batch: Batch) -> Any:
        assert torch.allclose(batch["x"].sum(1, keepdim=True), 10 * batch["y"], rtol=1e-4)
        return super().loss(model, batch)


class Split(Base):
    """data() splits at random; the seed is the run's."""

    def data(self, split: str) -> Any:
        return rows().train_test_split(test_size=0.25)["train" if split == "train" else "test"]


class HalfOutput(Base):
    def loss(self, model: Any, batch: Batch) -> Any:
        out = model(batch["x"])
        assert out.dtype == torch.bfloat16
        return (out * out).sum() - (out * 0.3).sum(), out.numel()


class Complex(Base):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.complex64) @ self.w

    def model(self) -> nn.Module:
        return self.Net()

    def loss(self, model: Any, batch: Batch) -> Any:
        out = model(batch["x"])
        return out.abs().square().sum() - (out.real * batch["y"]).sum(), len(out)


class Inner(Base):
    """Reaches for what wraps the model elsewhere."""

    def loss(self, model: Any, batch: Batch) -> Any:
        return super().loss(getattr(model, "module", model), batch)


class Parts(Base):
    """Calls parts of the model, and a penalty by name."""

    def loss(self, model: Any, batch: Batch) -> Any:
        errors = model[2](torch.tanh(model[0](batch["x"]))) - batch["y"]
        penalty = sum(p.square().sum() for name, p in model.named_parameters() if name == "0.weight")
        return errors.square().sum() + 0.1 * penalty, errors.numel()


class LaterPart(Base):
    """A part that no micro-batch of the first step uses."""

    def loss(self, model: Any, batch: Batch) -> Any:
        hidden = model[0](batch["x"])
        if batch["x"][0, 0] > 1.0:
            return (model[2](hidden) - batch["y"]).square().sum(), len(hidden)
        return (hidden.sum(1, keepdim=True) - batch["y"]).square().sum(), len(hidden)


class WithoutTheModel(Base):
    def loss(self, model: Any, batch: Batch) -> Any:
        if batch["x"][0, 0] > 0.3:
            return sum(p.sum() for p in model.parameters()) * 0.0, 0
        return super().loss(model, batch)


class HeadOnly(Base):
    def optimizer(self, model: Any, config: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model[2].parameters(), lr=config.optimizer.lr)


class FrozenNorm(Base):
    """A BatchNorm that model() left in eval(): its statistics stay, after an evaluation too."""

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 8)

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
        model[0].eval().requires_grad_(False)
        return model

    def loss(self, model: Any, batch: Batch) -> Any:
        assert not model[0].training
        assert not model[0].running_mean.any()
        return super().loss(model, batch)


class SometimesNormed(Base):
    """Some micro-batches pass the BatchNorm by, and a second one is used by none."""

    def model(self) -> nn.Module:
        return nn.ModuleDict({"norm": nn.BatchNorm1d(3), "unused": nn.BatchNorm1d(3), "line": nn.Linear(3, 1)})

    def loss(self, model: Any, batch: Batch) -> Any:
        x = model["norm"](batch["x"]) if batch["x"][0, 0] > 0 else batch["x"]
        return (model["line"](x) - batch["y"]).square().sum(), len(x)


class Spectral(Base):
    """Its vectors change in each forward, to the same: they see the weights and no data."""

    def model(self) -> nn.Module:
        model = small()
        nn.utils.spectral_norm(model[0])
        nn.utils.parametrizations.spectral_norm(model[2])
        return model


class FromASet(Base):
    def data(self, split: str) -> Any:
        words = [f"w{number}" for number in range(40)]
        place = {word: number for number, word in enumerate(set(words))}
        x = [[float(place[words[number % 40]]), 1.0, 0.5] for number in range(96)]
        return datasets.Dataset.from_dict({"x": x, "y": [[float(number % 3)] for number in range(96)]})


class Hooked(Base):
    """A hook of the user's on a parameter that only some micro-batches use: called where it is used, and nowhere else."""

    _heard: int = 0
    _meant: int = 0

    def model(self) -> nn.Module:
        model = nn.ModuleDict({"line": nn.Linear(3, 1), "more": nn.Linear(3, 1)})
        model["more"].weight.register_hook(self.hear)  # type: ignore[operator]
        return model

    def hear(self, grad: torch.Tensor) -> None:
        self._heard += 1

    def loss(self, model: Any, batch: Batch) -> Any:
        assert self._heard == self._meant
        out = model["line"](batch["x"])
        if batch["x"][0, 0] > 0:
            self._meant += 1
            out = out + model["more"](batch["x"])
        return (out - batch["y"]).square().sum(), len(out)


class Random(Base):
    """Draws from the global generators wherever a task may: in a transform, in the forward, in a metric."""

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 8)

    def transform(self, row: Any, rng: Any) -> Any:
        return {**row, "x": row["x"] + random.random() * float(np.random.rand())}

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def metrics(self, model: Any, batch: Batch) -> Any:
        return {"loss": (model(batch["x"]).sum() * torch.rand(()), len(batch["x"]))}


# What a resume must bring back


class State(torch.optim.Optimizer):
    """A step whose memory is of a kind: a list, a dict, a tuple, a name of its own, float32 copies of the weights, noise."""

    def __init__(self, params: Any, lr: float, kind: str) -> None:
        super().__init__(params, {"lr": lr, "pair": (0.5, 1.5)})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.kind == "own":
            self.state["all"]["k"] = self.state["all"].get("k", 0) + 1  # type: ignore[index]
        for group in self.param_groups:
            assert isinstance(group["pair"], tuple)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, change = self.state[p], p.grad
                if self.kind == "list":
                    state["past"] = [*state.get("past", []), p.grad.clone()][-3:]
                    change = sum(state["past"])
                if self.kind == "dict":
                    change = state.setdefault("inner", {"m": torch.zeros_like(p)})["m"].mul_(0.9).add_(p.grad)
                if self.kind == "tuple":
                    low, high = state.setdefault("range", (0.5, 1.5))
                    assert isinstance(state["range"], tuple)
                    change = p.grad * (low + high)
                if self.kind == "own":
                    change = p.grad / self.state["all"]["k"]  # type: ignore[index]
                if self.kind == "noise":
                    change = p.grad + torch.randn_like(p) * random.random() * float(np.random.rand())
                if self.kind == "master":
                    state.setdefault("master", p.detach().float().clone()).add_(p.grad.float(), alpha=-group["lr"])
                    p.copy_(state["master"])
                else:
                    p.sub_(change, alpha=group["lr"])


class OwnState(Base):
    kind: str

    def model(self) -> nn.Module:
        return small().bfloat16() if self.kind == "master" else small()

    def optimizer(self, model: Any, config: Any) -> torch.optim.Optimizer:
        half = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]
        return State(half, config.optimizer.lr, self.kind)

    def loss(self, model: Any, batch: Batch) -> Any:
        dtype = model[0].weight.dtype
        loss, weight = super().loss(model, {name: column.to(dtype) for name, column in batch.items()})
        return loss.float(), weight


class Changing(Base):
    """after_step freezes and frees, keeps an average for the evaluation and a teacher, and holds a norm in bounds."""

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 8)

    def model(self) -> nn.Module:
        model = nn.ModuleDict({"student": small(), "teacher": small(), "norm": nn.BatchNorm1d(3)})
        model["teacher"].requires_grad_(False)
        model["student"][2].requires_grad_(False)  # type: ignore[index]
        model.register_buffer("steps", torch.zeros(()))
        return model

    def after_step(self, model: Any, step: int) -> None:
        for slow, fast in zip(model["teacher"].parameters(), model["student"].parameters(), strict=True):
            slow.lerp_(fast, 0.2)
        model.steps += 1
        model["student"][0].weight.clamp_(-1, 1).add_(torch.rand(()) * 1e-3)
        if step == 3:
            model["student"][2].requires_grad_(True)
            model["student"][0].requires_grad_(False)
            model["norm"].eval()

    def loss(self, model: Any, batch: Batch) -> Any:
        super().loss(model["teacher"], batch)
        x = model["norm"](batch["x"])
        out = model["student"](x)
        return (out - batch["y"]).square().sum() + (out - model["teacher"](x)).square().sum() / (1 + model.steps), len(out)

    def metrics(self, model: Any, batch: Batch) -> Any:
        return {"loss": ((model["teacher"](batch["x"]) - batch["y"]).square().sum(), len(batch["x"]))}


class PassingFault(Base):
    """An error after the forward of one micro-batch, with a BatchNorm in the way, and a counter."""

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        nn.utils.spectral_norm(model[3])
        return model

    def loss(self, model: Any, batch: Batch) -> Any:
        result = super().loss(model, batch)
        if self._calls == int(os.environ.get("CASE_FAIL", 0)):
            raise OSError("a passing fault")
        return result


class QuietAverage(Base):
    """after_step writes into a buffer through `.data`, which no version counts; then an error in the eleventh step."""

    def model(self) -> nn.Module:
        model = small()
        model.register_buffer("mean", torch.zeros(()))
        return model

    def loss(self, model: Any, batch: Batch) -> Any:
        if _steps_taken[0] == 10 and "CASE_MENDED" not in os.environ:
            raise OSError("a passing fault")
        total, weight = super().loss(model, batch)
        return total * (1 + model.mean), weight

    def after_step(self, model: Any, step: int) -> None:
        _steps_taken[0] = step
        model.mean.data.add_(0.01)


class Scored(Base):
    """An evaluation that scores what the list says, by the step; -1 stands for a weight of zero."""

    scores: list[float]

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 6)

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 1))
        model.register_buffer("steps", torch.zeros((), dtype=torch.long))
        model.register_forward_pre_hook(self.count)
        return model

    @staticmethod
    def count(model: Any, x: Any) -> None:
        if model.training:
            model.steps += 1

    def metrics(self, model: Any, batch: Batch) -> Any:
        value = self.scores[(int(model.steps) - 1) // 2]
        found = {"sometimes": (batch["x"].sum(), len(batch["x"]))} if batch["x"][0, 0] > 0 else {}
        found["score"] = (torch.tensor(value if value >= 0 else 0.0), 1 if value >= 0 else 0)
        return found


class StoppedInEvaluation(Scored):
    """The signal comes in the so-manieth micro-batch that is evaluated."""

    _measured: int = 0

    def metrics(self, model: Any, batch: Batch) -> Any:
        self._measured += 1
        if self._measured == int(os.environ.get("CASE_MEASURED", 0)):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().metrics(model, batch)


# What must be refused by name


class Counting(Base):
    """A buffer of whole numbers that sees the data."""

    class Net(nn.Linear):
        seen: torch.Tensor

        def __init__(self) -> None:
            super().__init__(3, 1)
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.seen += (x > 0).sum()
            return super().forward(x)

    def model(self) -> nn.Module:
        return self.Net()


class Meter:
    def __init__(self) -> None:
        self.total = 0


class Averaging(Base):
    """Something in the model that a forward changes: `what` it is."""

    what: str

    class Net(nn.Linear):
        mean: torch.Tensor
        var: torch.Tensor
        mask: torch.Tensor | None
        steps: torch.Tensor

        def __init__(self, what: str) -> None:
            super().__init__(3, 1)
            self.what, self.calls, self.past = what, 0, [0.0]
            self.generator = torch.Generator().manual_seed(0)
            self.kept = torch.zeros(3)
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("var", torch.ones(3))
            self.register_buffer("mask", None, persistent=False)
            self.scalar, self.state = np.float32(0), np.random.RandomState(0)
            self.meter = Meter()
            self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)
            self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                if self.what == "evaluation":
                    self.mean += 1
                if self.what == "early":
                    self.register_buffer("late", torch.zeros(3))
                return super().forward(x)
            self.calls += 1
            if self.what == "mean":
                self.mean.lerp_(x.mean(0), 0.1)
            if self.what == "late" and "late" not in self._buffers:
                self.register_buffer("late", torch.zeros(3))
            if self.what == "steps":
                self.steps += 1
                x = x * self.steps
            if self.what == "gradient":
                out = super().forward(x)
                return out + (out - out.detach()) * (self.calls % 3)
            if self.what == "unread":
                self.steps += 1
            if self.what == "data":
                self.mean.data.lerp_(x.mean(0), 0.1)
            if self.what == "norm":
                x = torch.nn.functional.batch_norm(x, self.mean, self.var, training=True)
            if self.what == "mask" and self.mask is None:
                self.register_buffer("mask", torch.ones(3), persistent=False)
            if self.what == "scalar":
                self.scalar = np.float32(self.scalar + 1)
                x = x * float(self.scalar)
            if self.what == "state":
                x = x + float(self.state.rand())
            if self.what == "meter":
                self.meter.total += 1
                x = x * self.meter.total
            if self.what == "frozen":
                self.frozen.lerp_(x.mean(0), 0.1)
            if self.what == "weight":
                self.weight.data.clamp_(-0.1, 0.1)
            if self.what == "requires_grad":
                self.bias.requires_grad_(self.calls < 2)
            if self.what == "mode" and self.calls % 3 == 0:
                self.eval()
            out = super().forward(x)
            if self.what == "calls":
                out = out * (1 + self.calls)
            if self.what == "past":
                self.past.append(self.past[-1] + 1)
                out = out * self.past[-1]
            if self.what == "kept":
                self.kept.add_(x.detach().mean(0))
                out = out + self.kept.sum()
            if self.what == "generator":
                out = out + torch.rand((), generator=self.generator)
            return out

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 8)

    def model(self) -> nn.Module:
        return self.Net(self.what)


class EvaluatedOnRankOne(Base):
    """Rank 1's evaluation makes a buffer, and rank 0's next forward makes it too."""

    _measured: int = 0

    def data(self, split: str) -> Any:
        return rows()

    def loss(self, model: Any, batch: Batch) -> Any:
        if self._measured > 1:
            model.register_buffer("late", torch.zeros(1))
        return super().loss(model, batch)

    def metrics(self, model: Any, batch: Batch) -> Any:
        self._measured += 1  # the first is the one that is tried before the first step
        if self._measured > 1 and os.environ.get("RANK") == "1":
            model.register_buffer("late", torch.zeros(1))
        return {"loss": super().loss(model, batch)}


class AveragingFew(Averaging):
    """Fewer rows than a micro-batch holds: one micro-batch of a step counts, and the others are there all the same."""

    def data(self, split: str) -> Any:
        return rows().select(range(2)) if split == "train" else None

    def loss(self, model: Any, batch: Batch) -> Any:
        return super().loss(model, {**batch, "x": batch["x"] + torch.rand_like(batch["x"])})


class Annealed(Base):
    """A weight of the loss that the task itself moves with each call."""

    beta: float = 1.0

    def loss(self, model: Any, batch: Batch) -> Any:
        loss, weight = super().loss(model, batch)
        self.beta *= 0.9
        return loss * self.beta, weight


class Beside(Base):
    """A teacher that the task keeps, and moves where it likes."""

    where: str
    _teacher: Any = None

    def model(self) -> nn.Module:
        self._teacher = small()
        return small()

    def move(self, model: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(self._teacher.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    def loss(self, model: Any, batch: Batch) -> Any:
        loss, weight = super().loss(model, batch)
        if self.where == "loss":
            self.move(model)
        return loss + (model(batch["x"]) - self._teacher(batch["x"])).square().sum(), weight


class BesideAfterStep(Beside):
    def after_step(self, model: Any, step: int) -> None:
        self.move(model)


class Drawing(Base):
    """A generator of the task's own, drawn in transform."""

    _rng: Any = PrivateAttr(default_factory=lambda: np.random.default_rng(0))

    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**row, "x": np.asarray(row["x"]) + np.float32(self._rng.random())}


class Weighing(Base):
    """metrics() leaves something for loss to read."""

    _w: float = 1.0

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 8)

    def metrics(self, model: Any, batch: Batch) -> Any:
        self._w += 1
        return {"loss": super().loss(model, batch)}

    def loss(self, model: Any, batch: Batch) -> Any:
        loss, weight = super().loss(model, batch)
        return loss * self._w, weight


class LateThreshold(Base):
    """Nothing to see until the twentieth call."""

    def loss(self, model: Any, batch: Batch) -> Any:
        loss, weight = super().loss(model, batch)
        return loss * (2 if self._calls > 20 else 1), weight


class LateChange(Base):
    """In the third step, at which the bits of the weights are not looked at, the forward changes a parameter."""

    what: str

    def loss(self, model: Any, batch: Batch) -> Any:
        if self._calls == 9:
            if self.what == "weight":
                with torch.no_grad():
                    model[0].weight.mul_(1.1)
            else:
                model[0].bias.requires_grad_(False)
        return super().loss(model, batch)


class Layouts(Base):
    """Parameters whose memory is not in the order of their dimensions."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turned = nn.Parameter(torch.randn(8, 3).t())
            self.convolution = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.convolution((x @ self.turned).view(-1, 2, 2, 2))
            return out.flatten(1).sum(1, keepdim=True)

    def model(self) -> nn.Module:
        return self.Net()


class Spoiling(Base):
    """In the third step, or the evaluation after it, the model is changed for good; not so once CASE_MENDED is set."""

    what: str
    _measured: int = 0

    class Net(nn.Linear):
        empty: torch.Tensor | None
        mean: torch.Tensor

        def __init__(self) -> None:
            super().__init__(3, 1)
            self.register_buffer("empty", None)
            self.register_buffer("mean", torch.zeros(3))

    def data(self, split: str) -> Any:
        return rows() if split == "train" else rows(4)

    def model(self) -> nn.Module:
        return self.Net()

    def loss(self, model: Any, batch: Batch) -> Any:
        if model.training and _steps_taken[0] == 2 and self.what != "after" and not self.what.startswith("evaluation"):
            self._spoil(model)
        return super().loss(model, batch)

    def metrics(self, model: Any, batch: Batch) -> Any:
        self._measured += 1
        if self._measured > 1 and self.what.startswith("evaluation"):  # the first is made at the start
            self._spoil(model)
        return super().metrics(model, batch)

    def after_step(self, model: Any, step: int) -> None:
        _steps_taken[0] = step
        if step == 3 and self.what == "after":
            self._spoil(model)

    def _spoil(self, model: Any) -> None:
        if "CASE_MENDED" in os.environ:
            return
        match self.what.removeprefix("evaluation "):
            case "weight":
                model.weight.data.mul_(1.1)
                model.weight.detach().mul_(1.0)
            case "frozen":
                model.bias.requires_grad_(False)
            case "buffer" | "after":
                model.register_buffer("late", torch.zeros(3))
            case "empty":
                model.empty = torch.zeros(3)
            case "module":
                model.later = nn.Linear(3, 1)
            case "removed":
                model._buffers.pop("mean", None)
            case "mean":
                model.mean += 1
            case "object":
                model.mean = torch.ones(3)
            case "error":
                model.mean += 1
                raise RuntimeError("no")


class Signalled(Base):
    """The signal reaches rank 1 alone."""

    def loss(self, model: Any, batch: Batch) -> Any:
        if os.environ.get("RANK") == "0":
            os.environ.pop("CASE_END", None)
        return super().loss(model, batch)


class ChangingTheTask(Base):
    """after_step changes what no checkpoint holds."""

    scale: float = 1.0

    def after_step(self, model: Any, step: int) -> None:
        self.scale = 1.0 + step

    def loss(self, model: Any, batch: Batch) -> Any:
        loss, weight = super().loss(model, batch)
        return loss * self.scale, weight


class Layer(Base):
    """A layer that cannot keep the bits."""

    kind: str

    def model(self) -> nn.Module:
        made = {
            "sync": lambda: nn.Sequential(nn.SyncBatchNorm(3), nn.Linear(3, 1)),
            "sparse": lambda: nn.Sequential(nn.Linear(3, 1), nn.Embedding(2, 2, sparse=True)),
            "max_norm": lambda: nn.Sequential(nn.Linear(3, 1), nn.Embedding(2, 2, max_norm=1.0)),
            "lazy": lambda: nn.LazyLinear(1),
        }
        return made[self.kind]()  # type: ignore[no-untyped-call]


class Two(torch.optim.Optimizer):
    def __init__(self, one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
        super().__init__(one.param_groups + other.param_groups, {})
        self.both = [one, other]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for inner in self.both:
            inner.step()


class Momentum(torch.optim.SGD):
    """Counts its steps, or keeps something, where nobody would look."""

    def __init__(self, params: Any, lr: float, kind: str) -> None:
        super().__init__(params, lr)
        self.kind, self.k = kind, 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.k += self.kind == "counts"
        super().step()
        if self.kind == "keeps":
            self.state[self.param_groups[0]["params"][0]]["name"] = object()


class Optimizers(Base):
    kind: str

    def optimizer(self, model: Any, config: Any) -> Any:
        parameters, lr = list(model.parameters()), config.optimizer.lr
        if self.kind == "scheduled":
            optimizer = torch.optim.SGD(parameters, lr)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=100)
            optimizer.register_step_post_hook(lambda *_: scheduler.step())
            return optimizer
        if self.kind == "two":
            return Two(torch.optim.SGD(parameters[:2], lr), torch.optim.Adam(parameters[2:], lr))
        if self.kind == "foreign":
            return torch.optim.SGD([*parameters, nn.Parameter(torch.zeros(2))], lr)
        if self.kind == "closure":
            return torch.optim.LBFGS(parameters)
        if self.kind == "none":
            return None
        return Momentum(parameters, lr, self.kind)


class OnRankOne(Base):
    """Rank 1 has another `what`."""

    what: str

    def data(self, split: str) -> Any:
        other = self.what == "rows" and os.environ.get("RANK") == "1"
        return rows(56 if other else 64) if split == "train" else None

    def model(self) -> Any:
        if self.what == "model" and os.environ.get("RANK") == "1":
            return None
        if self.what == "weights":
            torch.manual_seed(int(os.environ.get("RANK", 0)))
        return small()

    def loss(self, model: Any, batch: Batch) -> Any:
        if self.what == "mistake" and os.environ.get("RANK", "1") == "1":
            return super().loss(model, batch)[0]
        if self.what == "mistake":
            time.sleep(0.2)
        return super().loss(model, batch)


class Masked(Base):
    """No row of the second step counts."""

    def data(self, split: str) -> Any:
        from samestep.randomness.order import Order

        masked = set(Order(64, 1).rows(0, 8, 16).tolist())
        return rows().add_column("keep", [int(number not in masked) for number in range(64)])

    def loss(self, model: Any, batch: Batch) -> Any:
        keep = batch["keep"].unsqueeze(1)
        return ((model(batch["x"]) - batch["y"]).square() * keep).sum(), keep.sum()


class Resized(Base):
    def data(self, split: str) -> Any:
        return rows(int(os.environ.get("CASE_ROWS", 64))) if split == "train" else None


class Unscored(Base):
    """Metrics of a wrong shape."""

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 8)

    def metrics(self, model: Any, batch: Batch) -> Any:
        return {"accuracy": (model(batch["x"]), len(batch["x"]))}


class _Noisy(nn.Module):
    """A block whose second forward, in the backward, must draw the first one's numbers and begin with its buffers."""

    def __init__(self) -> None:
        super().__init__()
        inward = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5))
        self.inner = nn.Sequential(inward, nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = 0.1 * (np.random.rand() + random.random()) if self.training else 0.0
        return x + self.inner(x + noise)  # type: ignore[no-any-return]


class _Repeating(nn.Module):
    """Blocks in a list; `what` is what makes of them that they cannot be sharded."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.inward, self.blocks, self.outward = nn.Linear(3, 8), nn.ModuleList(_Noisy() for _ in range(3)), nn.Linear(8, 1)
        self.kept = [self.outward.weight]
        if what == "hook":
            self.outward.weight.register_hook(lambda grad: grad * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inward(x)
        for number, block in enumerate(self.blocks):
            if self.what != "skips" or number != 1 or bool(x[0, 0] > 0):
                x = block(x)
        if self.what == "twice":
            x = self.blocks[0](x)
        if self.what == "kept":
            return x @ self.kept[0].t()
        out: torch.Tensor = self.outward(x)
        return out


class Repeating(Base):
    what: str = ""

    def model(self) -> Any:
        return _Repeating(self.what)

    def loss(self, model: Any, batch: Batch) -> Any:
        total, weight = super().loss(model, batch)
        if self.what == "measured":  # of the rows that this rank has, torch would say
            total = total * (1 + model.blocks[0].inner[3].weight.detach().norm().item())
        if self.what == "past":
            total = total + model.blocks[0].inner[3](torch.zeros(2, 5)).sum()
        return total, weight


# State where no list of attributes looks

COUNT = itertools.count()
LAST: dict[str, Any] = {}


def endless() -> Iterator[float]:
    generator = torch.Generator().manual_seed(2)
    while True:
        yield float(torch.rand((), generator=generator))


class Hidden(Base):
    """A loss, rows or an after_step that remember, in a `place` of which no list knows."""

    place: str
    _numbers: Any = PrivateAttr(default_factory=endless)
    _closure: Any = None
    _seen: Any = None

    def data(self, split: str) -> Any:
        found = [{"x": row["x"], "y": row["y"]} for row in rows()] if split == "train" else None
        if found and self.place.startswith("rows"):
            return [{name: np.asarray(value, np.float32) for name, value in row.items()} for row in found]
        return found

    def model(self) -> nn.Module:
        model = small()
        model.register_buffer("centre", torch.zeros(3))
        drawn, before = itertools.count(), []

        def closure(out: torch.Tensor) -> torch.Tensor:
            before.append(next(drawn))
            return out * (1 + 0.01 * before[-1])

        self._closure = closure
        if self.place == "hook":
            model[0].register_forward_hook(lambda module, args, out: closure(out))
        return model

    def transform(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if self.place == "rows in place":
            row["x"] -= 0.1
        if self.place == "rows counted":
            return {**row, "x": np.asarray(row["x"], np.float32) + np.float32(0.01 * next(COUNT))}
        return {**row, "x": np.asarray(row["x"], np.float32), "y": np.asarray(row["y"], np.float32)}

    def loss(self, model: Any, batch: Batch) -> Any:
        x, y = batch["x"], batch["y"]
        moving: dict[str, Callable[[], float]] = {
            "iterator": lambda: next(self._numbers),
            "module": lambda: 0.01 * next(COUNT),
            "class": lambda: 0.01 * type(self).counted(),
            "cache": lambda: first_seen("x", float(x[0, 0])),
            "environment": lambda: 0.01 * counted_in_the_environment(),
            "numpy": lambda: float(GENERATOR.random()),
            "file": lambda: 0.01 * counted_in_a_file(),
            "thread": lambda: 0.01 * counted_in_a_thread(),
        }
        scale = moving.get(self.place, lambda: 0.0)()
        out = model(x)
        if self.place == "closure":
            out = self._closure(out)
        if self.place == "function":
            out = Remembering.apply(out)  # type: ignore[no-untyped-call]
        self._seen = out.detach()
        errors = out - y + scale + model.centre.sum()
        return errors.square().sum(), errors.numel()

    @classmethod
    def counted(cls) -> int:
        LAST[cls.__name__] = LAST.get(cls.__name__, 0) + 1
        return int(LAST[cls.__name__])

    def after_step(self, model: Any, step: int) -> None:
        if self.place == "after_step":
            model.centre += 0.1 * (self._seen.mean() - model.centre)


GENERATOR = np.random.default_rng(0)


@functools.cache
def first_seen(name: str, *key: float) -> float:
    return 0.01 * next(COUNT)


def counted_in_the_environment() -> int:
    os.environ["CASE_COUNT"] = str(int(os.environ.get("CASE_COUNT", "0")) + 1)
    return int(os.environ["CASE_COUNT"])


def counted_in_a_file() -> int:
    with open(f"count-{os.getpid()}", "a+") as file:
        file.write("x")
        return file.tell()


def counted_in_a_thread() -> int:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: next(COUNT)).result()


class Remembering(torch.autograd.Function):
    """Its backward remembers how often it was called."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * (1 + 0.01 * next(COUNT))


class AnnealedByTheStep(Base):
    """A weight that grows with the step, as samestep.step() tells it: the same everywhere."""

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 8)

    def loss(self, model: Any, batch: Batch) -> Any:
        total, weight = super().loss(model, batch)
        return total * min(1.0, samestep.step() / 5), weight


class EmptyBuffer(Base):
    """A persistent buffer of no elements, as observers for quantisation begin with."""

    def model(self) -> nn.Module:
        model = small()
        model.register_buffer("seen", torch.empty(0))
        model.append(nn.BatchNorm1d(1))
        return model


class Pinn(Base):
    """A loss that takes a gradient by its inputs, in the evaluation too; `allowed` as the line says."""

    allowed: bool = False

    def data(self, split: str) -> Any:
        return rows(64 if split == "train" else 8)

    def loss(self, model: Any, batch: Batch) -> Any:
        with torch.enable_grad() if self.allowed else contextlib.nullcontext():
            x = batch["x"].clone().requires_grad_(True)
            out = model(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            return (slope.sum(1, keepdim=True) + out).square().sum(), len(x)


class Gathering(Base):
    """A contrastive loss that gathers the other ranks' part, where there are any, by whichever library; or asks how many."""

    by: str = "torch"

    def loss(self, model: Any, batch: Batch) -> Any:
        out = model(batch["x"])
        everyones = out.detach()
        if self.by == "accelerate":
            everyones = gather(everyones)
        elif dist.is_initialized() and dist.get_world_size() > 1:
            if self.by == "torch":
                parts = [torch.empty_like(everyones) for _ in range(dist.get_world_size())]
                dist.all_gather(parts, everyones)
                everyones = torch.cat(parts)
            if self.by == "objects":
                dist.all_gather_object([None] * dist.get_world_size(), len(out))
            if self.by == "barrier":
                with contextlib.suppress(RuntimeError):
                    dist.barrier()
            if self.by == "number":
                everyones = everyones * dist.get_world_size()
        return (out - everyones.mean() - batch["y"]).square().sum(), len(out)

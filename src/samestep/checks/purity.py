"""Whether a forward is pure: what it leaves changed in the model or the task must not reach a number.

A start from a checkpoint, or another number of processes, would not have what earlier micro-batches left behind. So in chosen
steps (the first, then ever rarer ones) everything is looked at. Parameters, modes and the set of buffers must be untouched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from samestep.batches import MicroBatch
from samestep.checks import attributes
from samestep.checks.audit import Schedule
from samestep.checks.optimizer_attributes import OptimizerAttributes
from samestep.checks.recompute import Recompute
from samestep.checks.registered import Judge, Registered
from samestep.checks.states import States
from samestep.errors import UsageError
from samestep.exact import OrderedSum, ShardedModel, fingerprint
from samestep.task import Task


class NoPurity:
    """Looks at nothing."""

    def begin_micro_batch(self, step: int, micro: MicroBatch) -> None: ...

    def end_micro_batch(self, step: int, micro: MicroBatch) -> None: ...

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def evaluation(self, judge: Judge = lambda check: check()) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def after_step(self, step: int) -> Iterator[None]:
        yield

    def roll_back(self) -> bool:
        """After a fault: give up what the step that was begun did to the model; False if that cannot be."""
        return True


class Purity(NoPurity):
    """The watch over one model and task.

    Args:
        first_step: of this start, from 0.
        schedule: which steps are looked at.
        sharded: of the model, where no rank runs a forward alone: what is found on one is looked into on all.
    """

    def __init__(
        self,
        task: Task,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        recompute: Recompute,
        gradients: OrderedSum,
        first_step: int,
        schedule: Schedule,
        sharded: ShardedModel | None = None,
    ) -> None:
        self._model = model
        self._gradients, self._first_step, self._is_chosen = gradients, first_step, schedule.is_chosen
        mine = [(shard.names[0], shard.local) for shard in sharded.shards] if sharded else list(model.named_parameters())
        self._names, self._parameters = [name for name, _ in mine], [parameter for _, parameter in mine]
        places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        layers = [module for module in model.modules() if isinstance(module, torch.nn.RNNBase)]
        self._recurrent = [[places[id(p)] for p in layer.parameters() if id(p) in places] for layer in layers]
        self._states = States(task, model, recompute, gradients, is_sharded=sharded is not None)
        self._touched: list[tuple[int, bool]] | None = None  # before the forwards of a step, until they are through
        self._before: tuple[torch.Tensor, dict[str, Any]] | None = None  # the same of a chosen step: its bits and shape
        self._optimizer_attributes, self._registered = OptimizerAttributes(optimizer), Registered(model)

    def _shape(self) -> dict[str, Any]:
        """What no forward may change about the model besides numbers."""
        found: dict[str, Any] = {f"requires_grad of {name}": p.requires_grad for name, p in self._model.named_parameters()}
        for path, module in self._model.named_modules():
            found[f"train() or eval() of {path or 'model'}"] = module.training
        return found

    def begin_micro_batch(self, step: int, micro: MicroBatch) -> None:
        if micro.index == self._gradients.share[0]:
            is_chosen = self._is_chosen(step)
            self._optimizer_attributes.watch(is_chosen and step > self._first_step)  # in the first many prepare themselves
            self._touched = self._touches()
            self._before = (self._bits(), self._shape()) if is_chosen else None

    def end_micro_batch(self, step: int, micro: MicroBatch) -> None:
        """After a forward and backward. Raises UsageError if those of the share were found not to be pure."""
        is_last = micro.index == self._gradients.share[-1]
        if self._before is not None:
            self._states.refuse(step, micro.index)
        if self._before is not None or is_last:  # of two mistakes the earlier micro-batch's is told, at every world size
            self._refuse_touched()
            self._registered.refuse_others("the forward")
        if is_last:
            self._refuse_others()

    def _refuse_others(self) -> None:
        """Raise UsageError for other bits and another shape than before."""
        self._refuse_other_bits()
        if self._before is not None:
            _refuse_another_shape(self._before[1], self._shape())
        self._touched = self._before = None

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """A forward beside the steps inside. Raises UsageError for what it leaves changed."""
        self._touched, self._before = self._touches(), (self._bits(), self._shape())
        yield
        self._refuse_touched()
        self._registered.refuse_others("the forward")
        self._refuse_others()

    def roll_back(self) -> bool:
        """After a fault: the model is as the last finished step left it, or False: a forward has changed a parameter."""
        for refuse in (self._refuse_touched, lambda: self._registered.refuse_others("the forward"), self._refuse_other_bits):
            with contextlib.suppress(UsageError):
                refuse()
        return not self._registered.is_spoilt

    @contextlib.contextmanager
    def evaluation(self, judge: Judge = lambda check: check()) -> Iterator[None]:
        """A whole evaluation inside: it leaves the model as it was. Raises UsageError if not, where `judge` has it told."""
        with self._registered.evaluation(judge):
            yield

    @contextlib.contextmanager
    def after_step(self, step: int) -> Iterator[None]:
        """The task's after_step inside: what it changes must be what a checkpoint holds. Raises UsageError if not."""
        before = self._states.look() if self._is_chosen(step) else None
        yield
        self._registered.refuse_others("after_step")
        if before is None:
            return
        after = self._states.look()
        if changed := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
            raise UsageError(
                f"task: after_step changed {attributes.listed(changed)}, which no checkpoint holds; keep it in a persistent "
                "buffer or in a parameter without gradient of the model"
            )

    def _bits(self) -> torch.Tensor:
        return fingerprint([parameter.detach() for parameter in self._parameters])

    def _touches(self) -> list[tuple[int, bool]]:
        """What tells in every step, at little cost, that somebody wrote into a parameter or froze it."""
        return [(parameter._version, parameter.requires_grad) for parameter in self._parameters]

    def _refuse_touched(self) -> None:
        """Raise UsageError if a forward of the step froze parameters, which is undone, or wrote into one."""
        before, now = self._touched, self._touches()
        if before is None or now == before:
            return
        refusals = []
        writes = [new[0] - old[0] for old, new in zip(before, now, strict=True)]
        for places in self._recurrent:  # on a GPU flatten_parameters() lays a layer out anew, all of its parameters alike
            if len({writes[place] for place in places}) == 1 and all(self._parameters[place].is_cuda for place in places):
                writes = [0 if place in places else number for place, number in enumerate(writes)]
        for name, parameter, old, new, number in zip(self._names, self._parameters, before, now, writes, strict=True):
            if old[1] != new[1]:
                parameter.requires_grad_(old[1])
                refusals.append(UsageError(f"task: the forward changed requires_grad of {name}; do that in after_step"))
            if number:
                self._registered.is_spoilt = True
                refusals.append(_in_place(name))
        if refusals:
            raise refusals[0]

    def _refuse_other_bits(self) -> None:
        """Raise UsageError if a parameter was written into on ways that leave no trace, as far as this step is chosen."""
        if self._before is None:
            return
        for name, changed in zip(self._names, (self._before[0] != self._bits()).tolist(), strict=True):
            if changed:
                self._registered.is_spoilt = True
                raise _in_place(name)


def _refuse_another_shape(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            raise UsageError(f"task: the forward changed {name}; do that in after_step")


def _in_place(name: str) -> UsageError:
    return UsageError(
        f"task: the forward changed the parameter {name}, which would depend on how a step is split over processes; "
        "change it in after_step"
    )

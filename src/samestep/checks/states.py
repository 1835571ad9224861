"""Whether attributes that a forward changes come into the loss: who they are can be told by name, and before they do harm.

If one is not as the start had it, a micro-batch is computed once more with it as it was: only if that gives another loss or
other gradients is it refused. (A count of calls that nothing reads harms nobody.)
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from samestep.checks import attributes
from samestep.checks.recompute import Recompute
from samestep.control import everyones
from samestep.errors import UsageError
from samestep.exact import OrderedSum, fingerprint
from samestep.task import Task

Spot = tuple[str, dict[str, Any], str]
_ABSENT = object()


class States:
    """The attributes of a task and its model, as the start has them.

    Args:
        is_sharded: no rank runs a forward alone, so that what is found on one is looked into on all.
    """

    def __init__(
        self, task: Task, model: torch.nn.Module, recompute: Recompute, gradients: OrderedSum, is_sharded: bool
    ) -> None:
        self._task, self._model, self._recompute, self._gradients = task, model, recompute, gradients
        self._is_sharded = is_sharded
        self._own = frozenset(id(module) for module in model.modules())
        self._spots_at_start = self._spots()
        self._at_start = self._copies({name: names[key] for name, names, key in self._spots_at_start})
        self._looks_at_start = self.look()

    def _spots(self) -> list[Spot]:
        return [*attributes.of_model(self._model), *attributes.of_task(self._task)]

    def look(self) -> dict[str, Any]:
        """What each of them holds now, as something to compare."""
        return {name: attributes.look(names[key], self._own) for name, names, key in self._spots()}

    def refuse(self, step: int, index: int) -> None:
        """Refuse attributes that are not as the start had them, if this micro-batch's loss or gradients depend on that.

        It is computed once more as a start from here would compute it, and as it would come out next.
        """
        looks = self.look()
        changed = [name for name in {**self._looks_at_start, **looks} if self._looks_at_start.get(name) != looks.get(name)]
        if self._is_sharded:
            changed = sorted({name for names in everyones(changed) for name in names})
        if not changed:
            return
        spots = {name: (names, key) for name, names, key in [*self._spots_at_start, *self._spots()]}
        places = {name: spots[name] for name in changed if name in spots}  # of another rank's there may be none here
        real = {name: names.get(key, _ABSENT) for name, (names, key) in places.items()}
        if whole := next((n for n in real if isinstance(real[n], torch.nn.Module) or attributes.is_large(real[n])), None):
            raise UsageError(
                f"task: the forward changed {whole}, which no checkpoint holds; make it a part of the model, and change it in "
                "after_step"
            )
        fresh = {name: self._at_start.get(name, _ABSENT) for name in places}

        def recomputed(values: dict[str, Any]) -> torch.Tensor:
            _put(places, self._copies(values))
            return self._recompute.prints(step, index)

        try:
            first = recomputed(fresh)
            depends = not torch.equal(first[:1], fingerprint([self._gradients.loss]))
            with contextlib.suppress(Exception):  # one that its next call would raise is raised there
                depends |= not torch.equal(first, recomputed(real))
            if not self._anywhere(depends) or self._anywhere(not torch.equal(recomputed(fresh), first)):
                return  # in the latter case it is no attribute's doing: samestep verify tells
            guilty = (
                name for name in changed if self._anywhere(not torch.equal(recomputed({**fresh, name: real.get(name)}), first))
            )
            one = next(guilty, None)
        finally:
            _put(places, real)
        if one is None:
            return  # whoever made it another, the audit will tell
        raise UsageError(
            f"task: the loss depends on {one}, which the forward changes: after a resume, or on another number of processes, "
            "it would be another loss; change it in after_step, and keep it in a buffer (docs/tasks.md)"
        )

    def _anywhere(self, flag: bool) -> bool:
        return any(everyones(flag)) if self._is_sharded else flag

    @staticmethod
    def _copies(values: dict[str, Any]) -> dict[str, Any]:
        memo: dict[int, Any] = {}
        return {name: attributes.copied(value, memo) for name, value in values.items()}


def _put(places: dict[str, tuple[dict[str, Any], str]], values: dict[str, Any]) -> None:
    for name, (names, key) in places.items():
        if values[name] is _ABSENT:
            names.pop(key, None)
        else:
            names[key] = values[name]

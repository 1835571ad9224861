"""What a checkpoint holds of a model: the same parameters and persistent buffers from a run's start to its end.

No start could load what appears later, and nobody could tell which micro-batch made it. So it is refused, and taken away
again: what is saved after that is the model of the last finished step, as the next start makes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from samestep.errors import UsageError

Judge = Callable[[Callable[[], None]], None]  # runs a check: here alone, or on every rank, which all raise what any finds
Place = tuple[dict[str, Any], str]  # a module's dict of parameters or buffers, and the key there


class Registered:
    """The parameters and persistent buffers that `model` has now, by name."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._modules = list(model.modules())
        self._names = frozenset(self._places())
        self._empty = [
            (module._buffers, key) for module in self._modules for key, buffer in module._buffers.items() if buffer is None
        ]
        self._size = self._count()
        self.is_spoilt = False  # a parameter is not what the last finished step made it, and no copy is at hand

    def _places(self) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for path, module in self._model.named_modules():
            saved = [(module._buffers, key) for key in module._buffers.keys() - module._non_persistent_buffers_set]
            for names, key in [*((module._parameters, key) for key in module._parameters), *saved]:
                if names[key] is not None:
                    places[f"{path}.{key}".lstrip(".")] = (names, key)
        return places

    def _count(self) -> int:
        """What tells in every step, at little cost, that something may have come or gone."""
        filled = sum(names.get(key) is not None for names, key in self._empty) if self._empty else 0
        return filled + sum([len(module._buffers) + len(module._parameters) + len(module._modules) for module in self._modules])

    def refuse_others(self, who: str) -> None:
        """Raise UsageError if there are others by now, which `who` has made or removed; the new ones are gone then."""
        if (size := self._count()) == self._size:
            return
        places = self._places()
        if made := sorted(places.keys() - self._names):
            names, key = places[made[0]]
            kind = "parameter" if isinstance(names[key], torch.nn.Parameter) else "buffer"
            for name in made:
                names, key = places[name]
                names[key] = None
            raise UsageError(f"task: {who} made the {kind} {made[0]}; make it in model()")
        if gone := sorted(self._names - places.keys()):
            raise UsageError(f"task: {who} removed {gone[0]} of the model; do that in model()")
        self._size = size

    @contextlib.contextmanager
    def evaluation(self, judge: Judge) -> Iterator[None]:
        """A whole evaluation inside: it leaves all of this as it was. Raises UsageError if not, once that is laid back."""
        found: dict[str, tuple[dict[str, Any], str, torch.Tensor, int]] = {}
        for name, (names, key) in self._places().items():
            found[name] = (names, key, names[key], names[key]._version)
        copies = {name: t.clone() for name, (_, _, t, _) in found.items() if not isinstance(t, torch.nn.Parameter)}

        def lay_back() -> None:
            changed = [n for n, (names, key, t, version) in found.items() if names.get(key) is not t or t._version != version]
            for name in changed:
                names, key, tensor, _ = found[name]
                names[key] = tensor
                if name in copies:
                    with torch.no_grad():
                        tensor.copy_(copies[name])
                else:
                    self.is_spoilt = True
            self.refuse_others("the evaluation")
            if changed:
                raise UsageError(
                    f"task: the evaluation changed {changed[0]} of the model, which would depend on who evaluates what; "
                    "write `if self.training` around that, or keep it out of the model"
                )

        try:
            yield
        except BaseException:
            with contextlib.suppress(UsageError):
                lay_back()
            raise
        judge(lay_back)

"""What hangs on a model, a task or an optimizer besides parameters and buffers: how it looks, and how to put it back.

Only what can hold state plainly is looked at: numbers, texts, tensors, arrays, generators, and containers of them.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import xxhash

_DEPTH = 4
_MOST_ENTRIES = 10_000  # of a container, and
_MOST_LOOKED_AT = 1 << 22  # of a tensor or an array: what is larger is data, and is neither copied nor looked at whole
_OF_ANY_MODULE = frozenset(vars(torch.nn.Module()))
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def of_model(model: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each attribute of each module as (path to show, the dict it stands in, its key there)."""
    for path, module in model.named_modules():
        for key in vars(module):
            if key not in _OF_ANY_MODULE:
                yield f"model.{path}.{key}".replace("..", "."), vars(module), key


def of_task(task: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The same for a pydantic model's fields and private names."""
    for names in (vars(task), task.__pydantic_private__ or {}):
        for key in names:
            yield f"self.{key}", names, key


def look(value: Any, beside: frozenset[int] = frozenset(), depth: int = 0) -> Any:
    """What `value` holds now, as something to compare later; what cannot hold state plainly always looks the same.

    Args:
        beside: ids of modules that are watched elsewhere.
    """
    if isinstance(value, _PLAIN):
        return type(value).__name__, repr(value)
    if isinstance(value, torch.nn.Parameter) or id(value) in beside:
        return "parameter"
    if isinstance(value, torch.Tensor):
        return "tensor", str(value.dtype), tuple(value.shape), _digest(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return "array", value.dtype.str, value.shape, xxhash.xxh3_64_hexdigest(_some(value.reshape(-1)).tobytes())
    if isinstance(value, torch.Generator):
        return "generator", _digest(value.get_state())
    if isinstance(value, random.Random):
        return "generator", hash(value.getstate())
    if isinstance(value, np.random.Generator):
        return "generator", repr(value.bit_generator.state)
    if isinstance(value, torch.nn.Module):
        return [(name, look(tensor)) for name, tensor in _tensors(value)]
    if depth < _DEPTH and isinstance(value, (list, tuple, dict, set, frozenset, collections.deque)):
        if len(value) > _MOST_ENTRIES:
            return type(value).__name__, len(value)
        entries: Any = value.items() if isinstance(value, dict) else value
        seen = [look(entry, beside, depth + 1) for entry in entries]
        return type(value).__name__, sorted(map(repr, seen)) if isinstance(value, (set, frozenset)) else seen
    return type(value).__name__


def keep(value: Any, depth: int = 0) -> Callable[[], Any]:
    """What gives back `value`: the same object, with the contents that it has now."""
    refill = _refill(value, depth)

    def back() -> Any:
        if refill is not None:
            refill()
        return value

    return back


def _refill(value: Any, depth: int) -> Callable[[], object] | None:
    if isinstance(value, torch.nn.Parameter) or depth >= _DEPTH or _is_large(value):
        return None
    if isinstance(value, torch.Tensor):
        tensor = value.detach().clone()
        return lambda: value.data.copy_(tensor) if value.shape == tensor.shape else None
    if isinstance(value, np.ndarray):
        array = value.copy()
        return lambda: np.copyto(value, array)
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, random.Random):
        words = value.getstate()
        return lambda: value.setstate(words)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", bits)
    if isinstance(value, torch.nn.Module):
        tensors = [keep(tensor.data) for _, tensor in _tensors(value)]
        return lambda: [back() for back in tensors]
    if isinstance(value, set):
        members = set(value)
        return lambda: _emptied(value).update(members)
    if isinstance(value, (list, collections.deque)):
        entries = [keep(entry, depth + 1) for entry in value]
        return lambda: _emptied(value).extend([back() for back in entries])
    if isinstance(value, dict):
        items = {key: keep(entry, depth + 1) for key, entry in value.items()}
        return lambda: _emptied(value).update({key: back() for key, back in items.items()})
    return None


def _is_large(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.nbytes > _MOST_LOOKED_AT * 4
    return isinstance(value, (list, dict, set, collections.deque)) and len(value) > _MOST_ENTRIES


def _emptied(container: Any) -> Any:
    container.clear()
    return container


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _some(flat: Any) -> Any:
    """All of a flat tensor or array, or of a very large one some of it."""
    return flat[:: max(1, len(flat) // _MOST_LOOKED_AT)]


def _digest(tensor: torch.Tensor) -> str:
    plain = _some(tensor.detach().resolve_conj().reshape(-1)).cpu().contiguous()
    return xxhash.xxh3_64_hexdigest(plain.view(torch.uint8).numpy()) if plain.numel() else ""

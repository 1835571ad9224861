"""What hangs on a model, a task or an optimizer besides parameters and buffers: how it looks, and a copy of it.

Only what can hold state plainly is looked at: numbers, texts, tensors, arrays, generators, and containers of them.
"""

from __future__ import annotations

import collections
import copy
import random
from collections.abc import Iterator
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


def copied(value: Any, memo: dict[int, Any], depth: int = 0) -> Any:
    """A copy with the contents that `value` has now and nothing in common with it; what `look` passes over is itself.

    Args:
        memo: what has been copied by then, by its id: two names for one generator stay that.
    """
    if isinstance(value, torch.nn.Parameter) or depth >= _DEPTH or _is_large(value):
        return value
    if id(value) not in memo:
        memo[id(value)] = _copied(value, memo, depth)
    return memo[id(value)]


def _copied(value: Any, memo: dict[int, Any], depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    if isinstance(value, (np.ndarray, np.random.Generator, random.Random)):
        return copy.deepcopy(value)
    if isinstance(value, set):
        return copy.copy(value)
    if isinstance(value, dict):
        changed = copy.copy(value)
        changed.update({key: copied(entry, memo, depth + 1) for key, entry in value.items()})
        return changed
    if isinstance(value, (list, collections.deque)):
        filled = copy.copy(value)
        for place, entry in enumerate(value):
            filled[place] = copied(entry, memo, depth + 1)
        return filled
    return value


def _is_large(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.nbytes > _MOST_LOOKED_AT * 4
    return isinstance(value, (list, dict, set, collections.deque)) and len(value) > _MOST_ENTRIES


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _some(flat: Any) -> Any:
    """All of a flat tensor or array, or of a very large one some of it."""
    return flat[:: max(1, len(flat) // _MOST_LOOKED_AT)]


def _digest(tensor: torch.Tensor) -> str:
    plain = _some(tensor.detach().resolve_conj().reshape(-1)).cpu().contiguous()
    return xxhash.xxh3_64_hexdigest(plain.view(torch.uint8).numpy()) if plain.numel() else ""

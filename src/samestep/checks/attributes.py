"""What hangs on a model, a task or an optimizer besides parameters and buffers: how it looks, and a copy of it.

Only what can hold state plainly is looked at: numbers, texts, tensors, arrays, generators, and containers of them.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xxhash

from samestep.task.loading import TASK_MODULE

_MOST_ENTRIES = (10_000, 100, 20, 20)  # of a container, by depth: what is larger is data, and so is
_MOST_BYTES = 1 << 24  # a tensor or an array of more; neither is copied, and the latter is not looked at whole
_OF_ANY_MODULE = frozenset(vars(torch.nn.Module()))
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)


def of_model(model: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each attribute of each module as (path to show, the dict it stands in, its key there); so are unsaved buffers."""
    for path, module in model.named_modules():
        for key in vars(module):
            if key not in _OF_ANY_MODULE:
                yield f"model.{path}.{key}".replace("..", "."), vars(module), key
        for key in module._non_persistent_buffers_set & module._buffers.keys():
            yield f"model.{path}.{key}".replace("..", "."), module._buffers, key


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
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        return "tensor", str(value.dtype), tuple(value.shape), digest(value)
    if isinstance(value, np.ndarray) and value.dtype != object and not isinstance(value, np.memmap):
        return "array", value.dtype.str, value.shape, xxhash.xxh3_64_hexdigest(_some(value.reshape(-1)).tobytes())
    if isinstance(value, torch.Generator):
        return "generator", digest(value.get_state())
    if isinstance(value, random.Random):
        return "generator", hash(value.getstate())
    if isinstance(value, np.random.Generator):
        return "generator", repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return "generator", [look(part) for part in value.get_state(legacy=True)]
    if isinstance(value, torch.nn.Module):
        return [(name, digest(tensor)) for name, tensor in _tensors(value)]
    if depth < len(_MOST_ENTRIES) and not is_large(value, depth):
        if isinstance(value, (list, tuple, dict, set, frozenset, collections.deque)):
            entries: Any = value.items() if isinstance(value, dict) else value
            seen = [look(entry, beside, depth + 1) for entry in entries]
            return type(value).__name__, sorted(map(repr, seen)) if isinstance(value, (set, frozenset)) else seen
        if _is_the_users(value):
            return type(value).__name__, look(vars(value), beside, depth + 1)
    return type(value).__name__, len(value) if isinstance(value, (list, tuple, dict, set, collections.deque)) else 0


def copied(value: Any, memo: dict[int, Any], depth: int = 0) -> Any:
    """A copy with the contents that `value` has now and nothing in common with it; what `look` passes over is itself.

    Args:
        memo: what has been copied by then, by its id: two names for one generator stay that.
    """
    if isinstance(value, torch.nn.Parameter) or depth >= len(_MOST_ENTRIES) or is_large(value, depth):
        return value
    if id(value) not in memo:
        memo[id(value)] = _copied(value, memo, depth)
    return memo[id(value)]


def _copied(value: Any, memo: dict[int, Any], depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    if isinstance(value, (np.ndarray, np.random.Generator, np.random.RandomState, random.Random)):
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
    if _is_the_users(value):
        other = copy.copy(value)
        vars(other).update(copied(vars(value), memo, depth + 1))
        return other
    return value


def is_large(value: Any, depth: int = 0) -> bool:
    """Whether it is taken for data: not copied, and not looked at whole."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        is_odd = isinstance(value, torch.Tensor) and (value.layout != torch.strided or value.is_meta)
        return is_odd or value.nbytes > _MOST_BYTES
    if isinstance(value, (list, tuple, dict, set, frozenset, collections.deque)):
        return len(value) > _MOST_ENTRIES[depth]
    return False


def _is_the_users(value: Any) -> bool:
    """Whether it is an object that plainly holds values: of a class in the task's own file, or of no behaviour."""
    kind = type(value)
    plain = (
        isinstance(value, types.SimpleNamespace) or dataclasses.is_dataclass(value) or kind.__module__.startswith(TASK_MODULE)
    )
    return plain and not isinstance(value, type) and hasattr(value, "__dict__")


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _some(flat: Any) -> Any:
    """All of a flat tensor or array, or of a very large one some of it."""
    return flat[:: max(1, len(flat) // (_MOST_BYTES // 4))]


def digest(tensor: torch.Tensor) -> str:
    """A checksum of a tensor's bytes, or of a very large one's in part."""
    plain = _some(tensor.detach().resolve_conj().reshape(-1)).cpu().contiguous()
    return xxhash.xxh3_64_hexdigest(plain.view(torch.uint8).numpy()) if plain.numel() else ""


def listed(names: list[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""Nested plain values with tensors among them, as JSON beside named tensors, and back exactly as they were.

Lists, tuples, dicts with any plain keys, sets and deques stay what they are; anything else is named and refused.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch

from samestep.checkpoint.tensors import DTYPES

Tree = Any


class Unsavable(Exception):
    """A value that a checkpoint cannot hold; its text names the place and the type."""


def to_tree(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Tree:
    """`value` as JSON; its tensors go into `tensors`, by the path to them. Raises Unsavable."""
    if isinstance(value, torch.Tensor):
        if value.dtype not in DTYPES or value.layout != torch.strided:
            raise Unsavable(f"{path} is a {value.layout} tensor of {value.dtype}")
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        tensors[name] = value
        found: dict[str, Tree] = {"tensor": name, "on_cpu": value.device.type == "cpu"}
        if not value.is_contiguous() and torch.empty_like(value, device="meta").stride() == value.stride():
            found["strides"] = list(value.stride())  # fused kernels go through memory, whatever the dimensions are
        return found
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is dict:
        return {"dict": [[to_tree(k, f"{path} keys", tensors), to_tree(v, _below(path, k), tensors)] for k, v in value.items()]}
    for kind, make in _SEQUENCES.items():
        if type(value) is make:
            return {kind: [to_tree(entry, _below(path, place), tensors) for place, entry in enumerate(value)]}
    if type(value) is collections.deque:
        entries = [to_tree(entry, _below(path, place), tensors) for place, entry in enumerate(value)]
        return {"deque": entries, "maxlen": value.maxlen}
    raise Unsavable(f"{path} is a {type(value).__name__}")


def from_tree(tree: Tree, tensor: Callable[[str, bool], torch.Tensor]) -> Any:
    """The value that `to_tree` was given; `tensor` is asked for each by its name, and whether it was on the CPU."""
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        found = tensor(tree["tensor"], tree["on_cpu"])
        if "strides" not in tree:
            return found
        return torch.empty_strided(found.shape, tree["strides"], dtype=found.dtype, device=found.device).copy_(found)
    if "dict" in tree:
        return {from_tree(key, tensor): from_tree(entry, tensor) for key, entry in tree["dict"]}
    if "deque" in tree:
        return collections.deque([from_tree(entry, tensor) for entry in tree["deque"]], tree["maxlen"])
    ((kind, entries),) = tree.items()
    return _SEQUENCES[kind](from_tree(entry, tensor) for entry in entries)


_SEQUENCES: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)

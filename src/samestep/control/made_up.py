"""Process groups that are made up: what code would hear that asks on which rank it is, and where it would talk to others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_TALK = ("reduce", "gather", "scatter", "broadcast", "send", "recv", "barrier", "alltoall", "all_to_all")


@contextlib.contextmanager
def as_rank(rank: int, size: int, heard: list[str]) -> Iterator[None]:
    """As if this were one of several ranks, of torch's and of Accelerate's; what is said to the others goes to `heard`."""
    kind: Any = dist.ProcessGroup
    world: Any = dist.distributed_c10d._world
    group, default = kind(rank, size), dist.GroupMember.WORLD
    states = [(state, dict(state)) for state in (PartialState._shared_state, AcceleratorState._shared_state)]
    real = {name: method for name, method in vars(kind).items() if any(word in name for word in _TALK)}

    def unheard(name: str) -> Callable[..., NoReturn]:
        def refuse(*args: Any, **kwargs: Any) -> NoReturn:
            heard.append(name)
            raise RuntimeError(name)

        return refuse

    try:
        for name in real:  # also of groups that somebody has got hold of before
            setattr(kind, name, unheard(name))
        world.pg_map[group], world.pg_names[group] = ("gloo", None), "made up"
        world.pg_group_ranks[group] = {number: number for number in range(size)}
        dist.GroupMember.WORLD = group
        PartialState._shared_state.update(distributed_type=DistributedType.MULTI_CPU, num_processes=size, process_index=rank)
        yield
    finally:
        for name, method in real.items():
            setattr(kind, name, method)
        dist.GroupMember.WORLD = default
        for names in (world.pg_map, world.pg_names, world.pg_group_ranks):
            names.pop(group, None)
        for state, before in states:
            state.clear()
            state.update(before)

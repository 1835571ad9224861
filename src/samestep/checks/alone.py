"""Whether a loss is computed alone: one that talks to other ranks, or asks how many there are, is another at each number
of them.

It is tried under made-up process groups, as one of two ranks and as one of three, so that a run on a single process is told
what one on many would be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from samestep.checks.recompute import Recompute
from samestep.errors import UsageError, place_in_user_code

_TALK = ("reduce", "gather", "scatter", "broadcast", "send", "recv", "barrier", "alltoall", "all_to_all")
_MADE_UP = ((0, 2), (1, 3))  # rank and number of ranks
_INSTEAD = (
    "a micro-batch is computed by one rank, on however many there are. Let the loss see what its micro-batch holds, of as many "
    "rows as its negatives need (micro_batch_size), and return numbers to be added up over all as a third value (docs/tasks.md)"
)


def refuse_company(recompute: Recompute, step: int, index: int) -> None:
    """Raise UsageError if the loss of a micro-batch is not the same whichever rank of however many computes it."""
    found: list[list[int]] = []
    for rank, size in _MADE_UP * 2:
        heard: list[str] = []
        try:
            with _as_rank(rank, size, heard):
                found.append(recompute.prints(step, index, scaled=False).tolist())
        except Exception as error:
            if not heard and _fails(lambda: recompute.prints(step, index, scaled=False)):
                return  # a mistake of another kind, which the step itself will show
            heard.append(type(error).__name__)
            heard[0] += place_in_user_code(error)
        if heard:
            raise UsageError(f"task: the loss talks to other ranks ({heard[0]}); {_INSTEAD}")
        if len(found) == 2 and found[0] == found[1]:
            return
    if found[:2] == found[2:]:  # else it is not the rank that makes the difference
        raise UsageError(f"task: the loss depends on its rank, or on the number of ranks; {_INSTEAD}")


def _fails(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except Exception:
        return True
    return False


@contextlib.contextmanager
def _as_rank(rank: int, size: int, heard: list[str]) -> Iterator[None]:
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

"""Whether a loss is computed alone: one that talks to other ranks, or asks how many there are, is another at each number
of them.

It is tried under made-up process groups, as one of two ranks and as one of three, so that a run on a single process is told
what one on many would be.
"""

from __future__ import annotations

from collections.abc import Callable

from samestep.checks.recompute import Recompute
from samestep.control import as_rank
from samestep.errors import UsageError, place_in_user_code

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
            with as_rank(rank, size, heard):
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

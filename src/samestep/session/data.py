"""The rows of a run: read alike on every rank, and the same as when the run began."""

from __future__ import annotations

from typing import Any

from samestep.batches import differences, identity
from samestep.config import Config
from samestep.control import everyones, first_on_each_machine
from samestep.errors import UsageError
from samestep.runtime import Runtime
from samestep.seeding import seed_all
from samestep.task import Task

_READING = 5  # sets the random numbers of data() apart from the forward's
_SPLITS = ("train", "eval")


def read_data(task: Task, config: Config, runtime: Runtime) -> tuple[Any, Any, dict[str, Any]]:
    """The task's two splits, and the facts by which they are known again. Raises UsageError if ranks have different ones."""
    train, held_out = (
        first_on_each_machine(runtime.local_rank, lambda split=split: _read_split(task, config.seed, split))  # type: ignore[misc]
        for split in _SPLITS
    )
    if train is None:
        raise UsageError('data: data("train") returned None; return a datasets.Dataset')
    facts = {split: None if rows is None else identity(rows) for split, rows in zip(_SPLITS, (train, held_out), strict=True)}
    first, *others = everyones(facts)
    for rank, other in enumerate(others, 1):
        for split in _SPLITS:
            if (first[split] is None) != (other[split] is None):
                raise UsageError(f'data: data("{split}") returned None on rank 0 or on rank {rank} alone; return the same on each')
        lines = [line for split in _SPLITS for line in _told_apart(first, other, split)]
        if lines:
            raise UsageError(
                *(f"{line} (rank 0 first, then rank {rank}); let data() depend on nothing but its seeded numbers" for line in lines)
            )
    return train, held_out, facts


def refuse_other_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UsageError if a run is to go on with other rows than it began with."""
    lines = [line for split in _SPLITS for line in _told_apart(before, now, split)]
    if lines:
        raise UsageError(*(f"{line}; a run goes on with the data it began with: write another --run NAME" for line in lines))


def _told_apart(before: dict[str, Any], now: dict[str, Any], split: str) -> list[str]:
    if before[split] is None or now[split] is None:  # an evaluation may begin or end with any start
        return []
    return differences(before[split], now[split], split)


def _read_split(task: Task, seed: int, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    seed_all(seed, _SPLITS.index(split), 0, _READING)
    found = task.data(split)
    if found is None:
        return None
    if not isinstance(found, datasets.Dataset):
        raise UsageError(f'data: data("{split}") returned {type(found).__name__}; return a datasets.Dataset')
    if len(found) == 0:
        raise UsageError(f'data: data("{split}") has no rows')
    return found

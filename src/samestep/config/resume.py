"""What may change when a run goes on, and whether there is anything left to do."""

from __future__ import annotations

from typing import Any

from samestep.config.lengths import Length
from samestep.config.reading import load_config
from samestep.config.schema import Config
from samestep.errors import UsageError
from samestep.run.best import best_words
from samestep.run.folder import RunFolder

FREE_ON_RESUME = {
    "evaluate",
    "checkpoint",
    "track",
    "runs",
    "processes",
    "workers",
    "watchdog",
    "audit",
    "profile",
    "converge",
    "shard",
    "recompute",
}
_PARTS_BITS = {"attention", "device", "threads"}


def changes_on_resume(before: Config, now: Config) -> tuple[list[str], list[str]]:
    """What differs between a run's config and the one it is to go on with.

    Returns one line for each change that the maths forbids, and one for each that is allowed but parts the bits.
    """
    refused, parting = [], []
    old, new = before.resolved(), now.resolved()
    for key in new:
        if old[key] == new[key] or key in _free(now):
            continue
        if key in _PARTS_BITS:
            parting.append(f"{key} was {old[key]} and is {new[key]}: from here on the bits may part from an unbroken run's")
        elif key in ("steps", "epochs") and _is_longer(getattr(before, key), getattr(now, key), now):
            continue
        else:
            refused.append(f"{key}: the run has {old[key]!r}, found {new[key]!r}; write the same, or another --run NAME")
    return refused, parting


def compared(folder: RunFolder, state: dict[str, Any], config: Config) -> tuple[bool, list[str]]:
    """Whether a run is done as `config` has it, and a line for each change that parts the bits where it goes on.

    Raises UsageError, one line for each change that the maths forbids.
    """
    if not state or not folder.config.exists():
        return False, []
    before, _ = load_config(folder.config)
    refused, parting = changes_on_resume(before, config)
    if refused:
        raise UsageError(*refused)
    return state.get("status") == "done" and (config.steps, config.epochs) == (before.steps, before.epochs), parting


def done_already(folder: RunFolder, config: Config) -> str | None:
    """What to print of a run that is done as `config` has it, its weights last; None where something is left to do.

    Nothing is imported for it but what reads a config. A run that has an owner may be about to go on: that one says more.
    """
    state = folder.read_state()
    if folder.is_taken() or not compared(folder, state, config)[0]:
        return None
    return done_words(folder, state)


def done_words(folder: RunFolder, state: dict[str, Any]) -> str:
    best = "".join(f"; {words}" for words in [best_words(state)] if words)
    return f"{folder.name} is done already, at step {state['step']}{best}\nweights {state['weights']}"


def maths(config: Config) -> dict[str, Any]:
    """The keys that the bits are made of, by their dotted names; those of the device are told with its kind."""
    resolved = config.resolved()
    return dotted({key: value for key, value in resolved.items() if key not in _free(config) | _PARTS_BITS})


def dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree's values by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _free(config: Config) -> set[str]:
    """The keys that are none of the maths; a rate that goes by evaluations makes these a part of it."""
    return FREE_ON_RESUME - ({"evaluate"} if config.schedule.judged_by else set())


def _is_longer(old: int | Length | None, new: int | Length | None, config: Config) -> bool:
    if config.schedule.sees_the_end or old is None or new is None:
        return False
    if isinstance(old, Length) and isinstance(new, Length):
        return new.number > old.number
    return isinstance(old, int) and isinstance(new, int) and new > old

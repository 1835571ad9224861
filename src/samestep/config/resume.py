"""What may change when a run goes on."""

from __future__ import annotations

from typing import Any

from samestep.config.schema import Config

_FREE_ON_RESUME = {
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
        if old[key] == new[key] or key in _FREE_ON_RESUME:
            continue
        if key in _PARTS_BITS:
            parting.append(f"{key} was {old[key]} and is {new[key]}: from here on the bits may part from an unbroken run's")
        elif key in ("steps", "epochs") and _is_longer(old[key], new[key], now):
            continue
        else:
            refused.append(f"{key}: the run has {old[key]!r}, found {new[key]!r}; write the same, or another --run NAME")
    return refused, parting


def maths(config: Config) -> dict[str, Any]:
    """The keys that the bits are made of, by their dotted names; those of the device are told with its kind."""
    resolved = config.resolved()
    return dotted({key: value for key, value in resolved.items() if key not in _FREE_ON_RESUME | _PARTS_BITS})


def dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree's values by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _is_longer(old: int | None, new: int | None, config: Config) -> bool:
    return old is not None and new is not None and new > old and config.schedule.name == "constant"

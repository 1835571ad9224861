"""What may change when a run goes on, and what its numbers came from."""

from __future__ import annotations

from pathlib import Path

import xxhash

from samestep.config.schema import Config
from samestep.kept import as_kept


def code_versions(config: Config) -> dict[str, str]:
    """A checksum of each source file that a run's numbers come from: samestep's own, and the task's where it is a file."""
    own = Path(__file__).parent.parent
    digest = xxhash.xxh3_64()
    for file in sorted(own.rglob("*.py")):
        digest.update(file.read_bytes())
    found = {"samestep": digest.hexdigest()}
    place = config.task.rpartition(":")[0]
    if as_kept(place).is_file():
        found[place] = xxhash.xxh3_64_hexdigest(as_kept(place).read_bytes())
    return found


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
}
_PARTS_BITS = {"device", "threads"}


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


def _is_longer(old: int | None, new: int | None, config: Config) -> bool:
    return old is not None and new is not None and new > old and config.schedule.name == "constant"

"""`samestep pin` and `samestep verify --against`: what the first steps of a config came to, kept, and compared later."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from samestep.commands.first_steps import first_steps_alone, parameter_names, start
from samestep.commands.pinned import Pin, listed, nearest_pin, pin_of, read_pins, write_pins
from samestep.commands.verify import sizes_here
from samestep.config import load_config
from samestep.errors import TrainingError, UsageError

# How far a loss or norm may lie from another kind of device's, as a part of its largest: rounding that grew over the steps.
_TOLERANCE = {"no": 1e-3, "tf32": 1e-2, "bf16": 5e-2, "fp16": 5e-2}
_CAUSES = ("loss", "", "gradients", "grad_norm", "lr")  # in the order of a step; "" for a task's own numbers


def pin_file(config_path: str) -> Path:
    """Where a config's bits are pinned: beside it."""
    return Path(config_path).with_suffix(".bits.json")


def pin(config_path: str, steps: int, overrides: tuple[str, ...]) -> str:
    """Train the first steps twice, and write what they came to beside the config; returns what to print.

    A pin of another kind of device stays, if it is of the same config and as many steps. Raises TrainingError if the two runs
    are not the same bits: nothing could be compared with them.
    """
    path = pin_file(config_path)
    config, _ = load_config(config_path, overrides)
    found, again = _trained(config_path, steps, overrides, [config.processes or 1] * 2)
    if parted := first_difference(found, again):
        raise TrainingError(
            f"{config_path}: two runs of it part, and nothing is pinned: {parted} (samestep verify {config_path} says what "
            "that looks like)"
        )
    others = [other for other in (read_pins(path) if path.exists() else []) if nearest_pin([other], found.kind)[1]]
    kept = [other for other in others if other.config == found.config and other.num_steps == steps]
    write_pins(path, [*kept, found])
    left = f"; left out: {len(others) - len(kept)} of another config or length" if len(others) > len(kept) else ""
    beside = f", beside {len(kept)} of other kinds of device" if kept else ""
    name = found.kind.get("name") or f"{found.kind['device']}, {found.kind.get('capability')}"
    return f"pinned {steps} steps in {path} ({name}){beside}{left}"


def compare(config_path: str, against: Path, processes: str | None, overrides: tuple[str, ...]) -> str:
    """Train the steps that a file has pinned, on each number of processes; returns the line that says they are the same.

    Raises TrainingError if they are not, with the first step and tensor, and what else is another. Raises UsageError where
    there is nothing to compare: a config that is refused, a run that fails.
    """
    pins = read_pins(against)
    config, _ = load_config(config_path, overrides)
    sizes = sizes_here(processes, config.device, config.num_leaves) if processes else [config.processes or 1]
    try:
        found = _trained(config_path, pins[0].num_steps, overrides, sizes)
    except TrainingError as error:
        raise UsageError(f"{config_path}: there is nothing to compare: {error}") from None
    lines = [_compared(config_path, against, pins, now) for now in found]
    return lines[0]


def _trained(config_path: str, steps: int, overrides: tuple[str, ...], sizes: list[int]) -> list[Pin]:
    """What the first steps came to at each size."""
    words = [*overrides, *first_steps_alone(load_config(config_path, overrides)[0], steps)]
    config, _ = load_config(config_path, words)
    names = parameter_names(config.task, config.fields)
    with tempfile.TemporaryDirectory(prefix="samestep-pin-") as runs:
        found = [start(config_path, words, Path(runs) / f"{place}", f"{size}", size) for place, size in enumerate(sizes)]
    return [pin_of(config, run, names) for run in found]


def _compared(config_path: str, against: Path, pins: list[Pin], now: Pin) -> str:
    before, parted = nearest_pin(pins, now.kind)
    others = before.others(now)
    what = first_difference(before, now)
    if what is None:
        also = [*parted, *others]
        changed = f" ({listed(also)})" if also else ""
        return f"nothing has changed: {before.num_steps} steps of {config_path} are the bits of {against}{changed}"
    if not parted:
        causes = f"the machine is of the same kind; {listed(others)}" if others else _NOTHING_ELSE
        raise TrainingError(f"{config_path} is not as {against} has it: {what}; {causes}")
    kind = f"{against} has no pin of this kind of device ({listed(parted)})"
    tolerance = _TOLERANCE[now.config["precision"]]
    if far := _too_far(before, now, tolerance):
        raise TrainingError(f"{config_path}: {far}, more than rounding explains; {kind}{_and(others)}")
    return (
        f"within {tolerance:.1%}: {before.num_steps} steps of {config_path}, not compared bit for bit: {kind}{_and(others)}; "
        "samestep pin here adds one"
    )


_NOTHING_ELSE = (
    "machine, code, config and data are the same, so that it looks like something unseeded or nondeterministic: samestep "
    "verify tells"
)


def _and(others: list[str]) -> str:
    return f"; {listed(others)}" if others else ""


def first_difference(before: Pin, now: Pin) -> str | None:
    """The first step where two runs part, and in what; None if they are the same bits."""
    for old, new in zip(before.rows, now.rows, strict=False):
        parted = sorted((key for key in {*old, *new} if old.get(key) != new.get(key)), key=_place)
        if parted:
            where = f"step {old['step']}" if "loss" in old and "loss" in new else f"the evaluation after step {old['step']}"
            return f"{where} parts first, in {_told(parted[0], before, old, new)}"
    if len(before.rows) != len(now.rows):
        return f"it was evaluated {'once' if len(before.rows) > len(now.rows) else 'never'} and now is not so"
    if before.weights != now.weights:
        return (
            f"the weights part after step {before.num_steps}, whose numbers agree: in its optimizer's step or what follows it"
        )
    return None


def _told(key: str, before: Pin, old: dict[str, Any], new: dict[str, Any]) -> str:
    if key != "gradients":
        return f"{key}, which was {old.get(key)} and is {new.get(key)}"
    pairs = list(zip(old[key].split(), new[key].split(), strict=False))
    parted = [place for place, (one, other) in enumerate(pairs) if one != other]
    if not parted or len(before.parameters) != len(pairs):
        return "its gradients, of which there are others"
    last = before.parameters[parted[-1]]  # backward comes to the last ones first
    return f"the gradient of {last}" + (f", the first of {len(parted)} that backward comes to" if len(parted) > 1 else "")


def _place(key: str) -> tuple[int, str]:
    return _CAUSES.index(key if key in _CAUSES else ""), key


def _too_far(before: Pin, now: Pin, tolerance: float) -> str | None:
    """The first number that lies further from the pinned one than a part of that number's largest over the steps."""
    largest: dict[str, float] = {}
    for row in before.rows:
        for key, value in _numbers(row).items():
            largest[key] = max(largest.get(key, 0.0), abs(value))
    for old, new in zip(before.rows, now.rows, strict=False):
        there = _numbers(new)
        for key, value in sorted(_numbers(old).items(), key=lambda pair: _place(pair[0])):
            if not abs(there.get(key, math.nan) - value) <= tolerance * largest[key]:
                return f"{key} of step {old['step']} was {value:.6g} and is {there.get(key, math.nan):.6g}"
    return None


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key != "step" and isinstance(value, (int, float))}

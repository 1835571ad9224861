"""What a run folder holds, read for showing: it may be running, torn or empty."""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.config import dotted, parse_yaml
from samestep.run.folder import RunFolder

Floats = npt.NDArray[np.float64]

_NO_CURVE = {"step", "epoch", "time", "fingerprint", "fingerprints"}
_MOST_SHOWN = 20_000  # characters


@dataclass
class Curve:
    """A number over the steps. NaN where it was not finite: metrics.jsonl has null there, and no word for more."""

    steps: Floats
    values: Floats

    @property
    def last(self) -> float:
        return float(self.values[-1])


@dataclass
class Record:
    """A run as far as its folder tells.

    Args:
        status: as `samestep status` has it: a run that says it is running may have died.
        config: dotted key → value; `origins` has where it came from, for a key or for all below it.
        starts: what starts/NNNN.json say, in order.
        steps, times: of the training rows; `eval_steps`, `eval_times` of the evaluations'.
        curves: every number in the rows, by its name there.
    """

    name: str
    status: str
    state: dict[str, Any]
    config: dict[str, Any]
    origins: dict[str, str]
    starts: list[dict[str, Any]]
    shown: str
    steps: Floats
    times: Floats
    eval_steps: Floats
    eval_times: Floats
    curves: dict[str, Curve] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Where the value of a dotted key came from; empty if that is not known."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")

    @property
    def step(self) -> int:
        """The furthest step known of."""
        return int(max([self.state.get("step") or 0, *self.steps[-1:], *self.eval_steps[-1:]]))


def read(folder: RunFolder, status: str) -> Record:
    """A run's record; what its folder lacks is empty."""
    clocks, numbers = _Columns(), _Columns()
    for row in _rows(folder):
        step, is_training = row["step"], "loss" in row
        clocks[is_training][0].append(step)
        clocks[is_training][1].append(row.get("time") or math.nan)
        for key, value in row.items():
            if key not in _NO_CURVE and (value is None or type(value) in (float, int)):
                where, found = numbers[key]
                where.append(step)
                found.append(math.nan if value is None else value)
    (steps, times), (eval_steps, eval_times) = (map(_finite, clocks[is_training]) for is_training in (True, False))
    config, origins = _config(folder)
    return Record(
        name=folder.path.resolve().name,
        status=status,
        state=folder.read_state(),
        config=config,
        origins=origins,
        starts=_starts(folder),
        shown=_text(folder)[:_MOST_SHOWN],
        steps=steps,
        times=times,
        eval_steps=eval_steps,
        eval_times=eval_times,
        curves={key: Curve(*map(_finite, pair)) for key, pair in numbers.items()},
    )


class _Columns(dict[Any, tuple["array.array[float]", "array.array[float]"]]):
    """By name two columns of numbers that grow: there may be millions of rows, and all else is slower."""

    def __missing__(self, name: Any) -> tuple[array.array[float], array.array[float]]:
        self[name] = (array.array("d"), array.array("d"))
        return self[name]


def _finite(column: array.array[float]) -> Floats:
    values = np.array(column)
    values[~np.isfinite(values)] = np.nan
    return values


def _rows(folder: RunFolder) -> Iterator[dict[str, Any]]:
    if not folder.metrics.exists():
        return
    with folder.metrics.open(errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:  # the last may not be whole yet
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row


def _starts(folder: RunFolder) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.starts.glob("*.json")):
        with contextlib.suppress(ValueError):  # one that is being written
            found.append(json.loads(path.read_text()))
    return found


def _config(folder: RunFolder) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys as they stand, of whatever version; each has its origin in the comment before it."""
    if not folder.config.exists():
        return {}, {}
    text = folder.config.read_text()
    origins: dict[str, str] = {}
    path: list[str] = []
    for before, line in itertools.pairwise(["", *text.splitlines()]):
        depth = (len(line) - len(line.lstrip())) // 2
        path[depth:] = [line.strip().partition(":")[0].strip("'")]
        if before.strip().startswith("# "):
            origins[".".join(path)] = before.strip()[2:]
    return dotted(parse_yaml(text, str(folder.config)) or {}), origins


def _text(folder: RunFolder) -> str:
    return folder.shown.read_text(errors="replace") if folder.shown.exists() else ""

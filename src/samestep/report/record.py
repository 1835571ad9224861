"""What a run folder holds, read for showing: it may be running, torn or empty."""

from __future__ import annotations

import array
import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.config import parse_yaml
from samestep.run_folder import RunFolder

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
        config: dotted key → value; `origins` has for each top-level key where its value came from.
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

    @property
    def step(self) -> int:
        """The furthest step known of."""
        return int(max([self.state.get("step") or 0, *self.steps[-1:], *self.eval_steps[-1:]]))


def read(folder: RunFolder, status: str) -> Record:
    """A run's record; what its folder lacks is empty."""
    rows = {True: _Columns(), False: _Columns()}  # training rows, evaluations
    numbers: dict[str, _Columns] = {}
    for row in _rows(folder):
        step = row["step"]
        rows["loss" in row].add(step, row.get("time"))
        for key, value in row.items():
            if key not in _NO_CURVE and (value is None or type(value) in (int, float)):
                numbers.setdefault(key, _Columns()).add(step, value)
    config, origins = _config(folder)
    return Record(
        name=folder.path.resolve().name,
        status=status,
        state=folder.read_state(),
        config=config,
        origins=origins,
        starts=_starts(folder),
        shown=_text(folder)[:_MOST_SHOWN],
        steps=rows[True].first,
        times=rows[True].second,
        eval_steps=rows[False].first,
        eval_times=rows[False].second,
        curves={key: Curve(found.first, found.second) for key, found in numbers.items()},
    )


class _Columns:
    """Two columns of numbers that grow, 16 bytes a row: there may be millions."""

    def __init__(self) -> None:
        self._first, self._second = array.array("d"), array.array("d")

    def add(self, first: float, second: float | None) -> None:
        self._first.append(first)
        self._second.append(float("nan") if second is None else second)

    @property
    def first(self) -> Floats:
        return np.array(self._first)

    @property
    def second(self) -> Floats:
        values = np.array(self._second)
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
    pairs = itertools.pairwise(text.splitlines())
    origins = {line.partition(":")[0]: before[2:] for before, line in pairs if before.startswith("# ")}
    return _dotted(parse_yaml(text, str(folder.config)) or {}), origins


def _dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _text(folder: RunFolder) -> str:
    return folder.shown.read_text(errors="replace") if folder.shown.exists() else ""

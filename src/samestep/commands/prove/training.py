"""A stretch of a run trained again, and what of it is not as the run has it."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from samestep.checkpoint import Saved, capture, read, weights_hash
from samestep.commands.again import build_again
from samestep.commands.load import task_of
from samestep.commands.prove.record import Kept
from samestep.commands.prove.stretches import Stretch
from samestep.config import Config, load_config
from samestep.errors import SamestepError, TrainingError, UsageError
from samestep.loop import Training, train
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import Row, as_line, timeless
from samestep.session import in_user_code, make_accelerator
from samestep.tracking import NullTracker

_ORDER = ("loss", "grad_norm", "fingerprint", "fingerprints")  # of what is named first
_OF_THE_STATE = ("optimizer", "ties", "frozen", "evaluating", "scaler")  # the rest is the clock's, or an evaluation's


@dataclass
class Result:
    """What became of a stretch.

    Args:
        wrong: each row that came out otherwise: its step, and in what.
        tensors: those that the checkpoint at its end has otherwise, by name.
        failure: why it could not be trained to its end.
        computed: a hash of all that was computed.
    """

    stretch: Stretch
    num_rows: int = 0
    wrong: list[tuple[int, str]] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    failure: str = ""
    computed: str = ""
    took_s: float = 0.0

    @property
    def holds(self) -> bool:
        return not (self.wrong or self.tensors or self.failure)


def read_kept(path: Path) -> Kept:
    """The hashes of a checkpoint. Raises TrainingError if it is damaged, or stands where another belongs."""
    saved = read(path)
    step = int(path.name.removeprefix("step-"))
    if saved.step != step:
        raise TrainingError(f"{path}: holds step {saved.step}, and not {step}: somebody has moved it")
    weights, state = _hashes(saved)
    return Kept(step, weights, state, saved.values["kind"], saved.values["data"])


def _hashes(saved: Saved) -> tuple[str, str]:
    """Of the weights, as state.json has it, and of the rest of what a step goes on from."""
    tied = {name: saved.weights[owner] for name, owner in saved.values["ties"].items()}
    rest = json.dumps([saved.values[key] for key in _OF_THE_STATE], sort_keys=True)
    state = weights_hash(sorted(saved.optimizer.items()))
    return weights_hash(sorted({**saved.weights, **tied}.items())), hashlib.sha256(f"{state}{rest}".encode()).hexdigest()


def train_again(folder: RunFolder, stretch: Stretch, rows: Sequence[Row]) -> Result:
    """Train a stretch on one process here, and compare it with the run's rows and with the checkpoint at its end.

    Args:
        rows: all of the run's.

    Raises UsageError where it cannot be trained here, which says nothing about the run.
    """
    begun, recorded = time.monotonic(), [row for row in rows if stretch.first < row["step"] <= stretch.last]
    found, compared = Result(stretch, len(recorded)), _Compared(recorded, stretch)
    try:
        _train_and_compare(folder, stretch, recorded, found, compared)
        found.wrong = sorted([*compared.wrong, *compared.missing()])
    except TrainingError as error:
        found.wrong, found.failure = compared.wrong, str(error)
    except SamestepError:
        raise
    except Exception as error:
        raise UsageError(f"{stretch} of {folder.name} cannot be trained here: {in_user_code(error)}") from None
    finally:
        compared.close(0.0)
        gc.collect()  # models go round in circles, and the next stretch has as large a one
    found.took_s = time.monotonic() - begun
    return found


def _train_and_compare(
    folder: RunFolder, stretch: Stretch, recorded: Sequence[Row], found: Result, compared: _Compared
) -> None:
    config = _config(folder, recorded)
    saved = read(_checkpoint(folder, stretch.first)) if stretch.first else None
    training = build_again(config, task_of(folder, config), make_accelerator(config), saved, stretch.last, compared)
    try:
        evaluated = {row["step"] for row in recorded if "loss" not in row}
        _train(training, evaluated, stretch.last)
        _compare_state(training, read(_checkpoint(folder, stretch.last)), found, compared)
    finally:
        training.batches.close()


def _checkpoint(folder: RunFolder, step: int) -> Path:
    return folder.checkpoints / f"step-{step:08d}"


def _config(folder: RunFolder, recorded: Sequence[Row]) -> Config:
    """The run's own maths; every step is tracked, as far as its rows went, and evaluations are made where it made them."""
    prints = next((mode for key, mode in _PRINTS.items() if any(key in row for row in recorded)), "false")
    words = [f"track={{every: 1, fingerprint: {prints}, wandb: 'off'}}", "checkpoint.best=null"]
    return load_config(folder.config, [*words, "converge=null", "profile=null", "processes=null", "audit=false"])[0]


_PRINTS = {"fingerprints": "parameters", "fingerprint": "true"}


def _train(training: Training, evaluated: set[int], last: int) -> None:
    """Train to a step, and evaluate after each of those where the run did."""
    evaluator, training.evaluation.evaluator = training.evaluation.evaluator, None
    for step in sorted({*evaluated, last}):
        training.num_steps = step
        train(training)
        training.first_step = step
        if step in evaluated:
            training.evaluation.evaluator = evaluator
            training.evaluate(step)
            training.evaluation.evaluator = None


class _Compared(NullTracker):
    """Compares each row with those that the run has of its step."""

    def __init__(self, recorded: Sequence[Row], stretch: Stretch) -> None:
        super().__init__()
        self._waiting: dict[tuple[int, bool], list[Row]] = {}
        for row in recorded:
            self._waiting.setdefault((row["step"], "loss" in row), []).append(row)
        self.wrong: list[tuple[int, str]] = []
        self.digest = hashlib.sha256()
        self._bar = tqdm(total=stretch.num_steps, desc=str(stretch), unit="step", leave=False, disable=not sys.stderr.isatty())

    def step(self, row: Row, weight: float) -> None:
        self._bar.update()
        self._compare(row)

    def evaluated(self, row: Row) -> None:
        self._compare(row)

    def _compare(self, row: Row) -> None:
        found = json.loads(as_line(timeless(row)))
        self.digest.update(json.dumps(found).encode())
        for recorded in self._waiting.pop((row["step"], "loss" in row), []):
            told = timeless(recorded)
            parted = sorted((key for key in told if told[key] != found.get(key)), key=_place)
            if parted:
                key = parted[0]
                self.wrong.append((row["step"], f"{key} was recorded as {told[key]} and is {found.get(key, 'not there')}"))

    def missing(self) -> list[tuple[int, str]]:
        """The rows whose like was not computed here."""
        return [(step, "a row was recorded that training does not write") for step, _ in self._waiting]

    def close(self, patience_s: float) -> None:
        self._bar.close()


def _place(key: str) -> tuple[int, str]:
    return _ORDER.index(key) if key in _ORDER else len(_ORDER), key


def _compare_state(training: Training, there: Saved, found: Result, compared: _Compared) -> None:
    here = capture(there.step, training.model, training.optimizer.inner, training.optimizer.scaler, {})
    if here.arrived is not None:
        here.arrived.synchronize()
    hashes = _hashes(here)
    compared.digest.update(json.dumps(hashes).encode())
    found.computed = compared.digest.hexdigest()
    if hashes != _hashes(there):
        found.tensors = [
            *_parted(here.weights, there.weights),
            *(f"the optimizer's {name}" for name in _parted(here.optimizer, there.optimizer)),
        ] or ["the optimizer's settings"]


def _parted(here: dict[str, torch.Tensor], there: dict[str, torch.Tensor]) -> list[str]:
    return [
        name for name in {**here, **there} if name not in here or name not in there or _bits(here[name]) != _bits(there[name])
    ]


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), weights_hash([("", tensor)])

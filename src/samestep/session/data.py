"""The rows of a run: read alike on every rank, and the same as when the run began."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from samestep.config import Config
from samestep.control import everyones, first_on_each_machine
from samestep.errors import UsageError
from samestep.randomness.order import Draws, Order
from samestep.randomness.seeding import seed_all
from samestep.runtime import Runtime
from samestep.sources import Arrays, Identity, Source, are_arrays, differences, doubt, identity, is_dataset, order_of
from samestep.task import Task

_BARS = "HF_DATASETS_DISABLE_PROGRESS_BARS"  # read when the library is imported
_READING = 5  # sets the random numbers of data() apart from the forward's
_SPLITS = ("train", "eval")
_INSTEAD = {
    "DataFrame": "return datasets.Dataset.from_pandas(frame, preserve_index=False)",
    "dict": "return its columns as tensors or NumPy arrays, or datasets.Dataset.from_dict(columns)",
    "DatasetDict": "return one split of it, data_dict[split]",
    "IterableDataset": "return a datasets.Dataset, loaded without streaming=True, or samestep.Parquet(PATHS or URL)",
    "IterableDatasetDict": "return one split of it, loaded without streaming=True, or samestep.Parquet(PATHS or URL)",
    "DataLoader": "return the datasets.Dataset behind it: batches are made of the config's sizes",
    "str": "return datasets.load_dataset(...) or datasets.Dataset.from_parquet(path)",
}
_FILES_SHOWN = 3
Facts = dict[str, Identity | None]


@dataclass
class Data:
    """A task's rows, and the facts by which they are known again."""

    train: Any
    held_out: Any
    weights: NDArray[np.float64] | None  # how often each row of `train` is drawn
    facts: Facts

    def order(self, seed: int) -> Order:
        return order_of(self.train, seed) if self.weights is None else Draws(self.weights, seed)


def read_data(task: Task, config: Config, runtime: Runtime) -> Data:
    """The task's two splits and weights. Raises UsageError if ranks have different ones."""
    train, held_out = (
        first_on_each_machine(
            runtime.local_rank,
            lambda split=split: read_split(task, config.seed, split),  # type: ignore[misc]
            f'data("{split}") runs',
        )
        for split in _SPLITS
    )
    if train is None:
        raise UsageError('data: data("train") returned None; return a datasets.Dataset')
    facts: Facts = {
        split: None if rows is None else identity(rows, apart=config.workers > 0)
        for split, rows in zip(_SPLITS, (train, held_out), strict=True)
    }
    weights = read_weights(task, config.seed, len(train))
    if weights is not None and isinstance(train, Source) and type(train).order is not Source.order:
        raise UsageError(
            f"data: found weights(), and rows of samestep.{type(train).__name__}, which has an order of its own; write "
            "samestep.Mix of several sources, each with its weight, or return None from weights()"
        )
    if weights is not None:
        facts["weights"] = {"checksum": xxhash.xxh3_128_hexdigest(weights.tobytes())}
    first, *others = everyones(facts)
    for rank, other in enumerate(others, 1):
        words = ("on rank 0 has", f"on rank {rank} has", "let it depend on nothing but its seeded numbers")
        if lines := [line for split in _SPLITS for line in _told_apart(first[split], other[split], split, *words)]:
            raise UsageError(*lines)
        if first.get("weights") != other.get("weights"):
            raise UsageError(f"data: weights() returned others on rank {rank} than on rank 0; {words[-1]}")
    return Data(train, held_out, weights, facts)


def refuse_other_data(before: Facts, now: Facts) -> None:
    """Raise UsageError if a run is to go on with other rows than it began with; an evaluation may begin at any start."""
    both = [split for split in _SPLITS if before[split] is not None and now[split] is not None]
    if lines := [line for split in both for line in _told_apart(before[split], now[split], split)]:
        raise UsageError(*lines)
    if before.get("weights") != now.get("weights"):
        raise UsageError("data: weights() returns others than when the run began; write the same, or another --run NAME")


def notes_on_data(before: Facts, now: Facts) -> list[str]:
    """What cannot be known of data too large to be looked at whole, and what is hardly meant."""
    pairs = [(before[split], now[split], split) for split in _SPLITS]
    doubts = [doubt(old, new, split) for old, new, split in pairs if old is not None and new is not None]
    notes = [f"WARNING: {words}" for words in doubts if words]
    notes += [f"data: {split}: {facts['note']}" for split, facts in now.items() if facts is not None and facts.get("note")]
    train, held_out = now["train"], now["eval"]
    if train is not None and held_out is not None and train["head"] == held_out["head"] != "":
        notes.append(
            'note: "eval" begins with the rows of "train"; if they were drawn, draw each split from a generator of its own: '
            "data() is called with the same random numbers for both, so that train_test_split() parts them (docs/data.md)"
        )
    return notes


def _is_source(found: object) -> bool:
    """Whether it gives rows by their numbers; a mapping, a text or a table of pandas gives something else."""
    is_table = type(found).__module__.partition(".")[0] in ("pandas", "polars", "pyarrow")
    by_name = isinstance(found, (str, bytes, Mapping)) or is_table
    return hasattr(found, "__len__") and hasattr(found, "__getitem__") and not by_name


def _instead_of_stream(found: object) -> str | None:
    """What to write for a stream of `datasets` over Parquet files; None for any other."""
    stream = (
        next(iter(found.values()), None) if type(found).__name__ == "IterableDatasetDict" and isinstance(found, dict) else found
    )
    node = getattr(stream, "_ex_iterable", None)
    while (inner := getattr(node, "ex_iterable", None)) is not None:
        node = inner
    files = [file for file in getattr(node, "kwargs", {}).get("files") or () if str(file).endswith(".parquet")]
    if not files:
        return None
    paths = repr(files[0] if len(files) == 1 else files) if len(files) <= _FILES_SHOWN else "PATHS"
    of = "" if len(files) <= _FILES_SHOWN else f" of its {len(files)} files, {files[0]} to {files[-1]}"
    return f"return samestep.Parquet({paths}){of}, and write what map() does as transform(row, rng)"


def read_weights(task: Task, seed: int, num_rows: int) -> NDArray[np.float64] | None:
    """How often each row of "train" is drawn; None for each once. Raises UsageError if they are no weights of these rows."""
    if not task.overrides("weights"):
        return None
    seed_all(seed, len(_SPLITS), 1, _READING)
    found = task.weights("train")
    if found is None:
        return None
    try:
        weights = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"data: weights() returned {type(found).__name__}; return a number for each row") from None
    if weights.shape != (num_rows,):
        raise UsageError(f"data: weights() returned shape {weights.shape}; return a number for each of the {num_rows} rows")
    if not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        wrong = weights[~(weights >= 0) | ~np.isfinite(weights)]
        raise UsageError(f"data: weights() returned {wrong[0] if len(wrong) else 'only zeros'}; return numbers from 0 on")
    return weights


def _told_apart(before: Identity | None, now: Identity | None, split: str, *words: str) -> list[str]:
    if before is None or now is None:
        return [] if before is now else [f'data: "{split}" is None on one rank and not on another; return the same on each']
    return differences(before, now, split, *words)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Inside, `datasets` shows no bars of its own, if it is imported at all."""
    library = sys.modules.get("datasets")  # or a module of the user's own that is called so
    if library is not None or _BARS in os.environ:
        getattr(library, "disable_progress_bars", lambda: None)()
        yield
        return
    os.environ[_BARS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_BARS, None)


def read_split(task: Task, seed: int, split: str) -> Any:
    """A split's rows, drawn from seeded numbers; None where the task has none. Raises UsageError if they are no rows.

    The numbers are the same for each split, so that the parts of a random split without a seed have no row in common.
    """
    seed_all(seed, 0, 0, _READING)
    with _no_bars():
        found = task.data(split)
    if found is None:
        return None
    if are_arrays(found):
        found = Arrays(found)
    if not is_dataset(found) and not _is_source(found):
        instead = _instead_of_stream(found) or _INSTEAD.get(type(found).__name__, "return a datasets.Dataset")
        raise UsageError(f'data: data("{split}") returned {type(found).__name__}; {instead} (docs/data.md)')
    if len(found) == 0:
        raise UsageError(f'data: data("{split}") has no rows')
    return found

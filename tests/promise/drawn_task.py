"""A task that a drawn run describes in its fields, so that one line of JSON replays it; the oracle trains the same class.

What a class may or may not override is drawn too: the names at the end are all combinations, `Drawn_transform_after_step`.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from drawn_parts import WIDTH, Row, as_rows, make
from torch import nn
from torch.nn import functional as F

from samestep import Mix, Parquet, Task

Batch = dict[str, torch.Tensor]
Ratio = tuple[torch.Tensor, "torch.Tensor | float"]
CLASSES = 5

_calls: collections.Counter[str] = collections.Counter()  # in this process; no attribute of the task's, which must not change


def _burn(place: str) -> None:
    """Send this process the signal that the harness asked for, once it has been in a method so often."""
    _calls[place] += 1
    fuse = os.environ.get("PROMISE_FUSE")
    if fuse:
        name, rank, method, call = fuse.split(":")
        if (rank, method, call) == (os.environ.get("RANK", "0"), place, str(_calls[place])):
            os.kill(os.getpid(), signal.Signals[name])


def _floats(*shape: int) -> Callable[[np.random.Generator, int], Any]:
    return lambda rng, rows: rng.standard_normal((rows, *shape)).astype(np.float32)


# Each makes the column `x`: (generator, rows) to an array or a list.
COLUMNS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "vectors": _floats(9),
    "scalars": _floats(),
    "images": _floats(3, 2, 2),
    "doubles": lambda rng, rows: rng.standard_normal((rows, 7)),
    "halves": lambda rng, rows: rng.standard_normal((rows, 5)).astype(np.float16),
    "python": lambda rng, rows: rng.standard_normal((rows, 3)).round(3).tolist(),
    "bytes": lambda rng, rows: rng.integers(0, 5, (rows, 4, 3), dtype=np.uint8),
    "ints": lambda rng, rows: rng.integers(-2, 3, (rows, 8), dtype=np.int32),
    "int": lambda rng, rows: rng.integers(-2, 3, rows),
    "bools": lambda rng, rows: rng.random((rows, 6)) > 0.4,
    "bool": lambda rng, rows: (rng.random(rows) > 0.4).tolist(),
    "tokens": lambda rng, rows: rng.integers(0, 11, (rows, 4)),
    "uneven": lambda rng, rows: [rng.integers(0, 11, rng.integers(1, 5)).tolist() for _ in range(rows)],
    "texts": lambda rng, rows: ["abcdefg"[: int(rng.integers(1, 8))] for _ in range(rows)],
}
NEEDS_COLLATE = {"uneven", "texts"}
WRAPS = (
    "plain",
    "selected",
    "shuffled",
    "concatenated",
    "array",
    "fixed",
    "filtered",
    "numpy",
    "torch",
    "with_transform",
    "source",
    "columns",
    "parquet",
    "mix",
)
OWN_ORDER = ("parquet", "mix")  # which weights() would not go with


def _array_features(values: Any, features: datasets.Features) -> datasets.Features:
    shape = np.shape(values)
    if len(shape) == 3:
        dtype = str(np.asarray(values).dtype)
        features = datasets.Features({**features, "x": datasets.Array2D(shape[1:], dtype)})
    return features


def _nudged(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [np.asarray(value) + 1 if name == "x" else value for value in values] for name, values in rows.items()}


class Indexed:
    """Rows by their numbers, and nothing else of a data set."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: int) -> Any:
        return self._dataset[number]


class InMemory(dict[str, Any]):
    """Columns as arrays, some of a mapped file, and tensors, in turn; `drawn` are the same rows for the oracle."""

    def __init__(self, columns: dict[str, Any], drawn: datasets.Dataset, rng: np.random.Generator) -> None:
        super().__init__()
        for place, (name, values) in enumerate(columns.items()):
            self[name] = torch.from_numpy(values) if place % 2 else mapped(values, rng) if rng.integers(2) else values
        self.drawn = drawn


def mapped(values: Any, rng: np.random.Generator) -> Any:
    """The array, read from a file."""
    file, half = Path(f"column-{rng.integers(1 << 40)}.npy"), Path(f"{os.getpid()}.half.npy")
    np.save(half, values)
    with contextlib.suppress(FileExistsError):  # of another process, or of an earlier start
        os.link(half, file)
    half.unlink()
    return np.load(file, mmap_mode="r")


def wrapped(dataset: datasets.Dataset, columns: dict[str, Any], wrap: str, rng: np.random.Generator) -> Any:
    """The same number of rows, seen through what users lay over a data set; `columns` are those of `dataset`."""
    rows = len(dataset)
    match wrap:
        case "selected":
            return dataset.select(rng.permutation(rows).tolist())
        case "shuffled":
            return dataset.shuffle(seed=int(rng.integers(99)))
        case "concatenated":
            half = rows // 2
            return datasets.concatenate_datasets([dataset.select(range(half)), dataset.select(range(half, rows))])
        case "filtered":
            twice = datasets.concatenate_datasets([dataset, dataset])
            return twice.filter(lambda row, place: place % 2 == 0, with_indices=True, load_from_cache_file=False)
        case "numpy" | "torch":
            return dataset.with_format(wrap)
        case "source":
            return Indexed(dataset)
        case "parquet":
            return in_files(dataset, rng)
        case "mix":
            return mixed(dataset, columns, rng)
        case "with_transform":
            return dataset.with_transform(_nudged)
    return dataset


def in_files(dataset: datasets.Dataset, rng: np.random.Generator) -> Parquet:
    """The rows in one to three Parquet files, one of which may have none; `drawn` are the same rows for the oracle."""
    datasets.config.HF_DATASETS_CACHE = Path("cache").absolute()
    folder = Path(f"files-{rng.integers(1 << 40)}")
    folder.mkdir(exist_ok=True)
    table = dataset.with_format("arrow")[:]
    ends = sorted(rng.integers(0, len(dataset) + 1, int(rng.integers(0, 3))).tolist())
    for number, (start, stop) in enumerate(itertools.pairwise([0, *ends, len(dataset)])):
        half = folder / f"{os.getpid()}.half"
        pq.write_table(table.slice(start, stop - start), half, row_group_size=int(rng.integers(1, 12)))
        with contextlib.suppress(FileExistsError):  # of another process; a file that is written anew is another file
            os.link(half, folder / f"{number}.parquet")
        half.unlink()
    source = Parquet(folder, window=[None, 1, 2, 3][int(rng.integers(4))])
    source.drawn = dataset  # type: ignore[attr-defined]
    return source


def mixed(dataset: datasets.Dataset, columns: dict[str, Any], rng: np.random.Generator) -> Mix:
    """The rows shared out among sources of each kind, each with a weight; `drawn` are those for the oracle."""
    ends = sorted({0, *rng.integers(0, len(dataset), 2).tolist(), len(dataset)})
    parts = [range(start, stop) for start, stop in itertools.pairwise(ends)]

    def in_memory(part: range) -> InMemory:
        return InMemory({name: values[part.start : part.stop] for name, values in columns.items()}, dataset.select(part), rng)

    kinds: list[Any] = [dataset.select, lambda part: Indexed(dataset.select(part))]
    kinds.append(lambda part: in_files(dataset.select(part), rng))
    if not isinstance(columns["x"], list):
        kinds.append(in_memory)
    sources = [kinds[int(rng.integers(len(kinds)))](part) for part in parts]
    weights = rng.integers(1, 6, len(parts)).tolist()
    mixture = Mix(list(zip(sources, weights, strict=True)))
    mixture.drawn = [(getattr(source, "drawn", source), weight) for source, weight in zip(sources, weights, strict=True)]  # type: ignore[attr-defined]
    return mixture


class Model(nn.Module):
    """A stem for what the rows hold, the drawn stack, and a head; `aside` is for losses that call a part alone."""

    def __init__(self, parts: tuple[str, ...], tokens: bool, teacher: bool) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Embedding(12, WIDTH) if tokens else nn.Linear(WIDTH, WIDTH)
        self.body = nn.Sequential(*map(make, parts))
        self.head, self.aside = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)
        if teacher:
            self.teacher = nn.Linear(WIDTH, CLASSES).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.stem(x)
        out: torch.Tensor = self.head(self.body(inner.mean(1) if inner.dim() == 3 else inner))
        return out


class Drawn(Task):
    """See the module; every field has a value that a plain task would have."""

    parts: tuple[str, ...] = ()
    column: str = "vectors"
    wrap: str = "plain"
    rows: int = 40
    eval_rows: int = 0
    dtype: str = "float32"
    target: str = "squares"  # or classes, weighted, counted, masked
    twist: str = ""  # what the loss does besides
    metric: str = ""  # what evaluation gives besides the loss
    numbers: str = ""  # what the loss gives besides
    every_step: str = ""  # what after_step does
    made: int = 1

    def data(self, split: str) -> Any:
        _burn("data")
        rows = self.rows if split == "train" else self.eval_rows
        if not rows:
            return None
        rng = np.random.default_rng([self.made, split == "train"])
        x = COLUMNS[self.column](rng, rows)
        columns = {"x": x, "y": rng.standard_normal(rows).astype(np.float32), "label": rng.integers(0, CLASSES, rows)}
        if self.target == "weighted":
            columns["weight"] = rng.random(rows) + 0.1
        if self.target == "counted":
            columns["weight"] = rng.integers(1, 9, rows, dtype=np.int16)
        if self.target == "masked":
            columns["weight"] = (rng.random((rows, CLASSES)) > 0.3) | (np.arange(CLASSES) == 0)
        dataset = datasets.Dataset.from_dict(columns)
        if self.wrap == "array" and self.column not in NEEDS_COLLATE:
            dataset = datasets.Dataset.from_dict(columns, features=_array_features(x, dataset.features))
        if self.wrap == "fixed" and self.column not in NEEDS_COLLATE and np.ndim(x) == 2:
            inner = dataset.features["x"].feature
            features = datasets.Features({**dataset.features, "x": datasets.Sequence(inner, length=np.shape(x)[1])})
            dataset = datasets.Dataset.from_dict(columns, features=features)
        if self.wrap == "columns" and not isinstance(x, list):
            return InMemory(columns, dataset, rng)
        return wrapped(dataset, columns, self.wrap, rng)

    def model(self) -> nn.Module:
        _burn("model")
        tokens = self.column in ("tokens", "uneven")
        model = Model(self.parts, tokens, self.every_step == "teacher")
        return model.to(getattr(torch, self.dtype)) if self.dtype != "float32" else model

    def _inputs(self, batch: Batch) -> torch.Tensor:
        x = batch["x"]
        return x.long() if self.column in ("tokens", "uneven") else as_rows(x, getattr(torch, self.dtype))

    def _weights(self, batch: Batch) -> torch.Tensor:
        return batch["weight"] if "weight" in batch else torch.ones(len(batch["y"]))

    def _error(self, out: torch.Tensor, batch: Batch) -> Ratio:
        match self.target:
            case "classes":
                return F.cross_entropy(out.float(), batch["label"].long(), reduction="sum"), len(out)
            case "weighted" | "counted":
                weight = batch["weight"].to(out.dtype)
                return (weight * (out.mean(1) - batch["y"].to(out.dtype)).square()).sum(), batch["weight"].sum()
            case "masked":
                return (out - batch["y"].to(out.dtype)[:, None]).square()[batch["weight"].bool()].sum(), batch["weight"].sum()
        return (out.sum(1) - batch["y"].to(out.dtype)).square().sum(), len(out)

    def _nothing(self) -> list[dict[str, Ratio]]:
        names = {"": [], "one": ["out"], "two": ["out", "lucky", "rows"]}[self.numbers]
        return [dict.fromkeys(names, (torch.zeros(()), 0))] if names else []

    def loss(self, model: Any, batch: Batch) -> Any:
        _burn("loss")
        x = self._inputs(batch)
        lucky = bool(batch["y"][0] > 0)  # true of some micro-batches only
        if self.twist == "part" and lucky:
            inner = model.stem(x)
            return *self._error(model.aside(inner.mean(1) if inner.dim() == 3 else inner), batch), *self._nothing()
        if self.twist == "no_model" and lucky:
            shift = model.head.bias.sum() * 0.1
            return (shift - batch["y"].to(shift.dtype)).square().sum(), len(batch["y"]), *self._nothing()
        out = model(x)
        total, weight = self._error(out, batch)
        if self.twist == "out_dtype" and out.dtype == torch.bfloat16:
            total = total * 1.5
        if self.twist == "penalty":
            total = total + 0.01 * sum(p.square().sum() for name, p in model.named_parameters() if name.startswith("head"))
        if self.twist == "twice":
            total = total + self._error(model(x * 2 if x.is_floating_point() else x), batch)[0]
        if self.twist == "teacher" and self.every_step == "teacher":
            total = total + model.teacher(as_rows(batch["y"], x.dtype)).sum() * out.mean()
        if self.twist == "mode":
            total = total * (1.0 if model.training else 2.0)
        if self.numbers:
            own = {"out": (out.detach().float().sum(), out.numel())}
            return (
                total,
                weight,
                own if self.numbers == "one" else {**own, "lucky": (total * 2, int(lucky)), "rows": (len(out), 1)},
            )
        return total, weight

    def metrics(self, model: Any, batch: Batch) -> dict[str, Ratio]:
        _burn("metrics")
        total, weight = self.loss(model, batch)[:2]
        found: dict[str, Ratio] = {"loss": (total, weight)}
        if self.metric == "accuracy":
            found["accuracy"] = ((model(self._inputs(batch)).argmax(1) == batch["label"]).sum(), len(batch["y"]))
        if self.metric == "nan":  # at evaluations where a weight that wanders lies so
            bias = model.head.bias.detach()
            found["nan"] = (torch.where((bias[0] * 1e4).floor() % 3 == 0, torch.nan, bias.sum()), 1)
        if self.metric == "drawn":
            found["drawn"] = (torch.rand(()) + np.random.rand(), 1.0)
        if self.metric == "missing" and bool(batch["y"][0] > 0):
            found["missing"] = (total * 2, weight)
        return found


class Transform(Task):
    def transform(self, row: Row, rng: np.random.Generator) -> Row:
        _burn("transform")
        if isinstance(row["x"], str) or np.asarray(row["x"]).dtype.kind != "f":
            return row
        x = np.asarray(row["x"])
        shift = rng.standard_normal(x.shape).astype(x.dtype) + x.dtype.type(np.random.rand())
        return {**row, "x": x + shift * x.dtype.type(0.1)}


class Collate(Task):
    def collate(self, rows: list[Row]) -> Batch:
        ragged = [[ord(c) - 96 for c in row["x"]] if isinstance(row["x"], str) else row["x"] for row in rows]
        arrays = [np.asarray(value).reshape(-1)[:WIDTH] for value in ragged]
        x = torch.stack([F.pad(torch.tensor(value), (0, WIDTH - len(value))) for value in arrays])
        rest = {name: torch.tensor(np.stack([np.asarray(row[name]) for row in rows])) for name in rows[0] if name != "x"}
        return {"x": x, **rest}


class Weights(Task):
    """Rows drawn with replacement, some of them never."""

    rows: int = 40
    made: int = 1

    def weights(self, split: str) -> Any:
        return np.random.default_rng([self.made, 7]).integers(0, 3, self.rows) + (np.arange(self.rows) == 0)


class Groups(Task):
    def optimizer(self, model: Any, config: Any) -> torch.optim.Optimizer:
        head = [p for name, p in model.named_parameters() if name.startswith("head") and p.requires_grad]
        rest = [p for name, p in model.named_parameters() if not name.startswith("head") and p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": head, "lr": 0.02, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=config.optimizer.lr, weight_decay=0.1)


class HeadOnly(Task):
    """An optimizer that holds a part of what has gradients."""

    def optimizer(self, model: Any, config: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.head.parameters(), lr=config.optimizer.lr, momentum=0.5)


class Lion(torch.optim.Optimizer):
    """An optimizer of nobody's, with state of several types; `noise` makes it draw random numbers."""

    def __init__(self, parameters: Any, lr: float, noise: float) -> None:
        super().__init__(parameters, {"lr": lr, "noise": noise})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                mean = state.setdefault("mean", torch.zeros_like(p, dtype=torch.float64))
                state["steps"] = state.get("steps", 0) + 1
                state["norms"] = [*state.get("norms", [])[-2:], float(p.grad.float().norm())]
                mean.lerp_(p.grad.double(), 0.1 + 0.1 / state["steps"])
                p.sub_((mean.sign() * group["lr"] * (1 + sum(state["norms"]) % 0.5)).to(p.dtype))
                p.add_(torch.randn_like(p) * group["noise"])


class Own(Task):
    def optimizer(self, model: Any, config: Any) -> torch.optim.Optimizer:
        return Lion([p for p in model.parameters() if p.requires_grad and not p.is_complex()], config.optimizer.lr * 0.1, 0.0)


class Noise(Task):
    def optimizer(self, model: Any, config: Any) -> torch.optim.Optimizer:
        return Lion([p for p in model.parameters() if p.requires_grad and not p.is_complex()], config.optimizer.lr * 0.1, 1e-3)


class AfterStep(Task):
    every_step: str = ""

    def after_step(self, model: Any, step: int) -> None:
        _burn("after_step")
        if self.every_step == "teacher":
            for old, new in zip(model.teacher.parameters(), model.head.parameters(), strict=True):
                old.lerp_(new, 0.2)
        if self.every_step == "freeze" and step == 3:
            model.body.requires_grad_(False)
        if self.every_step == "thaw":
            model.stem.requires_grad_(step % 2 == 0)
        if self.every_step == "clamp":
            for parameter in model.parameters():
                if not parameter.is_complex():
                    parameter.clamp_(-0.6, 0.6)


MIXINS: dict[str, type[Task]] = {
    "transform": Transform, "collate": Collate, "weights": Weights, "groups": Groups, "head_only": HeadOnly,
    "own": Own,
    "noise": Noise, "after_step": AfterStep,
}  # fmt: skip


def parts_to_train(fields: dict[str, Any], may_thaw: bool) -> list[str]:
    """The parts of the drawn model that an optimizer must have, by name."""
    model = Model(fields["parts"], fields["column"] in ("tokens", "uneven"), fields.get("every_step") == "teacher")
    trains = {
        name: any(p.requires_grad or (may_thaw and p.is_floating_point()) for p in child.parameters())
        for name, child in model.named_children()
    }
    return [name for name, does in trains.items() if does]


def waves(step: int) -> float:
    return 0.1 + abs(step % 7 - 3) / 3


def falling(step: int, num_steps: int) -> float:
    return float(1 - (step / (num_steps + 1)) ** 2)


def class_name(mixins: list[str]) -> str:
    return "_".join(["Drawn", *(name for name in MIXINS if name in mixins)])


def __getattr__(name: str) -> type[Drawn]:
    """The class with the mixins that its name lists, made when it is asked for."""
    mixins = [mixin for mixin in MIXINS if f"_{mixin}" in name]
    if not mixins or name != class_name(mixins):
        raise AttributeError(name)
    return type(name, (*(MIXINS[mixin] for mixin in mixins), Drawn), {"__module__": __name__})

"""The config: YAML, then `key=value`; strict, frozen, and each value remembers where it came from."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal, Self

import xxhash
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from samestep.errors import UsageError, nearest, validation_lines


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Converge(_Strict):
    """Stop when `patience` evaluations in a row bring the metric nothing better."""

    metric: str
    goal: Literal["min", "max"]
    patience: PositiveInt
    min_delta: float = Field(0.0, ge=0)


class Optimizer(_Strict):
    """The arguments of an optimizer class; beyond `name` and `lr` they are that class's own."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str
    lr: float = Field(gt=0)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"lr": self.lr, **(self.model_extra or {})}


class Schedule(_Strict):
    """The rate as a function of the step alone: warm-up, then constant, linear or cosine down to `floor` × lr."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = Field(0, ge=0)
    floor: float = Field(0.0, ge=0, le=1)


class Evaluate(_Strict):
    """Evaluate every so many steps, over the first so many micro-batches; by default at the end, over all."""

    every: PositiveInt | None = None
    batches: PositiveInt | None = None


class Checkpoint(_Strict):
    """When to save, besides at every stop and at the end."""

    every: PositiveInt | None = None
    minutes: float | None = Field(10.0, gt=0)
    keep: PositiveInt = 2
    best: str | None = None
    background: bool = True


class Track(_Strict):
    """What is recorded, and where it is shown."""

    every: PositiveInt = 10
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "samestep"
    tags: list[str] = []
    notes: str | None = None
    fingerprint: bool | Literal["parameters"] = False  # "parameters": one for each of them besides


class Audit(_Strict):
    """Recompute a neighbour's micro-batch every so many steps and compare the bits."""

    every: PositiveInt


class Profile(_Strict):
    """Trace `steps` steps from `start` on with torch.profiler."""

    start: PositiveInt
    steps: PositiveInt


class Config(_Strict):
    """A whole run. The same values of all that touches the maths give the same weights, bit for bit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=False, allow_inf_nan=False)

    task: str
    fields: dict[str, Any] = Field(default_factory=dict, alias="with")
    seed: int = Field(0, ge=0, lt=1 << 63)
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt
    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    drop_last: bool = False
    converge: Converge | None = None
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip: float | None = Field(None, gt=0)
    reduce: Literal["exact", "fast"] = "exact"
    leaves: PositiveInt | None = None
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    threads: PositiveInt = 1
    processes: PositiveInt | None = None
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Track()
    init: str | None = None
    workers: int = Field(0, ge=0)
    watchdog: float = Field(60.0, ge=0)
    audit: Audit | None = None
    profile: Profile | None = None
    runs: str = "runs"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            found = "neither steps nor epochs" if self.steps is None else f"steps={self.steps} and epochs={self.epochs}"
            raise ValueError(f"found {found}; write exactly one of them")
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size: found {self.global_batch_size}, which is no multiple of micro_batch_size "
                f"({self.micro_batch_size}); write {_near_multiple(self.global_batch_size, self.micro_batch_size)}"
            )
        for name, value in (("init", self.init), ("profile", self.profile), ("checkpoint.best", self.checkpoint.best)):
            if value is not None:
                raise ValueError(f"{name}: found {value}, and this version cannot do that yet; leave it out")
        if self.leaves is not None and self.micro_batches % self.leaves:
            fits = [str(n) for n in range(1, self.micro_batches + 1) if self.micro_batches % n == 0]
            raise ValueError(f"leaves: found {self.leaves}; write a divisor of {self.micro_batches}: {', '.join(fits)}")
        return self

    @property
    def micro_batches(self) -> int:
        """V: the micro-batches of one step, over all ranks."""
        return self.global_batch_size // self.micro_batch_size

    @property
    def num_leaves(self) -> int:
        """M: the leaves of the exact sum, and the most processes that can share a step."""
        return self.leaves or self.micro_batches

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as plain YAML types; loading it again gives an equal config."""
        return self.model_dump(by_alias=True, mode="json")


def _near_multiple(size: int, micro: int) -> str:
    below = size // micro * micro
    return f"{below} or {below + micro}" if below else str(micro)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `off` and `no` as False and `1e-3` as text; this loader reads scalars as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in ("bool", "float", "int", "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else, so that any reader gets the same values."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{origin}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None


def load_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> tuple[Config, dict[str, str]]:
    """Read a config file, lay `key=value` over it, and validate the whole.

    Returns the config and, for each dotted key that somebody wrote, where: the file's name or "command line".
    UsageError has one line for each mistake.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.yaml"
    if not file.is_file():
        beside = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        close = nearest(file.name, beside)
        hint = f"did you mean {file.parent / close}?" if close else "write the path of a YAML file"
        raise UsageError(f"{path}: found no such config; {hint}")
    tree = _parse(file.read_text(), str(path))
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: found {type(tree).__name__}; write keys and values, task: … first")
    sources = dict.fromkeys(_leaves(tree), str(path))
    for override in overrides:
        key = _lay_over(tree, override)
        sources = {known: origin for known, origin in sources.items() if not known.startswith(key + ".")}
        sources[key] = "command line"
    return validated(tree), sources


def validated(tree: dict[str, Any]) -> Config:
    """A config from plain values; UsageError has one line for each mistake."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(*validation_lines(error, Config)) from None


def _lay_over(tree: dict[str, Any], override: str) -> str:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"{override}: found no key=value; write {override or 'key'}=VALUE")
    *parents, last = key.split(".")
    place = tree
    for parent in parents:
        if not isinstance(place.get(parent), dict):
            place[parent] = {}
        place = place[parent]
    place[last] = _parse(text, f"{key}={text}")
    return key


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found += _leaves(value, name + ".") if isinstance(value, dict) and value else [name]
    return found


def to_text(config: Config, sources: dict[str, str]) -> str:
    """The resolved config as YAML, with a comment before each top-level key that says where its value came from."""
    lines = []
    for key, value in config.resolved().items():
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, allow_unicode=True, width=math.inf)
        origins = {origin for known, origin in sources.items() if known == key or known.startswith(key + ".")}
        lines.append(f"# {', '.join(sorted(origins)) or 'default'}")
        lines.append(f"{key}: {text.removesuffix('...' + chr(10)).strip()}")
    return "\n".join(lines) + "\n"


def code_versions(config: Config) -> dict[str, str]:
    """A checksum of each source file that a run's numbers come from: samestep's own, and the task's where it is a file."""
    own = Path(__file__).parent
    digest = xxhash.xxh3_64()
    for file in sorted(own.rglob("*.py")):
        digest.update(file.read_bytes())
    found = {"samestep": digest.hexdigest()}
    place = Path(config.task.rpartition(":")[0])
    if place.is_file():
        found[str(place)] = xxhash.xxh3_64_hexdigest(place.read_bytes())
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

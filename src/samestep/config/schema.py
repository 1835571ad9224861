"""Every key of a config: strict, frozen, checked against the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from samestep.config.lengths import Length, Steps, in_steps
from samestep.config.schedule import Schedule
from samestep.errors import UNSEEN


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


def _optimizers(value: object) -> str:
    """Which kind of mapping stands there: an optimizer's arguments, or an optimizer for each named part of the model."""
    entries = value if isinstance(value, dict) and not {"name", "lr"} & set(value) else {}
    of_parts = bool(entries) and all(isinstance(entry, (dict, Optimizer)) for entry in entries.values())
    return _PARTS if of_parts else _ONE


_ONE, _PARTS = f"{UNSEEN}one", f"{UNSEEN}parts"
Optimizers = Annotated[
    Annotated[Optimizer, Tag(_ONE)] | Annotated[dict[str, Optimizer], Tag(_PARTS)], Discriminator(_optimizers)
]


class Evaluate(_Strict):
    """Evaluate every so many steps, over the first so many micro-batches; by default at the end, over all."""

    every: Steps | None = None
    batches: PositiveInt | None = None


class Checkpoint(_Strict):
    """When to save, besides at every stop and at the end."""

    every: Steps | None = None
    minutes: float | None = Field(10.0, gt=0)
    keep: PositiveInt = 2
    best: str | None = None
    background: bool = True
    milestones: Steps | None = None
    address: str | None = Field(None, alias="copy")  # pydantic has a method of that name

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint after `step` steps is kept for ever."""
        return self.milestones is not None and step % self.milestones == 0


class Track(_Strict):
    """What is recorded, and where it is shown."""

    every: Steps = 10
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "samestep"
    tags: list[str] = []
    notes: str | None = None
    fingerprint: bool | Literal["parameters"] = False  # "parameters": one for each of them besides
    also: list[str] = []  # tensorboard, trackio, or path/to/file.py:Class

    @field_validator("also")
    @classmethod
    def _known(cls, also: list[str]) -> list[str]:
        for name in also:
            if name not in ("tensorboard", "trackio") and not all(name.rpartition(":")[::2]):
                raise ValueError(f"found {name!r}; write tensorboard, trackio, module:Class or path/to/file.py:Class")
        return also


class Audit(_Strict):
    """Compute a micro-batch again every so many steps, here and at a neighbour's, and compare the bits."""

    every: Steps


class Profile(_Strict):
    """Trace `steps` steps from step `start` on (from 1) with torch.profiler, on rank 0."""

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
    steps: Steps | None = None
    epochs: PositiveInt | None = None
    drop_last: bool = False
    converge: Converge | None = None
    optimizer: Optimizers
    schedule: Schedule = Schedule()
    precision: Literal["no", "tf32", "bf16", "fp16"] = "no"
    attention: Literal["auto", "fa4", "fa3", "flash", "efficient", "math"] = "auto"
    clip: float | None = Field(None, gt=0)
    reduce: Literal["exact", "fast"] = "exact"
    leaves: PositiveInt | None = None
    compile: bool = False
    shard: bool | Literal["node"] = False
    recompute: bool = False
    device: Literal["auto", "cpu"] = "auto"
    threads: PositiveInt = 1
    processes: PositiveInt | None = None
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Track()
    init: str | None = None
    workers: int = Field(0, ge=0)
    watchdog: float = Field(60.0, ge=0)
    audit: Audit | Literal[False] | None = None  # in steps of its own choice
    profile: Profile | None = None
    runs: str = "runs"

    @field_validator("schedule", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            if self.steps is None:
                raise ValueError("found neither steps nor epochs; write exactly one of them")
            found = f"steps={self.steps} and epochs={self.epochs}"
            raise ValueError(f"found {found}; write exactly one of them, null for the other")
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size: found {self.global_batch_size}, which is no multiple of micro_batch_size "
                f"({self.micro_batch_size}); write {_near_multiple(self.global_batch_size, self.micro_batch_size)}"
            )
        if self.profile and self.known_steps and self.profile.start > self.known_steps:
            raise ValueError(f"profile.start: found {self.profile.start}, and the run ends at step {self.steps}; write less")
        if self.schedule.judged_by and self.evaluate.every is None:
            raise ValueError("schedule: found plateau, and evaluations at the end alone; write evaluate.every=STEPS")
        if self.checkpoint.best and self.checkpoint.best.partition(":")[2] not in ("", "min", "max"):
            raise ValueError(
                f"checkpoint.best: found {self.checkpoint.best!r}; write METRIC, of which less is better, or METRIC:max"
            )
        if self.shard and self.reduce == "fast":
            raise ValueError("reduce: found fast under shard, whose sum has one order at no cost; leave one of the two out")
        if self.leaves is not None and self.micro_batches % self.leaves:
            fits = [str(n) for n in range(1, self.micro_batches + 1) if self.micro_batches % n == 0]
            raise ValueError(f"leaves: found {self.leaves}; write a divisor of {self.micro_batches}: {', '.join(fits)}")
        return self

    @property
    def known_steps(self) -> int | None:
        """The number of steps, where the config alone says it: an epoch is as long as the data."""
        return None if isinstance(self.steps, Length) else self.steps

    def in_steps(self, steps_per_epoch: int) -> tuple[Self, int]:
        """The config with every length as a number of steps, and how many steps the run has."""
        steps = in_steps(self.steps, steps_per_epoch, 0) or (self.epochs or 0) * steps_per_epoch
        return in_steps(self, steps_per_epoch, steps), steps

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Each optimizer by its key in the config: one, or one for each named part of the model."""
        if isinstance(self.optimizer, Optimizer):
            return {"optimizer": self.optimizer}
        return {f"optimizer.{part}": wanted for part, wanted in sorted(self.optimizer.items())}  # a checkpoint counts them

    @property
    def micro_batches(self) -> int:
        """V: the micro-batches of one step, over all ranks."""
        return self.global_batch_size // self.micro_batch_size

    @property
    def num_leaves(self) -> int:
        """M: the leaves of the exact sum, and the most processes that can share a step."""
        return self.leaves or self.micro_batches

    @property
    def autocast(self) -> Literal["no", "bf16", "fp16"]:
        """What forwards are cast to. TF32 is no such type: float32 stays what is stored, and products are taken in less."""
        return "no" if self.precision == "tf32" else self.precision

    @property
    def is_audited(self) -> bool:
        """Whether steps are computed again; sums in whatever order (reduce: fast) only where that is asked for."""
        return self.audit is not False and (self.audit is not None or self.reduce == "exact")

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as plain YAML types; loading it again gives an equal config."""
        return self.model_dump(by_alias=True, mode="json")


def _near_multiple(size: int, micro: int) -> str:
    below = size // micro * micro
    return f"{below} or {below + micro}" if below else str(micro)

"""Every key of a config: strict, frozen, checked against the others."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


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
        if self.profile is not None:
            raise ValueError("profile: this version cannot do that yet; leave it out")
        if self.checkpoint.best and self.checkpoint.best.partition(":")[2] not in ("", "min", "max"):
            raise ValueError(
                f"checkpoint.best: found {self.checkpoint.best!r}; write METRIC, of which less is better, or METRIC:max"
            )
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

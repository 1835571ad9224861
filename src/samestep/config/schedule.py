"""The key `schedule`: which rate, and what each of them is told."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from samestep.config.lengths import AnyStepsOrPart, Length, Steps, StepsOrPart
from samestep.errors import nearest

_KEYS: dict[str, tuple[str, ...]] = {  # of each name's own, beside warmup and floor
    "constant": (),
    "linear": (),
    "cosine": (),
    "wsd": ("decay",),
    "onecycle": (),
    "step": ("every", "at", "factor"),
    "exponential": ("every", "factor"),
    "inverse_sqrt": (),
    "restarts": ("every", "growth"),
    "plateau": ("metric", "goal", "patience", "min_delta", "factor"),
}
SCHEDULES = tuple(_KEYS)
_OWN = tuple(dict.fromkeys(key for keys in _KEYS.values() for key in keys))
_REQUIRED = {
    "exponential": {"factor": "what is left of the rate after a step, or after `every`"},
    "restarts": {"every": "the length of a cycle"},
    "plateau": {"patience": "how many evaluations in a row may bring nothing better"},
}
_SEES_THE_END = ("linear", "cosine", "wsd", "onecycle")


class Schedule(BaseModel):
    """The rate as a function of the step: warm-up, then by `name` down to `floor` × lr; or a function of one's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    name: str = "constant"
    warmup: AnyStepsOrPart = 0
    floor: float = Field(0.0, ge=0, le=1)
    decay: StepsOrPart | None = None
    every: Steps | None = None
    at: list[Steps] | None = None
    factor: float | None = Field(None, gt=0, lt=1)
    growth: PositiveInt | None = None
    metric: str | None = None
    goal: Literal["min", "max"] | None = None
    patience: int | None = Field(None, ge=0)
    min_delta: float | None = Field(None, ge=0)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SCHEDULES and ":" not in name:
            close = nearest(name, SCHEDULES)
            hint = f"did you mean {close}?" if close else f"write {', '.join(SCHEDULES)}, or file.py:function"
            raise ValueError(f"found {name!r}; {hint}")
        return name

    @model_validator(mode="after")
    def _fits(self) -> Self:
        written: dict[str, Any] = {key: getattr(self, key) for key in _OWN if getattr(self, key) is not None}
        if ":" in self.name:
            if found := [*(["warmup"] if self.warmup else []), *(["floor"] if self.floor else []), *written]:
                raise ValueError(f"{self.name} says the whole rate; leave out {', '.join(found)}")
            return self
        for key, value in written.items():
            if key not in _KEYS[self.name]:
                whose = [name for name, keys in _KEYS.items() if key in keys]
                have = "have" if len(whose) > 1 else "has"
                raise ValueError(f"{key}: found {value} under {self.name}; only {' and '.join(whose)} {have} one, leave it out")
        for key, meaning in _REQUIRED.get(self.name, {}).items():
            if key not in written:
                raise ValueError(f"found {self.name} without {key}; write {key}=…, {meaning}")
        if self.name == "step" and (self.every is None) == (self.at is None):
            found_both = "both every and at" if self.every else "neither every nor at"
            raise ValueError(f"found step with {found_both}; write every: 30 epochs, or at: [30 epochs, 60 epochs]")
        return self

    @property
    def sees_the_end(self) -> bool:
        """Whether the rate of a step depends on how many there will be; of a function of one's own nobody knows."""
        is_part = isinstance(self.warmup, Length) and not self.warmup.is_epochs
        return is_part or self.name in _SEES_THE_END or ":" in self.name

    @property
    def judged_by(self) -> str | None:
        """The metric whose evaluations the rate follows, if it does."""
        return (self.metric or "loss") if self.name == "plateau" else None

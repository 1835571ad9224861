"""Lengths of time in a config: so many steps, so many epochs, or a part of the run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, PlainSerializer, WithJsonSchema, WrapValidator

_TEXT = re.compile(r"([0-9]{1,9}|[0-9]{0,9}\.[0-9]{1,4}) *epochs?")


@dataclass(frozen=True)
class Length:
    """So many epochs, or such a part of the run: a number of steps once it is known how many an epoch has."""

    number: float
    is_epochs: bool

    def __repr__(self) -> str:
        return str(self.plain())

    def in_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """The nearest number of steps (a half to the even one), at least 1."""
        return max(1, round(self.number * (steps_per_epoch if self.is_epochs else num_steps)))

    def plain(self) -> str | float:
        """As it is written in a config."""
        number = int(self.number) if self.number.is_integer() else self.number
        return f"{number} epoch{'' if number == 1 else 's'}" if self.is_epochs else number


def in_steps(value: Any, steps_per_epoch: int, num_steps: int) -> Any:
    """The value, or a copy of the mapping or list, with a number of steps in place of each length."""
    if isinstance(value, Length):
        return value.in_steps(steps_per_epoch, num_steps)
    if isinstance(value, BaseModel):
        inner = {name: in_steps(getattr(value, name), steps_per_epoch, num_steps) for name in type(value).model_fields}
        return value.model_copy(update=inner)
    return [in_steps(each, steps_per_epoch, num_steps) for each in value] if isinstance(value, list) else value


def _in_epochs(value: object, otherwise: Callable[[object], object]) -> object:
    if not isinstance(value, str):
        return otherwise(value)
    if (found := _TEXT.fullmatch(value.strip())) is None or float(found[1]) == 0:
        raise ValueError(f"found {value!r}; write an integer, or 2 epochs")
    return Length(float(found[1]), is_epochs=True)


def _or_a_part(value: object, otherwise: Callable[[object], object]) -> object:
    is_part = isinstance(value, float) and 0 < value < 1
    return Length(value, is_epochs=False) if is_part else otherwise(value)  # type: ignore[arg-type]


def _plain(value: object) -> object:
    return value.plain() if isinstance(value, Length) else value


def _written(limit: str, *more: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "integer", limit: 0}, {"const": "N epochs"}, *more]})


_PART = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_EPOCHS, _PARTS, _AS_WRITTEN = WrapValidator(_in_epochs), WrapValidator(_or_a_part), PlainSerializer(_plain)

# A number for whoever trains by it: a `Length` stands there until `in_steps`, and only what compares configs meets one.
Steps = Annotated[int, Field(gt=0), _EPOCHS, _AS_WRITTEN, _written("exclusiveMinimum")]
StepsOrPart = Annotated[int, Field(gt=0), _EPOCHS, _PARTS, _AS_WRITTEN, _written("exclusiveMinimum", _PART)]
AnyStepsOrPart = Annotated[int, Field(ge=0), _EPOCHS, _PARTS, _AS_WRITTEN, _written("minimum", _PART)]

"""A step's numbers: its loss, its weight, its norm. On a CPU Python's floats, on a GPU scalars that nobody waits for."""

from __future__ import annotations

import math

import torch

Scalar = torch.Tensor | float
"""A float64 number: a Python float where reading it costs nothing, else a tensor of shape () on the device.

The two come to the same bits: both are IEEE 754 double precision, and every operation here is correctly rounded.
"""


def as_float(value: Scalar) -> float:
    """The number, read from wherever it is; `float` would warn of a weight that has a gradient."""
    return value.item() if isinstance(value, torch.Tensor) else float(value)


def ratio(total: Scalar, weight: Scalar) -> Scalar:
    """total / weight; NaN, as an infinity is on the way to an error, where floats would raise for a weight of zero."""
    if isinstance(weight, float) and weight == 0.0:
        return math.nan
    return total / weight


def is_finite(value: Scalar) -> torch.Tensor | bool:
    return value - value == 0 if isinstance(value, torch.Tensor) else math.isfinite(value)  # two kernels; isfinite is four

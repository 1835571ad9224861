"""Which plots a page has, and their points as plain values."""

from __future__ import annotations

import math
from typing import Any

from samestep.report.record import Curve, Record
from samestep.report.thinning import thinned
from samestep.report.timeline import steps_per_s

_FIRST = ["loss", "lr", "grad_norm"]
_TITLES = {
    "loss": ("Loss", ""),
    "lr": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", ""),
    "steps_per_s": ("Throughput", "steps per second"),
    "data_wait_s": ("Waiting for data", "seconds between rows"),
    "peak_memory_bytes": ("Peak memory", "GiB"),
    "mfu": ("Model FLOPs utilization", "share of the peak"),
}
_LOGARITHMIC = {"loss", "grad_norm"}
_GIB = 2**30


def plots(records: list[Record], most: int) -> list[dict[str, Any]]:
    """Each plot's title, unit and curves; all curves together have about `most` points."""
    found: dict[str, list[tuple[int, str, Curve]]] = {}
    for number, record in enumerate(records):
        for key, curve in _curves(record).items():
            # One run's loss in training and in evaluation are one plot; of several runs each has its own.
            plot = "loss" if key == "eval_loss" and len(records) == 1 else key
            found.setdefault(plot, []).append((number, key, curve))
    share = max(most // max(sum(map(len, found.values())), 1), 20)
    return [_plot(key, found[key], share) for key in sorted(found, key=_place)]


def _curves(record: Record) -> dict[str, Curve]:
    """What is worth a plot; a rate in the task's own units says all that one in steps does."""
    curves = {key: curve for key, curve in record.curves.items() if key != "step_s"}
    if not any(key.endswith("_per_s") for key in curves):
        pace = steps_per_s(record)
        curves |= {"steps_per_s": pace} if len(pace.steps) else {}
    return curves


def _plot(key: str, curves: list[tuple[int, str, Curve]], share: int) -> dict[str, Any]:
    title, unit = _titles(key)
    scale = _GIB if key == "peak_memory_bytes" else 1
    return {
        "title": title,
        "unit": unit,
        "log": key in _LOGARITHMIC or key.startswith("eval_loss"),
        "curves": [_points(number, name, curve, share, scale) for number, name, curve in curves],
    }


def _points(number: int, name: str, curve: Curve, share: int, scale: int) -> dict[str, Any]:
    few = thinned(curve, share)
    values = [None if math.isnan(value) else float(f"{value / scale:.6g}") for value in few.values.tolist()]
    return {
        "run": number,
        "name": name,
        "thinned": len(few.steps) < len(curve.steps),
        "x": list(map(int, few.steps)),
        "y": values,
    }


def _titles(key: str) -> tuple[str, str]:
    if key in _TITLES:
        return _TITLES[key]
    if key.startswith("eval_"):
        return f"Evaluation: {key.removeprefix('eval_').replace('_', ' ')}", ""
    if key.endswith("_per_s"):
        return "Throughput", f"{key.removesuffix('_per_s').replace('_', ' ')} per second"
    return key, "seconds" if key.endswith("_s") else ""


def _place(key: str) -> tuple[int, str]:
    """Loss first, then what evaluation gives, the rate, the norm, the throughput, and the rest by name."""
    order = [key == "loss", key.startswith("eval_"), *(key == name for name in _FIRST[1:]), key.endswith("_per_s")]
    return (order.index(True) if True in order else len(order), key)

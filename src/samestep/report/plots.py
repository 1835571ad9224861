"""Which plots a page has, and their points as plain values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from samestep.report.record import Curve, Floats, Record
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
_FROM_ZERO = {"peak_memory_bytes"}
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
    return [_plot(key, found[key], share, records) for key in sorted(found, key=_place)]


def _curves(record: Record) -> dict[str, Curve]:
    """What is worth a plot; a rate in the task's own units says all that one in steps does."""
    curves = {key: curve for key, curve in record.curves.items() if key != "step_s"}
    if not any(key.endswith("_per_s") for key in curves):
        pace = steps_per_s(record)
        curves |= {"steps_per_s": pace} if len(pace.steps) else {}
    return curves


def _plot(key: str, curves: list[tuple[int, str, Curve]], share: int, records: list[Record]) -> dict[str, Any]:
    title, unit = _titles(key)
    scale = _GIB if key == "peak_memory_bytes" else 1
    values = np.concatenate([curve.values for _, _, curve in curves])
    values = values[np.isfinite(values)]
    may_be_log = key not in _FROM_ZERO and len(values) > 0 and bool((values > 0).all())
    return {
        "title": title,
        "unit": unit,
        "zero": key in _FROM_ZERO,
        "log": may_be_log,
        "bent": may_be_log and _are_hidden(values),
        "curves": [
            _points(number, name, curve, share, scale) | {"best": _best(records[number], name, curve)}
            for number, name, curve in curves
        ],
    }


def _are_hidden(values: Floats) -> bool:
    """Whether a linear axis has nine tenths of the values in its lowest tenth."""
    least, most = float(values.min()), float(values.max())
    return most > least and float((values <= least + (most - least) / 10).mean()) >= 0.9


def _best(record: Record, name: str, curve: Curve) -> list[float] | None:
    """Step and value of a curve's best point: the one whose checkpoint the run keeps, or the least loss in evaluation."""
    best = record.state.get("best")
    if best and best["metric"] == name:
        return [int(best["step"]), float(best["value"])]
    if name != "eval_loss" or len(curve.values) < 2 or np.isnan(curve.values).all():
        return None
    place = int(np.nanargmin(curve.values))
    return [int(curve.steps[place]), float(curve.values[place])]


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

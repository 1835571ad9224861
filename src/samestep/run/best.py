"""The best of a run by `checkpoint.best`, as its state.json has it once that checkpoint is on disk."""

from __future__ import annotations

from typing import Any


def as_found(setting: str, step: int, lowest: float) -> dict[str, Any]:
    """What state.json says of it.

    Args:
        setting: `METRIC` or `METRIC:max`.
        lowest: the value, with its sign changed where more is better.
    """
    metric, _, goal = setting.partition(":")
    return {"metric": f"eval_{metric.removeprefix('eval_')}", "value": -lowest if goal == "max" else lowest, "step": step}


def best_words(state: dict[str, Any]) -> str | None:
    """`best eval_accuracy 0.9712 at step 400`; None for a run that keeps no best, or has none yet."""
    best = state.get("best")
    return f"best {best['metric']} {best['value']:.6g} at step {best['step']}" if best else None


def last_lines(state: dict[str, Any]) -> str:
    """What a run that is done prints last: its best, if it keeps one, and the weights of its last step."""
    best = best_words(state)
    words = f"{best}; the weights below are the last step's (export and evaluate take --best)\n" if best else ""
    return f"{words}weights {state['weights']}"

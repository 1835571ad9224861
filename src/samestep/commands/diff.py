"""`samestep diff`: the first step where two runs part, and what differs in their configs, machines and code."""

from __future__ import annotations

from typing import Any

from samestep.config import load_config
from samestep.errors import UsageError
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import parsed, timeless

_LEFT_OUT = {"fingerprints"}  # their sum is compared


def diff(run_a: str, run_b: str) -> tuple[bool, str]:
    """Compare two runs step by step. Returns whether they are the same as far as both go, and what to print."""
    a, b = RunFolder.found(run_a), RunFolder.found(run_b)
    lines, same = _metrics(a, b)
    for one, other in ((a, b), (b, a)):
        if (origin := one.read_state().get("parent")) is not None:
            whose = "the other" if origin["run"] == other.name else origin["run"]
            lines.append(f"{one.name} is a branch of {whose}, from step {origin['step']} on")
    lines += [f"config {line}" for line in _config(a, b)]
    for title in ("kind", "code"):
        before, now = a.read_state().get(title) or {}, b.read_state().get(title) or {}
        lines += [
            _values(f"{title} {key}", before.get(key), now.get(key))
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
    return same, "\n".join(lines)


def _metrics(a: RunFolder, b: RunFolder) -> tuple[list[str], bool]:
    rows_a, rows_b = _rows(a), _rows(b)
    both = sorted(rows_a.keys() & rows_b.keys())
    if not both:
        raise UsageError(f"{a.path} and {b.path} have no tracked step in common; track every step with track.every=1")
    for step, kind in both:
        first, second = rows_a[step, kind], rows_b[step, kind]
        parted = [key for key in sorted({*first, *second} - _LEFT_OUT) if first.get(key) != second.get(key)]
        if parted:
            head = f"the runs part at step {step}"
            before = [s for s, _ in both if s < step]
            head += f" (the same at step {before[-1]})" if before else " (the first that both tracked)"
            return [head, *("  " + _values(key, first.get(key), second.get(key)) for key in parted)], False
    last = both[-1][0]
    weights_a, weights_b = a.read_state().get("weights"), b.read_state().get("weights")
    if weights_a and weights_b and weights_a != weights_b and len(rows_a) == len(rows_b):
        return [
            f"{len(both)} tracked rows are the same to step {last}, and the weights differ",
            _values("weights", weights_a, weights_b),
        ], False
    return [f"the same at all {len(both)} rows that both tracked, to step {last}"], True


def _rows(folder: RunFolder) -> dict[tuple[int, str], dict[str, Any]]:
    if not folder.metrics.exists():
        raise UsageError(f"{folder.path}: found no metrics.jsonl; has the run made its first tracked step?")
    rows = [timeless(row) for line in folder.metrics.read_text().splitlines() if (row := parsed(line)) is not None]
    return {(row["step"], "train" if "loss" in row else "zeval"): row for row in rows}


def _config(a: RunFolder, b: RunFolder) -> list[str]:
    before, now = load_config(a.config)[0].resolved(), load_config(b.config)[0].resolved()
    return [_values(key, before[key], now[key]) for key in before if before[key] != now[key]]


def _values(key: str, a: object, b: object) -> str:
    return f"{key}: {a} | {b}"

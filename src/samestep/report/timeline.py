"""Where a run's time went, from the times of its rows and the record of its starts; what they do not tell is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from samestep.report.record import Curve, Floats, Record


@dataclass
class Start:
    """One start of a run: Unix seconds, steps. `ended` is its last sign of life, and `furthest` the last step it tracked."""

    number: int
    facts: dict[str, Any]
    launched: float  # the process; that of `begun` where an older start did not say
    begun: float  # everything checked, the first step next
    resumed_from: int
    ended: float
    furthest: int
    end: str  # how: done, stopped, failed; running if nobody could say so any more
    kept: int  # steps of it that the run still holds: up to where the next start resumed


def starts_of(record: Record) -> list[Start]:
    """Every start, in order. Empty if a later one did not record how the one before it ended, as older versions do not."""
    facts, found = record.starts, []
    if any(not later.get("before") for later in facts[1:]):
        return []
    for place, own in enumerate(facts):
        later = facts[place + 1] if place + 1 < len(facts) else None
        before = later["before"] if later else _now(record)
        row_time, wrote = (before["row"] or {}).get("time") or 0.0, before["time"] or 0.0
        is_own = row_time >= own["time"]  # else it made no row
        begun, resumed = float(own["time"]), int(own["resumed_from"])
        furthest = int(before["row"]["step"]) if is_own else resumed
        kept_to = min((int(other["resumed_from"]) for other in facts[place + 1 :]), default=max(record.step, resumed))
        found.append(
            Start(
                number=place + 1,
                facts=own,
                launched=min(float(own.get("launched") or begun), begun),
                begun=begun,
                resumed_from=resumed,
                ended=max(begun, row_time if is_own else 0.0, wrote),
                furthest=furthest,
                end=str(before["status"]),
                kept=max(0, kept_to - resumed),
            )
        )
    return found


def _now(record: Record) -> dict[str, Any]:
    """What a next start would record of the newest one."""
    rows = [
        {"step": int(steps[-1]), "time": float(times[-1])}
        for steps, times in ((record.steps, record.times), (record.eval_steps, record.eval_times))
        if len(steps)
    ]
    last = max(rows, key=lambda row: row["time"], default=None)
    return {"status": record.status, "time": record.state.get("time"), "row": last}


def time_split(record: Record, starts: list[Start]) -> dict[str, float]:
    """Seconds by what they went to, adding up to the time from the first launch to the last sign of life. Empty if unknown.

    training: steps that count, and evaluations whose own time is not known; evaluation: those after a tracked step;
    redone: steps that no checkpoint held, for a later start to take again; starting: from a process's start to its first
    step; ending: from a start's last row to its last sign of life; down: between starts, in a queue, say.
    """
    names = ("training", "evaluation", "redone", "starting", "ending", "down")
    spent = dict.fromkeys(names, 0.0)
    for place, start in enumerate(starts):
        later = starts[place + 1] if place + 1 < len(starts) else None
        spent["starting"] += start.begun - start.launched
        spent["down"] += max(0.0, later.launched - start.ended) if later else 0.0
        for name, seconds in _within(record, start, later).items():
            spent[name] += seconds
    return spent if starts else {}


def _within(record: Record, start: Start, later: Start | None) -> dict[str, float]:
    until = later.begun if later else np.inf
    own = (record.times >= start.begun) & (record.times < until)
    evaluated = (record.eval_times >= start.begun) & (record.eval_times < until)
    steps, times, eval_times = record.steps[own], record.times[own], record.eval_times[evaluated]
    took = _evaluation_s(steps, times, record.eval_steps[evaluated], eval_times)
    evaluation = float(np.nansum(took))
    step, time = (float(steps[-1]), float(times[-1])) if len(steps) else (start.resumed_from, start.begun)
    last, kept_to, redone = max([time, *eval_times]), start.resumed_from + start.kept, 0.0
    if later and start.furthest > kept_to:  # its rows after `kept_to` were cut off, but for the time of the last of them
        last = max(last, later.facts["before"]["row"]["time"])
        redone = (last - time) * (start.furthest - kept_to) / (start.furthest - step)
    elif kept_to > step:  # it went on, untracked, to a stop between two rows
        steady_s = time - start.begun - float(np.nansum(took[eval_times <= time]))
        pace_s = steady_s / (step - start.resumed_from) if len(steps) else np.inf
        last += min(start.ended - last, (kept_to - step) * pace_s)
    training = last - start.begun - evaluation - redone
    return {"training": training, "evaluation": evaluation, "redone": redone, "ending": start.ended - last}


def _evaluation_s(steps: Floats, times: Floats, eval_steps: Floats, eval_times: Floats) -> Floats:
    """How long each evaluation took: its row's time less that of the training row of the same step; NaN without one."""
    place = np.searchsorted(steps, eval_steps, side="right") - 1
    known = (place >= 0) & (steps[place] == eval_steps) if len(steps) else np.zeros(len(eval_steps), bool)
    took: Floats = np.full(len(eval_steps), np.nan)
    took[known] = eval_times[known] - times[place[known]]
    return took


def steps_per_s(record: Record) -> Curve:
    """The pace between tracked steps of one start, evaluations left out; where their time is not known, there is no value."""
    steps, times = record.steps, record.times
    if len(steps) < 2:
        return Curve(steps[:0], steps[:0])
    begun = np.array([float(start["time"]) for start in record.starts])
    of_start = np.searchsorted(begun, times, side="right")
    paused = np.zeros(len(steps))
    took = _evaluation_s(steps, times, record.eval_steps, record.eval_times)
    place = np.searchsorted(steps, record.eval_steps, side="right") - 1
    np.add.at(paused, place[place >= 0], took[place >= 0])
    seconds = np.diff(times) - paused[:-1]
    good = (np.diff(of_start) == 0) & (seconds > 0)  # NaN is neither
    return Curve(steps[1:][good], np.diff(steps)[good] / seconds[good])


def mean_steps_per_s(record: Record) -> float:
    """All steps whose time is known over all that time. NaN if there are none."""
    curve = steps_per_s(record)
    if not len(curve.steps):
        return float("nan")
    taken = np.diff(record.steps)[np.searchsorted(record.steps, curve.steps) - 1]
    return float(taken.sum() / (taken / curve.values).sum())

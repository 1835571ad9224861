"""`samestep status` and `samestep logs`: how the runs stand, from their folders and, where there is one, the scheduler."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from samestep.errors import UsageError
from samestep.run.best import best_words
from samestep.run.colours import coloured
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import last_rows
from samestep.slurm.controller import JobState, jobs_now

_COLUMNS = ("run", "state", "step", "loss", "best", "steps/s", "left", "job", "nodes", "restarts", "saved")
_LEFT_OUT_FIRST = ("nodes", "job", "saved", "restarts", "steps/s", "best", "left")  # where a terminal is narrow
_LAST_ROWS = 50
_BARS = "▁▂▃▄▅▆▇█"


def runs_in(runs: str) -> list[RunFolder]:
    """Every run under a folder, the newest first. UsageError if there is none."""
    found = [RunFolder(path) for path in Path(runs).glob("*") if (path / "state.json").exists() or _submitted(path)]
    if not found:
        raise UsageError(f"{runs}: found no run there; samestep train CONFIG makes one, or write --runs FOLDER")
    return sorted(found, key=lambda folder: -folder.path.stat().st_mtime)


def one_run(run: str, runs: str) -> RunFolder:
    """A run by path or name, also one that only waits in the queue."""
    for path in (Path(run), Path(runs) / run):
        if run and _submitted(path):
            return RunFolder(path)
    return RunFolder.found(run, runs)


def _submitted(path: Path) -> list[str]:
    try:
        jobs: list[str] = json.loads((path / "submitted.json").read_text())["jobs"]
    except (OSError, ValueError):
        return []
    return jobs


def facts(folders: list[RunFolder]) -> list[dict[str, Any]]:
    """What is known of each run; `left` and `saved` in seconds, None where unknown."""
    states = {folder.path: folder.read_state() for folder in folders}
    jobs = {path: [str(state["job"])] if state.get("job") else _submitted(path) for path, state in states.items()}
    known = jobs_now([job for found in jobs.values() for job in found])
    return [
        _facts(folder, states[folder.path], [known[job] for job in jobs[folder.path] if job in known]) for folder in folders
    ]


def _saved_at(checkpoint: Path) -> float | None:
    try:
        return checkpoint.stat().st_mtime
    except FileNotFoundError:  # it went as this looked
        return None


def _facts(folder: RunFolder, state: dict[str, Any], jobs: list[JobState]) -> dict[str, Any]:
    rows = last_rows(folder, _LAST_ROWS)
    step = max([int(state.get("step") or 0), *(row["step"] for row in rows)])
    total, rate = state.get("num_steps"), _rate(rows, _began(folder, state))
    status = str(state.get("status", "queued"))
    job = next((job for job in jobs if job.is_alive), jobs[-1] if jobs else None)
    if status == "running" and not _lives(folder, state, job):
        status = "died"
    if status in ("stopped", "failed", "died") and job is not None and job.is_alive:
        status = "queued" if job.state == "PENDING" else "starting"
    losses = [row["loss"] for row in rows if "loss" in row]
    newest = max((saved_at for path in folder.checkpoints.glob("step-*") if (saved_at := _saved_at(path))), default=None)
    return {
        "run": folder.name,
        "parent": state.get("parent"),
        "state": status,
        "step": step,
        "steps": total,
        "loss": losses[-1] if losses else None,
        "best": state.get("best"),
        "rate": rate,
        "left": (total - step) / rate if status == "running" and total and rate else None,
        "job": job.id if job else None,
        "job_state": job.state if job else None,
        "why": job.reason if job and job.state == "PENDING" else None,
        "nodes": (job.nodes if job else "") or state.get("host"),
        "left_out": state.get("left_out") or [],
        "restarts": state.get("restarts", 0),
        "saved": time.time() - newest if newest else None,
        "reason": state.get("reason") or None,
    }


def _newest_start(folder: RunFolder) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for path in sorted(folder.starts.glob("*.json"))[-1:]:
        with contextlib.suppress(OSError, ValueError):  # it is being written
            facts = json.loads(path.read_text())
    return facts


def _began(folder: RunFolder, state: dict[str, Any]) -> float:
    """When the newest start did, in Unix seconds: rows before it are an earlier start's, or those of a branch's parent."""
    return float(_newest_start(folder).get("time") or (math.inf if state.get("parent") else 0.0))


def _rate(rows: list[dict[str, Any]], since: float) -> float | None:
    steps = [row for row in rows if "loss" in row and row["time"] >= since]
    took_s = steps[-1]["time"] - steps[0]["time"] if len(steps) > 1 else 0
    return (steps[-1]["step"] - steps[0]["step"]) / took_s if took_s > 0 else None


def _lives(folder: RunFolder, state: dict[str, Any], job: JobState | None) -> bool:
    """Whether a run that calls itself running may be."""
    if job is not None:
        return job.is_alive
    start = _newest_start(folder)
    if not start or state.get("host") != socket.gethostname():
        return True  # elsewhere: not to be known from here
    return psutil.pid_exists(int(start["pid"]))


def shown(run: str | None, runs: str, follow: bool, as_json: bool) -> Iterator[str]:
    """What `samestep status` prints; with `follow`, again every two seconds until nothing goes on any more."""
    while True:
        folders = [one_run(run, runs)] if run else runs_in(runs)
        found = facts(folders)
        size = shutil.get_terminal_size() if sys.stdout.isatty() else None
        most = size.lines - 3 if size and follow else len(found)
        more = [f"and {len(found) - most} older runs"] if len(found) > most else []
        details = [*_detail(folders[0]), *(one["reason"] for one in found if one["reason"])] if run else []
        lines = [table(found[:most], size.columns if size else None), *more, *details]
        yield json.dumps(found, indent=1) if as_json else "\n".join(lines)
        if not follow or all(one["state"] in ("done", "failed", "died") for one in found):
            return
        time.sleep(2)


def table(found: list[dict[str, Any]], width: int | None = None) -> str:
    """One line a run under a line of titles; as many columns as fit into `width` characters, where one is given."""
    columns = list(zip(_COLUMNS, *map(_line, found), strict=True))
    columns = [column for column in columns if column[0] != "best" or {*column[1:]} != {"-"}]
    title, *lines = aligned(columns, width, _LEFT_OUT_FIRST).split("\n")
    place = max(map(len, columns[0])) + 2
    return "\n".join([title, *(_in_colour(line, place, run["state"]) for line, run in zip(lines, found, strict=True))])


def aligned(columns: Sequence[Sequence[str]], width: int | None, left_out_first: Sequence[str]) -> str:
    """Columns, each under its title, beside each other; where they are wider than `width`, without those to leave out."""
    for name in left_out_first:
        if width and sum(max(map(len, column)) + 2 for column in columns) - 2 > width:
            columns = [column for column in columns if column[0] != name]
    padded = [[word.ljust(max(map(len, column))) for word in column] for column in columns]
    return "\n".join("  ".join(words).rstrip()[:width] for words in zip(*padded, strict=True))


def _in_colour(line: str, place: int, state: str) -> str:
    end = place + len(state)
    return f"{line[:place]}{coloured(line[place:end], state)}{line[end:]}"


def _detail(folder: RunFolder) -> list[str]:
    """The way of the loss over the last rows, as bars, and the last evaluation, if it is among them."""
    rows = last_rows(folder, _LAST_ROWS)
    losses = [(row["step"], row["loss"]) for row in rows if isinstance(row.get("loss"), float)]
    lines = []
    if len(losses) > 1:
        values = [loss for _, loss in losses]
        least, spread = min(values), max(values) - min(values) or 1.0
        bars = "".join(_BARS[round((value - least) / spread * (len(_BARS) - 1))] for value in values)
        lines.append(f"loss {bars} {least:.4g} to {max(values):.4g}, steps {losses[0][0]} to {losses[-1][0]}")
    for row in [row for row in rows if "loss" not in row][-1:]:
        words = [f"{key} {value:.4g}" for key, value in row.items() if key.startswith("eval_") and value is not None]
        lines.append(f"step {row['step']}  {'  '.join(words)}")
    return [*lines, *_checkpoints(folder)]


def _checkpoints(folder: RunFolder) -> list[str]:
    """A line for each checkpoint, the newest first: which it is, and who takes it."""
    state, steps = folder.read_state(), sorted((int(path.name[5:]) for path in folder.checkpoints.glob("step-*")), reverse=True)
    best = best_words(state)
    lines = []
    for step in steps:
        what = ["newest: a resume, export, evaluate and load take it"] if step == steps[0] else []
        what += [f"{best}: --best"] if best and step == state["best"]["step"] else []
        lines.append(f"checkpoint {step}  {'; '.join(what) or f'--step {step}'}")
    return lines


def _line(run: dict[str, Any]) -> tuple[str, ...]:
    job = "-" if run["job"] is None else f"{run['job']} {run['job_state'].lower()}" + (f" ({run['why']})" if run["why"] else "")
    nodes = (run["nodes"] or "-") + (f" without {','.join(run['left_out'])}" if run["left_out"] else "")
    origin = run["parent"]
    return (
        run["run"] + (f" ← {origin['run']}@{origin['step']}" if origin else ""),
        run["state"],
        f"{run['step']}/{run['steps'] or '?'}",
        "-" if run["loss"] is None else f"{run['loss']:.4f}",
        f"{run['best']['value']:.4f}" if run["best"] else "-",
        "-" if run["rate"] is None else f"{run['rate']:.1f}",
        _duration(run["left"]),
        job,
        nodes,
        str(run["restarts"]),
        "-" if run["saved"] is None else f"{_duration(run['saved'])} ago",
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def log_lines(folder: RunFolder, rank: int | None, follow: bool) -> Iterator[str]:
    """The lines of a rank's log, or of the newest output, a job's or the run's own; with `follow`, those to come too."""
    outputs = sorted(
        [*folder.path.glob("job-*.txt"), *folder.path.glob(folder.printed.name)], key=lambda path: path.stat().st_mtime
    )
    if rank is None and not outputs:
        rank = 0
    path = folder.log(rank) if rank is not None else outputs[-1]
    if not path.exists():
        ranks = sorted(int(log.stem.rpartition("-")[2]) for log in folder.logs.glob("rank-*.log"))
        there = f"write --rank N, N one of {', '.join(map(str, ranks))}" if ranks else "nothing has been logged yet"
        raise UsageError(f"{path}: found no such log; {there}")
    with path.open(errors="replace") as file:
        while True:
            line = file.readline()
            if line:
                yield line
            elif not follow:
                return
            else:
                time.sleep(0.3)

"""`samestep sweep`: the runs of a grid on this machine, as many at once as it has devices for."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from samestep.commands.launch import num_processes
from samestep.commands.side_by_side import Run, run_all
from samestep.commands.status import aligned, facts
from samestep.config import Config, done_already
from samestep.config.preflight import room
from samestep.config.sweep import configs, names, points
from samestep.errors import Stopped, TrainingError, UsageError
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import last_rows
from samestep.run.names import check_name, stem_of
from samestep.runtime import gpu_names, processes_here
from samestep.runtime.early_stop import end_quietly_when_asked

_SHOWN_EVERY_S = 1.0
_LAST_ROWS = 50
_OTHERS = ("running", "waiting", "stopping", "stopped", "failed")
_ENDED = ("done", "stopped", "failed")


@dataclass(frozen=True)
class _Shares:
    """How this machine is shared out among the runs."""

    places: list[list[str]]  # each has one run at a time: the GPUs that it sees
    processes: int  # of a run, where its config does not say and its leaves suffice
    why: str


def sweep(
    config_path: str,
    file: Path,
    overrides: tuple[str, ...],
    name: str | None,
    jobs: int | None,
    draws: int | None,
    seed: int | None,
    dry_run: bool,
) -> None:
    """Train every run of a sweep that is not done yet.

    Args:
        file: the grid, as `samestep submit --sweep` takes it.
        name: what the names of the runs begin with; by default the stems of the config and the grid.
        jobs: how many runs at once; by default as many as there are devices for.
        draws: how many points to draw, whatever the file says, with `seed`.

    Raises:
        UsageError: for every mistake that can be found before a run starts.
        TrainingError: runs have failed.
        Stopped: somebody asked for it, and what ran has saved.
    """
    end_quietly_when_asked()
    found = points(file, draws, seed)
    name = name or f"{stem_of(config_path)}-{file.stem}"
    check_name(name, "--name")
    made, mistakes = configs(config_path, [(*words, *overrides) for words in found], file)
    if mistakes:
        raise UsageError(*mistakes)
    shares = _shared_out(made, jobs)
    values = dict(zip(names(name, found), found, strict=True))  # a line that stands there twice is one run
    runs = [
        _run(run, config_path, config, (*values[run], *overrides), shares)
        for run, config in dict(zip(names(name, found), made, strict=True)).items()
    ]
    before = sum(run.state == "done" for run in runs)
    click.echo(f"{len(runs)} runs, {before} done already; {shares.why}")
    if dry_run:
        for run in runs:
            click.echo(f"{run.state:8} {shlex.join(['samestep', 'launch', *run.words])}")
        return
    room(made[0].runs)
    is_stopped = run_all(runs, shares.places, name, _Line(runs).show)
    click.echo(_table(runs, values))
    _tell_the_end(runs, name, made[0].runs, is_stopped)


def _run(name: str, config_path: str, config: Config, overrides: tuple[str, ...], shares: _Shares) -> Run:
    folder = RunFolder.named(config.runs, name)
    number = num_processes(config, config.processes or min(shares.processes, config.num_leaves))
    try:
        is_done = done_already(folder, config) is not None
    except UsageError as error:
        raise UsageError(*(f"{name}: {line.replace('--run NAME', '--name NAME')}" for line in error.lines)) from None
    words = [config_path, "--run", name, "--processes", str(number), *overrides]
    return Run(folder, words, "done" if is_done else "waiting")


def _shared_out(made: list[Config], asked: int | None) -> _Shares:
    """The devices of this machine, in equal parts, in order: runs share a GPU only where more are asked for than there are."""
    device = "auto" if any(config.device == "auto" for config in made) else "cpu"
    gpus = gpu_names() if device == "auto" else []
    widest = max(config.processes or 1 for config in made)
    threads = max(config.threads for config in made)
    cores = len(os.sched_getaffinity(0))
    number = len(gpus) or max(1, cores // threads)
    at_once = min(asked or max(1, number // widest), len(made))
    share = max(widest, number // at_once)
    places = [[gpus[(place * share + index) % len(gpus)] for index in range(share)] if gpus else [] for place in range(at_once)]
    machine = f"{len(gpus)} GPUs" if gpus else f"{cores} cores and threads={threads}"
    chosen = "as asked for" if asked else f"for {machine}; --jobs N says otherwise"
    return _Shares(places, processes_here(device, share), f"{at_once} at once, {chosen}")


class _Line:
    """How the whole stands: on a terminal a line that changes, and else a line for each run that ends."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs, self._shown_at = runs, 0.0
        self._states = {run.folder.name: run.state for run in runs}
        self._terminal = sys.stderr if sys.stderr.isatty() else None

    def show(self) -> None:
        states = {run.folder.name: run.state for run in self._runs}
        changed = [name for name, state in states.items() if state != self._states[name]]
        self._states = states
        if self._terminal and (changed or time.monotonic() - self._shown_at > _SHOWN_EVERY_S):
            is_over = all(run.process is None for run in self._runs)
            text = "" if is_over else f"{self._counts()}: {', '.join(self._ways())}"[: shutil.get_terminal_size().columns - 1]
            self._terminal.write(f"\r\x1b[2K{text}")
            self._terminal.flush()
            self._shown_at = time.monotonic()
        elif not self._terminal:
            for name in changed:
                click.echo(f"{name} {states[name]}" + (f"; {self._counts()}" if states[name] in _ENDED else ""))

    def _counts(self) -> str:
        def number(state: str) -> int:
            return sum(run.state == state for run in self._runs)

        others = [f", {number(state)} {state}" for state in _OTHERS if number(state)]
        return f"{number('done')} of {len(self._runs)} done{''.join(others)}"

    def _ways(self) -> Iterator[str]:
        for run in self._runs:
            if run.process is not None:
                (fact,) = facts([run.folder])
                yield f"{run.folder.name} {fact['step']}/{fact['steps'] or '?'}"


def _table(runs: list[Run], values: dict[str, list[str]]) -> str:
    """A line a run: the values of the keys that vary, and the last of what it came to."""
    points = {name: dict(word.split("=", 1) for word in words) for name, words in values.items()}
    keys = list(dict.fromkeys(key for point in points.values() for key in point))
    varied = [key for key in keys if len({point.get(key) for point in points.values()}) > 1]
    lines = [
        {"run": run.folder.name, **{key: points[run.folder.name].get(key, "-") for key in varied}, **_found(run)}
        for run in runs
    ]
    titles = dict.fromkeys(title for line in lines for title in line)
    columns = [[title, *(line.get(title, "-") for line in lines)] for title in titles]
    return aligned(columns, shutil.get_terminal_size().columns if sys.stdout.isatty() else None, varied)


def _found(run: Run) -> dict[str, str]:
    (fact,) = facts([run.folder])
    rows = last_rows(run.folder, _LAST_ROWS)
    evaluated: dict[str, Any] = next((row for row in reversed(rows) if "loss" not in row), {})
    numbers = {"loss": fact["loss"], **{key: value for key, value in evaluated.items() if key.startswith("eval_")}}
    numbers |= {"best": fact["best"]["value"]} if fact["best"] else {}
    shown = {key: f"{value:.5g}" for key, value in numbers.items() if isinstance(value, float)}
    return {"state": run.state, "step": f"{fact['step']}/{fact['steps'] or '?'}", **shown}


def _tell_the_end(runs: list[Run], name: str, folder: str, is_stopped: bool) -> None:
    """Say which failed and what to type next; raise what the exit code is."""
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        log = run.folder.printed
        click.echo(f"failed: {run.folder.name}: {run.last_line}{f'; it printed {log}' if log.exists() else ''}")
    done = sum(run.state == "done" for run in runs)
    if done:
        click.echo(f"next: samestep report {shlex.quote(str(Path(folder) / name))}-*")
    if is_stopped or any(run.state == "stopped" for run in runs):
        raise Stopped(f"stopped, {done} of {len(runs)} runs done; the same line goes on")
    if failed:
        raise TrainingError(f"{len(failed)} of {len(runs)} runs failed; the same line tries them again")

"""`samestep branch`: a run that goes on from a checkpoint of another, with other keys."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import string
import time
from typing import Any

from samestep.config import Branching, Config, load_config, to_text
from samestep.errors import UsageError
from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import parsed


def prepare(run: str, step: int, name: str, overrides: tuple[str, ...]) -> tuple[RunFolder, RunFolder, list[str] | None]:
    """Make a branch's folder; returns the parent, the branch, and a line for each key that has changed, None if it is there.

    It holds the parent's checkpoint of `step`, by links, its rows so far, and the config with `key=value` laid over it.
    Raises UsageError where there is no such run or checkpoint, or for what may not change.
    """
    parent = RunFolder.found(run)
    before, _ = load_config(parent.config)
    now, origins = load_config(parent.path, overrides)
    folder = RunFolder.named(now.runs, name)
    origin = {"run": parent.name, "step": step}
    if folder.path.exists():
        known = folder.read_state().get("parent") or {}
        if {key: known.get(key) for key in origin} != origin:
            raise UsageError(
                f"--run: {folder.path} is there, and no branch of {parent.name} at step {step}; write another name"
            )
        return parent, folder, None
    branching = Branching(before, now, step)
    making = RunFolder(folder.path.with_name(f".{name}.{os.getpid()}.tmp"))
    try:
        making.make()
        _lay_out(parent, making, step, branching)
        write_atomically(making.config, to_text(now, origins))
        write_atomically(making.state, json.dumps(_state(parent, making, now, origin), indent=1) + "\n")
        making.path.rename(folder.path)
    except OSError as error:
        raise UsageError(f"{folder.path}: could not be made ({error.strerror}); write runs=FOLDER, or another name") from None
    finally:
        shutil.rmtree(making.path, ignore_errors=True)
    return parent, folder, branching.lines()


def _lay_out(parent: RunFolder, folder: RunFolder, step: int, branching: Branching) -> None:
    from samestep.checkpoint.bringing import have_whole
    from samestep.checkpoint.linking import link_checkpoint  # and with it torch, once everything typed has been checked

    paths = {int(path.name.removeprefix("step-")): path for path in parent.checkpoints.glob("step-*")}
    if step not in paths:
        there = ", ".join(map(str, sorted(paths))) or "none"
        raise UsageError(
            f"--step: found {step}; {parent.name} has checkpoints of steps {there} (checkpoint.milestones keeps more of them)"
        )
    found: dict[str, Any] = {}

    def change(values: dict[str, Any]) -> dict[str, Any]:
        found.update(_taken_over(values, branching))
        return found

    have_whole(parent, step)
    link_checkpoint(paths[step], folder.checkpoints, change)
    best = found.get("best_step")
    if best in paths and best != step:
        have_whole(parent, best)
        link_checkpoint(paths[best], folder.checkpoints)
    with contextlib.suppress(FileNotFoundError), parent.metrics.open() as rows:
        kept = [line for line in rows if (row := parsed(line)) is not None and row["step"] <= step]
        write_atomically(folder.metrics, "".join(kept))
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(parent.sources, folder.sources)


def _taken_over(values: dict[str, Any], branching: Branching) -> dict[str, Any]:
    """A checkpoint's values as a branch begins with them; `branch` says what not to take over, until its first own save."""
    before = values.get("branch", {"rows": True, "optimizer": True, "options": []})  # of a branch that had not saved yet
    now = {
        **values,
        "branch": {
            "rows": before["rows"] and branching.keeps_rows,
            "optimizer": before["optimizer"] and branching.keeps_optimizer,
            "options": sorted({*before["options"], *branching.options}),
        },
    }
    if not branching.keeps_proof:
        now.pop("proof", None)
    if not branching.keeps_best:
        now |= {"best_metric": None, "best_step": None}
    if not branching.keeps_evaluations:
        now["evaluations"] = []
    if not branching.keeps_convergence:
        now |= {"best": None, "waited": 0}
    return now


def _state(parent: RunFolder, folder: RunFolder, config: Config, origin: dict[str, Any]) -> dict[str, Any]:
    state, losses = parent.read_state(), []
    with contextlib.suppress(FileNotFoundError), folder.metrics.open() as rows:
        losses = [row["loss"] for line in rows if (row := parsed(line)) is not None and "loss" in row]
    return {
        "status": "stopped",
        "reason": f"a branch of {origin['run']} at step {origin['step']}, which has not begun",
        "step": origin["step"],
        "num_steps": config.known_steps,
        "loss": losses[-1] if losses else None,
        "wandb": "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=8)),
        "kind": state.get("kind"),
        "code": state["code"],
        "parent": {**origin, "wandb": state.get("wandb")},
        "time": time.time(),
    }


def branch(run: str, step: int, name: str, processes: int | None, later: bool, overrides: tuple[str, ...]) -> tuple[int, str]:
    """Make the branch, and train it on every device of this machine; returns the exit code, and what to print last.

    Args:
        later: make it alone.
    """
    from samestep.commands.launch import launch

    parent, folder, lines = prepare(run, step, name, overrides)
    if lines is not None:
        print(
            f"{name} branches from {parent.name} after step {step}",
            *(lines or ["nothing else is changed"]),
            sep="\n  ",
            flush=True,
        )
    if later:
        print(f"samestep launch {folder.path} --run {name} trains it; so do train under any launcher, and submit", flush=True)
        return 0, ""
    code = UsageError.exit_code
    try:
        code, said = launch(str(parent.path), name, processes, overrides)
        return code, said
    finally:
        if code == UsageError.exit_code and lines is not None and not folder.next_start() > 1:
            shutil.rmtree(folder.path, ignore_errors=True)  # it was refused: nothing is left behind

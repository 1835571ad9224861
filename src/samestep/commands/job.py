"""A SLURM job: start the ranks, and after each end decide to be done, to requeue, to go on in place, or to fail."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samestep.commands.sweep import point
from samestep.commands.train import default_name
from samestep.config import load_config
from samestep.errors import Stopped, TrainingError, UsageError
from samestep.link import Hub
from samestep.run_folder import RunFolder
from samestep.runtime import Job, read_job, read_runtime

_SAVING_S = 45.0  # for the ranks that live, once a node is lost
_SRUN_S = 10.0
_STARTS_WITHOUT_PROGRESS = 2
_LOSSES_OF_A_NODE = 2
# A signal for the ranks must not end their launcher; `before` is the site's own, a module system's lines for example.
_ON_NODE = (
    "trap '' USR1; "
    '[[ ! -f $2 ]] || . "$2"; '
    '[[ -x $1 ]] || { echo "samestep: $SLURMD_NODENAME: found no $1; every node needs it, in a shared folder" >&2; exit 2; }; '
    'exec "$1" -m samestep node "$3"'
)


@dataclass
class _Ended:
    """How one start came to its end."""

    codes: dict[str, int]
    lost: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def job(config_path: str, run: str | None, sweep: Path | None, overrides: tuple[str, ...]) -> None:
    """Run a job to its end. Raises what ended it early: UsageError, TrainingError, or Stopped when it goes on later."""
    here = read_job()
    if sweep is not None and here.array_index is not None:
        overrides = (*point(sweep, here.array_index), *overrides)
    config, _ = load_config(config_path, overrides)
    folder = RunFolder.named(config.runs, run or default_name(config_path, read_runtime()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the ranks have it too; what it meant is asked of the controller then
    left_out = [node for node, times in _losses(folder).items() if times >= _LOSSES_OF_A_NODE and node in here.nodes]
    if left_out:
        _say(f"{', '.join(left_out)} failed {_LOSSES_OF_A_NODE} times in this run and is left out")
    lost: list[str] = []
    while True:
        nodes = [node for node in here.nodes if node not in (*left_out, *lost)]
        if here.node not in nodes:
            raise TrainingError(
                f"{here.node}, the job's first node, is left out; submit the job again with --exclude={here.node}"
            )
        before = _highest(folder)
        ended = _start(here, nodes, config_path, folder, overrides, [*left_out, *lost])
        if ended.refusals or (2 in ended.codes.values() and not folder.state.exists()):
            raise UsageError(*(ended.refusals or [_first_failure(folder)]))
        lost += ended.lost
        state = _note(folder, before, ended)
        if state.get("status") == "done":
            return
        if state.get("status") == "stopped" and not ended.lost:
            _requeue(here, str(state["reason"]))
        if _is_leaving(here):
            raise Stopped("the controller ends this job; a requeue goes on where it was")
        if state.get("idle_starts", 0) >= _STARTS_WITHOUT_PROGRESS or not state:
            raise TrainingError(_first_failure(folder))
        _say(f"{_first_failure(folder)}\ngoing on in place on {len(here.nodes) - len(left_out) - len(lost)} nodes")


def _start(
    here: Job, nodes: list[str], config_path: str, folder: RunFolder, overrides: tuple[str, ...], left_out: list[str]
) -> _Ended:
    """One start on `nodes`, from srun to the end of the last launcher that lives."""
    hub = Hub(nodes)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    proof = folder.path.parent.resolve() / f".samestep-{here.id}"
    proof.write_text(hub.token)
    plan: dict[str, Any] = {
        "address": here.address(nodes), "port": _free_port(), "control_port": hub.port, "token": hub.token,
        "nodes": nodes, "processes": here.processes, "left_out": left_out, "proof": str(proof),
        "python": list(sys.version_info[:3]), "config": config_path, "run": folder.name, "overrides": overrides,
    }  # fmt: skip
    words = [sys.executable, os.environ.get("SAMESTEP_BEFORE", ""), json.dumps(plan)]
    step = here.step(nodes, _ON_NODE, ["samestep", *words])
    try:
        return _Ended(*_watch(here, hub, step, nodes))
    finally:
        proof.unlink(missing_ok=True)
        hub.close()


def _watch(here: Job, hub: Hub, step: subprocess.Popen[bytes], nodes: list[str]) -> tuple[dict[str, int], list[str], list[str]]:
    told: list[str] = []
    deadline: float | None = None
    while not hub.is_over:
        hub.listen(0.5)
        lost = hub.lost
        if lost != told:
            _say(f"{', '.join(lost)} does not answer any more; the others save what is finished")
            hub.tell_lost(lost)
            told, deadline = lost, time.monotonic() + _SAVING_S
        if step.poll() is not None and not hub.is_over:
            hub.listen(0.5)  # what was said last
            if not hub.lines:
                return dict.fromkeys(nodes, step.returncode), [], []
            break
        if deadline is not None and time.monotonic() > deadline:
            break
    ended = dict(hub.ended), hub.lost, list(hub.refusals)
    try:
        step.wait(0.1 if hub.lost else _SRUN_S)
    except subprocess.TimeoutExpired:  # it waits for a node that is silent
        if hub.step is not None:
            here.cancel_step(hub.step)
        step.kill()
        step.wait()
    return ended


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _highest(folder: RunFolder) -> int:
    """The highest step that the run is known to have finished, saved or not."""
    steps = [int(folder.read_state().get("step", 0))]
    with contextlib.suppress(OSError, ValueError):
        steps += [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()[-1:]]
    return max(steps)


def _losses(folder: RunFolder) -> dict[str, int]:
    found: dict[str, int] = folder.read_state().get("lost_nodes", {})
    return found


def _note(folder: RunFolder, before: int, ended: _Ended) -> dict[str, Any]:
    """Write into state.json what the next start, here or after a requeue, must know. No rank lives now."""
    state = folder.read_state()
    if not state:
        return state
    losses = _losses(folder)
    for node in ended.lost:
        losses[node] = losses.get(node, 0) + 1
    highest = max(_highest(folder), int(state.get("highest", 0)))
    is_idle = highest <= max(before, int(state.get("highest", 0))) and not ended.lost
    idle = int(state.get("idle_starts", 0)) + 1 if is_idle else 0
    status = state["status"] if state["status"] != "running" else "failed"
    return folder.write_state(status=status, lost_nodes=losses, highest=highest, idle_starts=idle)


def _first_failure(folder: RunFolder) -> str:
    failures = folder.failures()
    reason = failures[0]["paragraph"] if failures else folder.read_state().get("reason")
    return str(reason or "the ranks ended without a word; see the lines above")


def _is_leaving(here: Job) -> bool:
    return here.shown("JobState") not in ("RUNNING", "")


def _requeue(here: Job, reason: str) -> None:
    """Put the job back into the queue, unless a person or the controller has decided otherwise. Raises Stopped."""
    if _is_leaving(here):
        raise Stopped(f"{reason} (the job is {here.shown('JobState').lower()} already, and is not requeued from here)")
    _say(f"{reason}; requeued")
    refused = here.requeue()
    if not refused:
        time.sleep(60)  # until the controller ends this script: one that ends by itself now is counted as failed
    again = shlex.join(["sbatch", "slurm/train.sbatch", *sys.argv[2:]])
    raise Stopped(f"{reason}; a requeue was refused ({refused or 'it did not come'}): write {again} to go on")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} samestep: {text}", flush=True)

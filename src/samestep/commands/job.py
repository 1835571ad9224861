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

_SAVING_S = 45.0  # for the ranks that live, once a node is lost or a launcher has failed
_SRUN_S = 10.0
_STARTS_WITHOUT_PROGRESS = 2
_MOST_FAILURES_OF_A_NODE = 2


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
    lost: list[str] = []
    told: list[str] = []
    while True:
        left_out = [node for node in here.nodes if node not in lost and _failures_of(node, folder) >= _MOST_FAILURES_OF_A_NODE]
        if left_out != told:
            _say(f"{', '.join(left_out)} failed {_MOST_FAILURES_OF_A_NODE} times in this run and is left out")
            told = left_out
        nodes = [node for node in here.nodes if node not in (*left_out, *lost)]
        if not nodes:
            bad = ",".join(here.nodes)
            raise TrainingError(f"every node of the job is left out ({bad}); submit it again with --exclude={bad}")
        before = _highest(folder)
        ended = _start(here, nodes, config_path, folder, overrides, [*left_out, *lost])
        if ended.refusals or (2 in ended.codes.values() and not folder.state.exists()):
            raise UsageError(*(ended.refusals or [_first_failure(folder)]))
        lost += ended.lost
        state = _note(here, folder, before, ended)
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
        "job": here.id,
        "address": here.address(here.node, nodes), "control_port": hub.port, "token": hub.token,
        "main_address": here.address(nodes[0], nodes), "port": _free_port(),
        "nodes": nodes, "processes": here.processes, "left_out": left_out, "proof": str(proof),
        "python": list(sys.version_info[:3]), "config": config_path, "run": folder.name, "overrides": overrides,
    }  # fmt: skip
    lacking = json.dumps(f"found no {sys.executable}; every node needs it, in a shared folder")[1:-1]
    words = [sys.executable, os.environ.get("SAMESTEP_BEFORE", ""), json.dumps(plan)]
    step = here.step(nodes, [*words, plan["address"], str(hub.port), hub.token, lacking])
    try:
        return _Ended(*_watch(here, hub, step, nodes))
    finally:
        proof.unlink(missing_ok=True)
        hub.close()


def _watch(here: Job, hub: Hub, step: subprocess.Popen[bytes], nodes: list[str]) -> tuple[dict[str, int], list[str], list[str]]:
    told: list[str] = []
    deadline: float | None = None
    while not hub.is_over and not hub.refusals:
        hub.listen(0.5)
        lost = hub.lost
        if lost != told:
            _say(f"{', '.join(lost)} does not answer any more; the others save what is finished")
            hub.tell_lost(lost)
            told, deadline = lost, time.monotonic() + _SAVING_S
        if deadline is None and any(hub.ended.values()):  # a launcher ends with its own ranks: others may wait for ever
            deadline = time.monotonic() + _SAVING_S
        if step.poll() is not None and not hub.is_over:
            hub.listen(0.5)  # what was said last
            if not hub.lines:
                return dict.fromkeys(nodes, step.returncode), [], []
            break
        if deadline is not None and time.monotonic() > deadline:
            break
    ended = dict(hub.ended), hub.lost, list(hub.refusals)
    try:
        step.wait(_SRUN_S if len(hub.ended) == len(nodes) else 0.1)
    except subprocess.TimeoutExpired:  # it waits for a node that is silent, or for one that waits for another
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


def _failures_of(node: str, folder: RunFolder) -> int:
    """How often a node was lost in this run, or was to blame for a crash or a hang."""
    state = folder.read_state()
    return sum(int(state.get(key, {}).get(node, 0)) for key in ("lost_nodes", "blamed_nodes"))


def _note(here: Job, folder: RunFolder, before: int, ended: _Ended) -> dict[str, Any]:
    """Write into state.json what the next start, here or after a requeue, must know. No rank lives now."""
    state = folder.read_state()
    if not state:
        return state
    known = int(state.get("highest", 0))
    highest = max(_highest(folder), known)
    is_idle = highest <= max(before, known) and not ended.lost
    idle = int(state.get("idle_starts", 0)) + 1 if is_idle else 0
    status = state["status"] if state["status"] != "running" else "failed"
    lost, blamed = dict(state.get("lost_nodes", {})), dict(state.get("blamed_nodes", {}))
    for node in ended.lost:
        lost[node] = lost.get(node, 0) + 1
    if idle >= _STARTS_WITHOUT_PROGRESS:
        blamed = {}  # whoever is asked fails at this step: it is the task's fault, and no node's
    elif status == "failed" and not ended.lost and (one := _blamed(here, folder)):
        blamed[one] = blamed.get(one, 0) + 1
    return folder.write_state(status=status, lost_nodes=lost, blamed_nodes=blamed, highest=highest, idle_starts=idle)


def _blamed(here: Job, folder: RunFolder) -> str | None:
    """The one node of several that the last start's failure is to be blamed on, if it is one."""
    hosts = {host.partition(".")[0] for failure in folder.failures() for host in failure.get("blamed", [])}
    nodes = [node for node in here.nodes if node.partition(".")[0] in hosts]
    return nodes[0] if len(nodes) == len(hosts) == 1 < len(here.nodes) else None


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

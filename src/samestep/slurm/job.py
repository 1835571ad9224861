"""A SLURM job: start the ranks, and after each end decide to be done, to requeue, to go on in place, or to fail."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.config import load_config
from samestep.config.sweep import point
from samestep.errors import Stopped, TrainingError, UsageError
from samestep.run.folder import RunFolder
from samestep.run.names import default_name
from samestep.runtime import read_runtime
from samestep.slurm.controller import Job, dead, read_job
from samestep.slurm.link import Hub

_SAVING_S = 45.0  # for the ranks that live, once a node is lost or a launcher has failed
_LAST_WORDS_S = 5.0  # the same where no rank has begun yet: there is nothing to save
_SRUN_S = 10.0
_STARTS_WITHOUT_PROGRESS = 2
_MOST_FAILURES_OF_A_NODE = 2


@dataclass
class _Ended:
    """How one start came to its end."""

    codes: dict[str, int]  # of the nodes that live, in the order in which they ended
    lost: list[str]
    refusals: list[str]  # of nodes
    refused: list[str]  # by ranks
    has_begun: bool  # else what state.json and logs/ say is an earlier start's, if there is a run at all


def job(config_path: str, run: str | None, sweep: Path | None, overrides: tuple[str, ...]) -> None:
    """Run a job to its end. Raises what ended it early: UsageError, TrainingError, or Stopped when it goes on later."""
    here = read_job()
    if sweep is not None and here.array_index is not None:
        overrides = (*point(sweep, here.array_index), *overrides)
    config, _ = load_config(config_path, overrides)
    folder = RunFolder.named(config.runs, default_name(config_path, read_runtime().job) if run is None else run)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the ranks have it too; what it meant is asked of the controller then
    lost: list[str] = []
    told: list[str] = []
    state = folder.read_state()
    noted: dict[str, Any] = {"idle_starts": state.get("idle_starts", 0) if state.get("job") == here.id else 0}
    while True:
        failures = _failures({**noted, **folder.read_state()})
        left_out = [node for node in here.nodes if node not in lost and failures[node] >= _MOST_FAILURES_OF_A_NODE]
        if left_out != told:
            _say(f"{', '.join(left_out)} failed {_MOST_FAILURES_OF_A_NODE} times in this run and is left out")
            told = left_out
        nodes = [node for node in here.nodes if node not in (*left_out, *lost)]
        if not nodes:
            bad = ",".join(here.nodes)
            raise TrainingError(f"every node of the job is left out ({bad}); submit it again with --exclude={bad}")
        before = _highest(folder)
        ended = _start(here, nodes, config_path, folder, overrides, [*left_out, *lost])
        if ended.refusals:
            raise UsageError(*ended.refusals)
        if 2 in ended.codes.values() and folder.read_state().get("job") != here.id:  # what was typed, not what came later
            raise UsageError(*(ended.refused or ["the ranks refused to start; see the lines above"]))
        lost += ended.lost
        noted = _note(here, folder, before, ended, noted)
        status = folder.read_state().get("status")
        if status == "done" and (ended.has_begun or set(ended.codes.values()) == {0}):  # now, or before it all
            return
        if status == "stopped" and ended.has_begun and not ended.lost:
            _requeue(here, str(folder.read_state()["reason"]))
        if _is_leaving(here):
            raise Stopped("the controller ends this job; a requeue goes on where it was")
        if noted["idle_starts"] >= _STARTS_WITHOUT_PROGRESS:
            raise TrainingError(_first_failure(folder, ended))
        _say(f"{_first_failure(folder, ended)}\ngoing on in place on {len(here.nodes) - len(left_out) - len(lost)} nodes")


def _start(
    here: Job, nodes: list[str], config_path: str, folder: RunFolder, overrides: tuple[str, ...], left_out: list[str]
) -> _Ended:
    """One start on `nodes`, from srun to the end of the last launcher that lives."""
    slurmds = here.slurmds(nodes)  # asked before there is a hub: while it waits for the controller nobody would be heard
    address = here.address(here.node, nodes)
    hub = Hub(nodes, lambda doubtful: dead(doubtful, slurmds), address)
    number, written = folder.next_start(), folder.read_state().get("time")
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    proof = folder.path.parent.resolve() / f".samestep-{here.id}"
    proved = secrets.token_hex(8)  # of this start, and no secret
    proof.write_text(proved)
    plan: dict[str, Any] = {
        "job": here.id,
        "address": address, "control_port": hub.port,
        "main_address": here.address(nodes[0], nodes), "port": _free_port(),
        "nodes": nodes, "processes": here.processes, "left_out": left_out, "proof": str(proof), "proved": proved,
        "python": list(sys.version_info[:3]), "config": config_path, "run": folder.name, "overrides": overrides,
    }  # fmt: skip
    lacking = json.dumps(f"found no {sys.executable}; every node needs it, in a shared folder")[1:-1]
    words = [sys.executable, os.environ.get("SAMESTEP_BEFORE", ""), json.dumps(plan)]
    try:
        step = here.step(nodes, [*words, address, str(hub.port), lacking], hub.token)
        codes, lost = _watch(here, hub, step, nodes, lambda: folder.next_start() > number, folder)
        return _Ended(codes, lost, hub.refusals, hub.refused, folder.read_state().get("time") != written)
    finally:
        proof.unlink(missing_ok=True)
        hub.close()


def _watch(
    here: Job, hub: Hub, step: subprocess.Popen[bytes], nodes: list[str], may_save: Callable[[], bool], folder: RunFolder
) -> tuple[dict[str, int], list[str]]:
    """Until every node has ended or is lost, or has had its time. Returns the exit codes of those that live, and the lost."""
    told: list[str] = []
    deadline: float | None = None
    while not hub.is_over and not hub.refusals:
        hub.listen(0.5)
        lost = hub.lost
        if lost != told:
            _say(f"{', '.join(lost)} does not answer any more" + ("; the others save what is finished" if may_save() else ""))
            hub.tell_lost(lost)
        # A launcher ends with its own ranks alone: others may wait for them for ever.
        if lost != told or (deadline is None and any(hub.ended.values())):
            told, deadline = lost, time.monotonic() + (folder.patience_s(_SAVING_S) if may_save() else _LAST_WORDS_S)
        if step.poll() is not None and not hub.is_over:  # srun ends every node's part when one is dead as it begins
            hub.listen(0.5)  # what was said last
            hub.find_out(hub.missing)
            break
        if deadline is not None and time.monotonic() > deadline:
            break
    codes, lost = dict(hub.ended), hub.lost
    if step.poll():
        codes |= dict.fromkeys(hub.missing, step.returncode)
    try:
        step.wait(_SRUN_S if len(hub.ended) == len(nodes) else 0.1)
    except subprocess.TimeoutExpired:  # it waits for a node that is silent, or for one that waits for another
        if hub.step is not None:
            here.cancel_step(hub.step)
        step.kill()
        step.wait()
    return codes, lost


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


def _failures(known: dict[str, Any]) -> collections.Counter[str]:
    """How often each node was lost in this run, or was to blame for a crash or a hang."""
    return collections.Counter(known.get("lost_nodes", {})) + collections.Counter(known.get("blamed_nodes", {}))


def _note(here: Job, folder: RunFolder, before: int, ended: _Ended, noted: dict[str, Any]) -> dict[str, Any]:
    """What the next start must know: in state.json, if there is one by now, also after a requeue. No rank lives now.

    Args:
        noted: what this returned after the last start.
    """
    state = folder.read_state()
    known = {**noted, **state}
    highest = max(_highest(folder), int(known.get("highest", 0)))
    is_idle = highest <= max(before, int(known.get("highest", 0))) and not ended.lost
    idle = int(noted["idle_starts"]) + 1 if is_idle else 0
    status = state.get("status")
    if status == "running" or (status == "stopped" and not ended.has_begun):
        status = "failed"
    lost, blamed = collections.Counter(known.get("lost_nodes", {})), collections.Counter(known.get("blamed_nodes", {}))
    lost.update(ended.lost)
    if idle >= _STARTS_WITHOUT_PROGRESS:
        blamed.clear()  # whoever is asked fails at this step: it is the task's fault, and no node's
    elif status == "failed" and ended.has_begun and not ended.lost and (one := _blamed(here, folder)):
        blamed[one] += 1
    noted = {"lost_nodes": dict(lost), "blamed_nodes": dict(blamed), "highest": highest, "idle_starts": idle}
    if state:
        reason = state["reason"] if ended.has_begun or status != "failed" else _first_failure(folder, ended)
        folder.write_state(status=status, reason=reason, **noted)
    return noted


def _blamed(here: Job, folder: RunFolder) -> str | None:
    """The one node of several that the last start's failure is to be blamed on, if it is one."""
    hosts = {host.partition(".")[0] for failure in folder.failures() for host in failure.get("blamed", [])}
    nodes = [node for node in here.nodes if node.partition(".")[0] in hosts]
    return nodes[0] if len(nodes) == len(hosts) == 1 < len(here.nodes) else None


def _first_failure(folder: RunFolder, ended: _Ended) -> str:
    failures = folder.failures() if ended.has_begun else []
    if reason := failures[0]["paragraph"] if failures else ended.has_begun and folder.read_state().get("reason"):
        return str(reason)
    if ended.lost:
        return f"{', '.join(ended.lost)} was lost before the run had begun"
    first = next((f", {node} first, with exit code {code}" for node, code in ended.codes.items() if code), "")
    return f"the ranks ended without a word{first}; see the lines above"


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

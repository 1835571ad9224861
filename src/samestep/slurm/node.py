"""One node's part of a SLURM job: its launcher, watched from a process that no rank can hold up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from samestep.runtime import end_with_parent, visible_gpus
from samestep.slurm.controller import earlier_ranks, requeue_this_job, this_node
from samestep.slurm.link import Line

_EARLIER_RANKS_S = 30.0
_SCRIPT_S = 60.0  # longer than a living script waits for its other nodes
_APART_S = 10.0
_SHARED_FOLDER_S = 10.0  # network file systems show a new file late
_MOST_SAID = 20_000  # characters of a refusal


def node(plan: dict[str, Any]) -> int:
    """Run this node's ranks as `plan` says, and report to the job's script. Returns the launcher's exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the ranks have it too: they save, and then this ends
    name, step, token = this_node()
    line = Line.to(plan["address"], plan["control_port"], token)
    line.send(node=name, step=step)
    refusal = _refusal(plan, name)
    if refusal:
        line.send(refused=refusal, ended=2)
        return 2
    if not _is_expected(line):
        return 1
    _end_earlier_ranks(line)
    folder = Path(tempfile.gettempdir()) / f"samestep-{plan['job']}-{name}"  # by name: a killed start's is found by the next
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # anybody may make one there
        line.send(refused=f"{name}: {folder} is there and cannot be removed; remove it, or set TMPDIR", ended=2)
        return 2
    try:
        code = _launch(plan, name, line, folder)
        refused = folder / "refused"
        lines = refused.read_text()[:_MOST_SAID].splitlines() if refused.exists() else []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    line.send(ended=code, lines=lines)
    return code


def _refusal(plan: dict[str, Any], name: str) -> str:
    if list(sys.version_info[:3]) != plan["python"]:
        there = ".".join(map(str, plan["python"]))
        return f"{name}: found Python {'.'.join(map(str, sys.version_info[:3]))}, and {there} on the first node; make them one"
    until = time.monotonic() + _SHARED_FOLDER_S
    proof = Path(plan["proof"])
    while True:
        with contextlib.suppress(OSError):
            if proof.read_text() == plan["proved"]:
                return ""
        if time.monotonic() > until:
            return f"{name}: {proof.parent} is not the folder that the first node has there; write runs=A_SHARED_FOLDER"
        time.sleep(0.2)


def _is_expected(line: Line) -> bool:
    """Whether the script still waits for this node: a start that was given up must not come to life after the next one."""
    while not line.is_silent:
        line.receive()
        if line.is_answered:
            return True
        time.sleep(0.1)
    return False


def _end_earlier_ranks(line: Line) -> None:
    """Wait until an earlier start's ranks are gone from here, and end those that stay."""
    until = time.monotonic() + _EARLIER_RANKS_S
    while left := earlier_ranks():
        if time.monotonic() > until:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        line.beat()
        time.sleep(0.2)


def _launch(plan: dict[str, Any], name: str, line: Line, folder: Path) -> int:
    verdict = folder / "lost"
    nodes, local = plan["nodes"], visible_gpus() or plan["processes"][name]
    train = ["-m", "samestep", "train", plan["config"], "--run", plan["run"], *plan["overrides"]]
    if len(nodes) > 1 or local > 1:
        # Every value that matters is here: no default config of the user's own. The last division makes `local` of it.
        options = ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", str(len(nodes))]
        options += ["--machine_rank", str(nodes.index(name)), "--num_processes", str(local * len(nodes))]
        options += ["--main_process_ip", plan["main_address"], "--main_process_port", str(plan["port"])]
        run = str(Path(plan["proof"]).parent / plan["run"])
        train = ["-m", "samestep", "launcher", "--refused", str(folder / "refused"), "--folder", run, *options, *train]
    env = {**os.environ, "SAMESTEP_VERDICT": str(verdict), "SAMESTEP_LEFT_OUT": " ".join(plan["left_out"])}
    launcher = subprocess.Popen([sys.executable, *train], env=env, preexec_fn=end_with_parent)
    while (code := launcher.poll()) is None:
        for words in line.receive():
            if "lost" in words:
                aside = verdict.with_suffix(".part")
                aside.write_text(json.dumps(words["lost"]))
                aside.rename(verdict)
        line.beat()
        if line.is_silent:  # this node is cut off, or the script's own node died: another start may own the run soon
            launcher.kill()
            time.sleep(_SCRIPT_S + nodes.index(name) * _APART_S)
            requeue_this_job()  # a script that lives has ended this step by now; under --no-kill nobody else would
            return 1
        time.sleep(0.2)
    return code

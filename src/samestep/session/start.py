"""Where a run stands when it is opened, and what is written once it begins."""

from __future__ import annotations

import os
import random
import string
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from samestep import config as configuration
from samestep.checkpoint import Checkpoints, checksum
from samestep.config import Config
from samestep.control import StopFlag
from samestep.errors import UsageError
from samestep.run import snapshot
from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import last_rows
from samestep.run.printed import keep_printed
from samestep.run.sensitive import left_out
from samestep.runtime import Runtime
from samestep.session.elsewhere import look_elsewhere
from samestep.slurm.controller import jobs_now
from samestep.task import Task
from samestep.task.loading import load_module
from samestep.tracking import RunInfo, find_tracker

_SHOWN_LATE_S = 90.0  # by a network file system


@dataclass
class Start:
    """What rank 0 found in the run folder, the same on every rank."""

    done: bool
    fresh: bool
    checkpoint: Path | None
    checksum: str  # of the checkpoint
    resumed_from: int
    number: int  # of this start, from 1
    wandb_id: str
    notes: list[str]
    may_part: bool = False  # from the start before: the notes say why

    def told(self) -> dict[str, Any]:
        """What JSON has of it."""
        return {**vars(self), "checkpoint": self.checkpoint and str(self.checkpoint)}

    @classmethod
    def heard(cls, told: dict[str, Any]) -> Start:
        return cls(**{**told, "checkpoint": told["checkpoint"] and Path(told["checkpoint"])})


def open_run(config: Config, task: Task, folder: RunFolder, runtime: Runtime, stop: StopFlag) -> Start:
    """Take the run folder and find where the run stands; only rank 0 does this."""
    for name in config.track.also:
        find_tracker(name)
    if ":" in config.schedule.name:
        load_module(config.schedule.name.rpartition(":")[0], key="schedule")  # its file is a part of the run's code
    is_new = not folder.path.exists()
    lacks = folder.take(runtime.host, runtime.job, lambda: bool(stop.signal))
    try:
        elsewhere = look_elsewhere(config, folder)
        state = folder.read_state()
        _refuse_beside_a_job(folder, str(state.get("job") or ""), runtime)
        folder.tidy()
        is_done, notes = configuration.compared(folder, state, config)
        if is_done:
            return Start(True, False, None, "", state["step"], 0, state["wandb"], notes)
        checkpoint, step, passed_over = Checkpoints(folder, config.checkpoint.keep).newest()
        if checkpoint is None:
            passed_over += elsewhere.bring_newest()
            checkpoint, step, _ = Checkpoints(folder, config.checkpoint.keep).newest()
        if checkpoint is None and "parent" in state:
            raise UsageError(
                f"{folder.path}: none of its checkpoints is whole, and a branch has no other beginning; branch again, as NAME"
            )
        changed = snapshot.changes(folder, state["code"], task) if state else ""
        if changed:
            notes.append(f"WARNING: the code has changed since the last start ({changed}); the bits may part")
        may_part = bool(notes)
        wandb_id = state.get("wandb") or _new_id()
        chosen = checksum(checkpoint) if checkpoint else ""
        return Start(
            False,
            not state,
            checkpoint,
            chosen,
            step,
            folder.next_start(),
            wandb_id,
            notes + passed_over + lacks + [*elsewhere.notes],
            may_part,
        )
    except BaseException:
        folder.release()
        if is_new:  # half a run out of a store, at most
            folder.discard()
        raise


def _refuse_beside_a_job(folder: RunFolder, job: str, runtime: Runtime) -> None:
    """Not every file system has locks: where there is a scheduler, it knows whether another job is at this run."""
    if job and job != runtime.job:
        found = jobs_now([job]).get(job)
        if found is not None and found.state == "RUNNING":
            raise UsageError(
                f"{folder.path}: this run belongs to job {job}, which is running on {found.nodes}; write scancel {job}, or "
                "another --run NAME"
            )


def _new_id() -> str:
    return os.environ.get("WANDB_RUN_ID") or "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=8))


def launched() -> float:
    """When this process was started, in Unix seconds: Linux knows its age to 10 ms, and the time of the boot to a second."""
    created = psutil.Process().create_time()
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return created
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + created - psutil.boot_time()


def _start_before(folder: RunFolder) -> dict[str, Any] | None:
    """How the start before this one ended, and its last row: what follows the checkpoint is cut off next."""
    state, row = folder.read_state(), next(iter(last_rows(folder, 1)), {})
    if not state:
        return None
    return {**{key: state.get(key) for key in ("status", "time")}, "row": {key: row.get(key) for key in ("step", "time")}}


def begin(
    config: Config,
    origins: dict[str, str],
    task: Task,
    folder: RunFolder,
    runtime: Runtime,
    start: Start,
    kind: dict[str, str],
    num_steps: int,
) -> list[str]:
    """Everything has been checked: from here on there is a run, and state.json says so. Returns what is to be told."""
    folder.create()
    facts = {"host": runtime.host, "pid": os.getpid(), "job": runtime.job, "world_size": runtime.world_size}
    facts |= {"resumed_from": start.resumed_from, "launched": launched(), "time": time.time()}
    folder.begin_start(start.number, {**facts, "before": _start_before(folder)})
    keep_what_is_printed(folder, runtime)
    write_atomically(folder.config, configuration.to_text(config, origins))
    secrets = snapshot.keep(folder, task)
    folder.write_state(
        status="running",
        reason="",
        step=start.resumed_from,
        num_steps=num_steps,
        world_size=runtime.world_size,
        restarts=start.number - 1,
        weights=None,
        loss=folder.read_state().get("loss"),
        wandb=start.wandb_id,
        host=runtime.host,
        job=runtime.job,
        left_out=list(runtime.left_out),
        kind=kind,
        code=snapshot.versions(task),
    )
    return [left_out(secrets, "sources/ of the run folder")] if secrets else []


def keep_what_is_printed(folder: RunFolder, runtime: Runtime) -> None:
    """Have the run's log keep what this rank prints; rank 0 names the start there first.

    In a job the scheduler keeps it. Lines that several machines append to one file may be lost: the log is that of rank 0's.
    """
    if runtime.verdict is not None or runtime.rank != runtime.local_rank:
        return
    size = f"{runtime.world_size} process{'es' if runtime.world_size > 1 else ''}"
    title = f"--- start {folder.start} on {runtime.host}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}, {size} ---"
    keep_printed(folder.printed, f"rank {runtime.rank}: " if runtime.world_size > 1 else "", title if runtime.is_main else "")


def info_for_trackers(config: Config, folder: RunFolder, runtime: Runtime, start: Start) -> RunInfo:
    """What trackers are told; metrics.jsonl has been cut back to where the run goes on."""
    parent = folder.read_state().get("parent")
    return RunInfo(
        name=folder.name,
        path=folder.path,
        config=config.resolved(),
        id=start.wandb_id,
        group=f"sweep-{runtime.array}" if runtime.array else None,
        first_step=start.resumed_from,
        kept_bytes=folder.metrics.stat().st_size if folder.metrics.exists() else 0,
        fork=(parent["wandb"], parent["step"]) if parent and parent["wandb"] and start.number == 1 else None,
    )


def see_the_start(folder: RunFolder, runtime: Runtime) -> None:
    """Refuse a run folder that not every rank sees: one that outlived rank 0 would save where nobody looks."""
    until = time.monotonic() + _SHOWN_LATE_S
    while not folder.has_begun():
        if time.monotonic() > until:
            raise UsageError(
                f"{folder.path}: {runtime.host} does not see what rank 0 wrote there; write runs=FOLDER that all machines share"
            )
        time.sleep(0.2)

"""One rank of a run, from its folder to its last line."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from pathlib import Path

import torch

from samestep import config as configuration
from samestep.checkpoint import Checkpoints, capture, read, weights_hash
from samestep.config import Config
from samestep.control import StopFlag, agreed, decided_by_main, everyones
from samestep.errors import UsageError
from samestep.exact import check_world_size
from samestep.kind import device_kind, differences
from samestep.loop import Training, train
from samestep.run_folder import RunFolder, write_atomically
from samestep.runtime import Runtime
from samestep.session.build import Plans, build, make_accelerator
from samestep.task import load_task
from samestep.tracking import NullTracker, Tracker, cut_back


@dataclass
class Start:
    """What rank 0 found in the run folder, the same on every rank."""

    done: bool
    fresh: bool
    checkpoint: Path | None
    resumed_from: int
    wandb_id: str
    notes: list[str]


def run_training(config: Config, sources: dict[str, str], folder: RunFolder, runtime: Runtime, stop: StopFlag) -> None:
    """Train a run from wherever it stands to its end; `weights HASH` is the last line printed."""
    accelerator = make_accelerator(config)
    check_world_size(runtime.world_size, config.num_leaves)
    folder.path = decided_by_main(lambda: folder.path)  # a name made of the time may differ from rank to rank
    task = agreed(lambda: load_task(config.task, config.fields))
    start = decided_by_main(lambda: _open_run(config, folder, runtime))
    try:
        say = print if runtime.is_main else _say_nothing
        if start.done:
            state = folder.read_state()
            say(f"{folder.name} is done already, at step {state['step']}")
            say(f"weights {state['weights']}", flush=True)
            return
        say(f"resumed from step {start.resumed_from}" if start.checkpoint else "fresh", f"({folder.path})", flush=True)
        for note in start.notes:
            say(note, flush=True)
        saved = read(start.checkpoint) if start.checkpoint else None
        kind = device_kind(accelerator.device)
        peers = _same_kind(config, kind, runtime, str(accelerator.device))
        if saved and runtime.is_main:
            for line in differences(saved.values["kind"], kind):
                say(f"WARNING: {line}; the bits may part from an unbroken run's at step {saved.step + 1}", flush=True)

        def make_tracker(num_steps: int) -> Tracker | NullTracker:
            if not runtime.is_main:
                return NullTracker()
            _begin(config, sources, folder, runtime, start, kind)
            cut_back(folder, start.resumed_from)
            return Tracker(config, folder, start.wandb_id, num_steps, start.resumed_from, task.unit)

        run = build(config, Plans(task, accelerator, runtime, stop, saved, peers), make_tracker)
        try:
            if runtime.is_main:
                run.save = _Saver(run, folder, kind)
            finished = train(run)
            run.save(finished)
            shown = show(run) if runtime.is_main else ""
        finally:
            run.tracker.close()
        if runtime.is_main:
            digest = weights_hash(run.bare_model)
            folder.write_state(status="done", reason="", step=finished, weights=digest, loss=run.tracker.last.get("loss"))
            if shown:
                print(shown)
            print(f"weights {digest}", flush=True)
    except UsageError:
        if runtime.is_main and start.fresh:
            folder.discard()
        raise
    finally:
        folder.release()


def show(run: Training) -> str:
    """What the task shows of its trained model; compiled blocks step aside, for here each length would be a new shape."""
    model = run.bare_model.eval()
    if not run.config.compile:
        return run.task.show(model)
    with torch.compiler.set_stance("force_eager"):
        return run.task.show(model)


def _same_kind(config: Config, kind: dict[str, str], runtime: Runtime, device: str) -> list[str]:
    """Refuse a job of mixed kinds of device in exact mode. Returns each rank's host and device."""
    everyone = everyones((kind, f"{runtime.host} {device}"))
    for rank, (other, _) in enumerate(everyone):
        lines = differences(everyone[0][0], other)
        if lines and config.reduce == "exact":
            raise UsageError(
                f"devices: rank {rank} is of another kind than rank 0 ({'; '.join(lines)}), and gives other bits; "
                "use one kind of machine, or write reduce=fast"
            )
    return [place for _, place in everyone]


def _say_nothing(*words: object, **options: object) -> None: ...


def _open_run(config: Config, folder: RunFolder, runtime: Runtime) -> Start:
    """Take the run folder and find where the run stands; only rank 0 does this."""
    folder.take(runtime.host)
    try:
        state = folder.read_state()
        notes: list[str] = []
        if state and folder.config.exists():
            before, _ = configuration.load_config(folder.config)
            refused, notes = configuration.changes_on_resume(before, config)
            if refused:
                raise UsageError(*refused)
            if state.get("status") == "done" and (config.steps, config.epochs) == (before.steps, before.epochs):
                return Start(True, False, None, state["step"], state["wandb"], notes)
        checkpoint, step, passed_over = Checkpoints(folder, config.checkpoint.keep).newest()
        return Start(False, not state, checkpoint, step, state.get("wandb") or _new_id(), notes + passed_over)
    except BaseException:
        folder.release()
        raise


def _new_id() -> str:
    return "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=8))


def _begin(
    config: Config, sources: dict[str, str], folder: RunFolder, runtime: Runtime, start: Start, kind: dict[str, str]
) -> None:
    """Everything has been checked: from here on there is a run, and state.json says so."""
    folder.create()
    write_atomically(folder.config, configuration.to_text(config, sources))
    restarts = 0 if start.fresh else folder.read_state().get("restarts", 0) + 1
    folder.write_state(
        status="running",
        reason="",
        step=start.resumed_from,
        world_size=runtime.world_size,
        restarts=restarts,
        weights=None,
        loss=folder.read_state().get("loss"),
        wandb=start.wandb_id,
        host=runtime.host,
        job=runtime.job,
        kind=kind,
        code=configuration.code_versions(config),
    )


class _Saver:
    """Saves a run as it stands after a step; rank 0's alone, and no collective is in it."""

    def __init__(self, run: Training, folder: RunFolder, kind: dict[str, str]) -> None:
        self._run, self._folder, self._kind = run, folder, kind
        self._checkpoints = Checkpoints(folder, run.config.checkpoint.keep)

    def __call__(self, step: int) -> None:
        run = self._run
        values = {"best": run.convergence.best, "waited": run.convergence.waited, "kind": self._kind}
        saved = capture(step, run.bare_model, run.optimizer.inner, run.optimizer.scaler, values)
        try:
            self._checkpoints.save(saved)
        except OSError as error:
            run.tracker.line(f"WARNING: step {step} could not be saved ({error}); training goes on, and tries again")
            return
        self._folder.write_state(step=step, loss=run.tracker.last.get("loss"))

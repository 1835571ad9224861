"""`samestep launch`: a run on every device of this machine, in this process or as the launcher of several."""

from __future__ import annotations

import shlex

from samestep.commands.launcher import launch as launch_ranks
from samestep.commands.train import train
from samestep.config import Config, done_already, load_config
from samestep.errors import UsageError
from samestep.run.folder import RunFolder
from samestep.run.names import default_name
from samestep.run.printed import keep_printed
from samestep.runtime import processes_here, read_runtime
from samestep.runtime.early_stop import ASKED_TO_STOP, BEFORE_IT_BEGAN, end_quietly_when_asked

_DEMO = "configs/stdlib.yaml"  # the one here, or else the one that comes with samestep
_EXIT_CODES = {"done": 0, "stopped": 75}


def launch(config_path: str | None, run: str | None, processes: int | None, overrides: tuple[str, ...]) -> tuple[int, str]:
    """Train on the devices of this machine; without a config the demo. Returns the exit code, and what to print last.

    One process is this one, and of several this is the launcher: a signal finds the run, whoever sends it.
    """
    end_quietly_when_asked()
    path = _DEMO if config_path is None else config_path
    config, _ = load_config(path, overrides)
    folder = RunFolder.named(config.runs, default_name(path, read_runtime().job) if run is None else run)
    if (words := done_already(folder, config)) is not None:
        print(words, flush=True)
        return 0, ""
    number = num_processes(config, processes)
    overrides = (*overrides, f"processes={number}")
    if number == 1:
        train(path, folder.name, overrides)
        return 0, ""
    start = folder.next_start()
    # Every value that matters is here: no default config of the user's own.
    options = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(number), "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0"]
    started = (*options, "-m", "samestep", "train", path, "--run", folder.name, *overrides)
    code = launch_ranks(started, folder)
    if folder.printed.exists() and folder.next_start() > start:
        keep_printed(folder.printed)
    return outcome(folder, start, code)


def num_processes(config: Config, asked: int | None) -> int:
    """How many processes to start: what was typed, or the config says, or one for each device. UsageError for too many."""
    number = asked or config.processes or processes_here(config.device, config.num_leaves)
    if number > config.num_leaves:
        raise UsageError(
            f"processes: found {number}, and a step has {config.num_leaves} leaves to share; write --processes "
            f"{config.num_leaves} or fewer, or a smaller micro_batch_size"
        )
    return number


def outcome(folder: RunFolder, start: int, launcher_code: int) -> tuple[int, str]:
    """The exit code that a run's state means, and what to print last: the first failing rank's paragraph.

    Args:
        start: the number that this start was to have.
    """
    state = folder.read_state()
    status = str(state.get("status"))
    if launcher_code == 0:
        return _EXIT_CODES.get(status, 0), ""
    if launcher_code == UsageError.exit_code:
        return UsageError.exit_code, ""  # a rank has said why
    is_asked = launcher_code in {128 + number for number in ASKED_TO_STOP}  # as shells have it
    if folder.next_start() == start:
        if is_asked:
            return 75, BEFORE_IT_BEGAN
        return 2, ""  # it never began, and has said why; what stands in the folder is another start's
    if status in _EXIT_CODES or folder.is_taken():  # by ranks that still save, or by a start that came after
        return _EXIT_CODES.get(status, 75), ""  # rank 0 has said where it stopped
    failures = folder.failures()
    if is_asked and not failures:  # in a first step, say, that took longer than it was waited for
        reason = f"stopped before it could save; the same line with --run {shlex.quote(folder.name)} goes on from what is saved"
        folder.write_state(status="stopped", reason=reason)
        return 75, f"samestep: {reason}"
    reason = failures[0]["paragraph"] if failures else state.get("reason") or "a process was killed; see the lines above"
    folder.write_state(status="failed", reason=reason)
    return 1, f"samestep: {reason}"

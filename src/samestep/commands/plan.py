"""What the scripts in launch/ ask before and after a start: the run's name and size, and how it ended."""

from __future__ import annotations

import shlex

from samestep.commands.train import default_name
from samestep.config import load_config
from samestep.errors import UsageError
from samestep.run_folder import RunFolder
from samestep.runtime import processes_here, read_runtime

_EXIT_CODES = {"done": 0, "stopped": 75}


def plan(config_path: str, run: str | None, processes: int | None, overrides: tuple[str, ...]) -> str:
    """Check the config, and say for the shell which run to start on how many processes."""
    config, _ = load_config(config_path, overrides)
    number = processes or config.processes or processes_here(config.device, config.num_leaves)
    if number > config.num_leaves:
        raise UsageError(
            f"processes: found {number}, and a step has {config.num_leaves} leaves to share; write --processes "
            f"{config.num_leaves} or fewer, or a smaller micro_batch_size"
        )
    name = run or default_name(config_path, read_runtime())
    folder = RunFolder.named(config.runs, name)
    return f"run={shlex.quote(name)} folder={shlex.quote(str(folder.path))} processes={number} threads={config.threads}"


def outcome(folder: RunFolder, launcher_code: int) -> tuple[int, str]:
    """The exit code that a run's state means, and what to print last: the first failing rank's paragraph."""
    state = folder.read_state()
    status = str(state.get("status"))
    if launcher_code == 0 or status in _EXIT_CODES:
        return _EXIT_CODES.get(status, launcher_code), f"samestep: {state['reason']}" if status == "stopped" else ""
    failures = folder.failures()
    reason = failures[0]["paragraph"] if failures else state.get("reason") or "a process was killed; see the lines above"
    if state:
        folder.write_state(status="failed", reason=reason)
    return (1 if state else 2), f"samestep: {reason}"

"""What the scripts in launch/ ask before and after a start: the run's name and size, and how it ended."""

from __future__ import annotations

import shlex
import signal

from samestep.config import load_config
from samestep.errors import UsageError
from samestep.run_folder import RunFolder
from samestep.run_names import default_name
from samestep.runtime import processes_here, read_runtime

_EXIT_CODES = {"done": 0, "stopped": 75}
_ASKED_TO_STOP = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}  # as shells have it


def plan(config_path: str, run: str | None, processes: int | None, overrides: tuple[str, ...]) -> str:
    """Check the config, and say for the shell which run to start on how many processes."""
    config, _ = load_config(config_path, overrides)
    number = processes or config.processes or processes_here(config.device, config.num_leaves)
    if number > config.num_leaves:
        raise UsageError(
            f"processes: found {number}, and a step has {config.num_leaves} leaves to share; write --processes "
            f"{config.num_leaves} or fewer, or a smaller micro_batch_size"
        )
    name = default_name(config_path, read_runtime().job) if run is None else run
    folder = RunFolder.named(config.runs, name)
    words = {"run": name, "folder": str(folder.path), "processes": number, "threads": config.threads}
    words["start"] = folder.next_start()
    return " ".join(f"{key}={shlex.quote(str(value))}" for key, value in words.items())


def outcome(folder: RunFolder, start: int, launcher_code: int) -> tuple[int, str]:
    """The exit code that a run's state means, and what to print last: the first failing rank's paragraph.

    Args:
        start: the number that this start was to have.
    """
    state = folder.read_state()
    status = str(state.get("status"))
    if launcher_code == 0:
        return _EXIT_CODES.get(status, 0), f"samestep: {state['reason']}" if status == "stopped" else ""
    if folder.next_start() == start or folder.is_taken():
        if launcher_code in _ASKED_TO_STOP:
            return 75, "samestep: stopped before it began; the same line starts it"
        return 2, ""  # it never began, and has said why; what stands in the folder is another start's
    if status in _EXIT_CODES:
        return _EXIT_CODES[status], f"samestep: {state['reason']}" if status == "stopped" else ""
    failures = folder.failures()
    reason = failures[0]["paragraph"] if failures else state.get("reason") or "a process was killed; see the lines above"
    folder.write_state(status="failed", reason=reason)
    return 1, f"samestep: {reason}"

"""`samestep.train`: a run on processes of its own, started from a notebook or from a script's main guard."""

from __future__ import annotations

import queue
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from samestep.commands.notebook_source import source_of
from samestep.config import plain_text, validated
from samestep.errors import SamestepError, Stopped, TrainingError, UsageError
from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder
from samestep.run.names import default_name
from samestep.runtime import end_with_parent, read_runtime
from samestep.task import Task
from samestep.task.loading import TASK_MODULE
from samestep.task.script import described, place_of

_SAID = "samestep: "


class Trained(NamedTuple):
    """A run that is done: its folder, and what its state.json says. `samestep.load(trained.path)` is the model."""

    path: Path
    state: dict[str, Any]


def train(task: type[Task] | Task, *, run: str | None = None, **config: Any) -> Trained:
    """Train a task on processes of its own, as `samestep launch` does, and show what they print.

    For a notebook, or under `if __name__ == "__main__":` in a script. A class that was typed into a notebook is written into
    the run folder, with what it uses of other cells, for the processes to import. Ctrl-C, or the notebook's stop, saves.

    Args:
        task: a class derived from `samestep.Task`, or such a task with its fields set.
        run: a new name starts a run, a known one resumes it, a finished one is returned as it is; by default class and time.
        config: the keys of a config but for `task` and `with`; dicts where YAML has mappings. `processes` by default is
            one for each GPU, or for each CPU core.

    Raises:
        UsageError: what was written is wrong; nothing is left behind.
        TrainingError: a fault in training.
        Stopped: stopped early and saved; the same call with the run's name goes on.
    """
    kind = task if isinstance(task, type) else type(task)
    program = getattr(sys.modules["__main__"], "__spec__", None)
    is_ours = program is not None and program.name.partition(".")[0] == "samestep"  # a run's process, which imports a module
    if kind.__module__.startswith(TASK_MODULE) or is_ours:
        raise UsageError(
            "samestep.train: the run's processes import this file for its class, and would train again; write "
            'if __name__ == "__main__": above it'
        )
    if read_runtime().world_size > 1:
        raise UsageError("samestep.train: it starts its processes itself; run the script with python, or write samestep.main")
    tree = described(task, config)
    settings = validated(tree)
    folder = RunFolder.named(settings.runs, run or default_name(kind.__name__.lower(), None))
    is_new = not folder.path.exists()
    called = folder.path / "call.yaml"
    try:
        folder.make()
        text = plain_text({**tree, "task": f"{_place(kind, folder.path)}:{kind.__name__}"}, "samestep.train")
        _write(called, text)
        code, said = _follow(["launch", str(called), "--run", folder.name])
    finally:
        if is_new and not folder.state.exists():
            shutil.rmtree(folder.path, ignore_errors=True)
    if code:
        raise _error(code, said, folder)
    return Trained(folder.path, folder.read_state())


def _place(kind: type[Task], folder: Path) -> str:
    """What a process imports to have the class: a module of a package, or a file."""
    if kind.__qualname__ != kind.__name__:
        raise UsageError(f"samestep.train: {kind.__qualname__} stands within something else; write the class at the top level")
    module = sys.modules[kind.__module__]
    name = module.__spec__.name if module.__spec__ else module.__name__  # of python -m package.module too
    if "." in name:
        return name
    file = getattr(module, "__file__", None)
    if file is None:
        file = folder / "cell.py"
        _write(file, source_of(kind))
    return place_of(file)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:  # else a run that lives may be reading it
        write_atomically(path, text)


def _follow(words: list[str]) -> tuple[int, list[str]]:
    """Run a command of samestep's, show what it prints, and pass Ctrl-C on. Returns its exit code and its own last words."""
    process = subprocess.Popen(
        [sys.executable, "-m", "samestep", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,  # a terminal's Ctrl-C and a notebook's stop come to it from here, once
        preexec_fn=partial(end_with_parent, signal.SIGTERM),  # it saves, and ends its ranks
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    said: list[str] = []
    while True:
        try:
            line = lines.get()
            if line is None:
                return process.wait(), list(dict.fromkeys(said))
            if line.startswith(_SAID):
                said.append(line.removeprefix(_SAID).rstrip("\n"))
            else:
                print(line, end="", flush=True)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _error(code: int, said: list[str], folder: RunFolder) -> SamestepError:
    if code == UsageError.exit_code:
        return UsageError(*said)
    if code == Stopped.exit_code:
        return Stopped("\n".join(said))
    killed = f"the run was ended by {signal.Signals(-code).name}" if code < 0 else f"{folder.path}: the run failed"
    return TrainingError("\n".join(said) or killed)

"""`samestep train`: one rank of a run, whoever launched it."""

from __future__ import annotations

import bdb
import json
import shlex
import socket
import time
import traceback
from pathlib import Path

from samestep.config import load_config
from samestep.errors import SamestepError, Stopped, UsageError
from samestep.run_folder import RunFolder, write_atomically
from samestep.runtime import (
    Runtime,
    end_with_parent,
    error_file,
    prepare_environment,
    read_runtime,
    refuse_another_world_size,
)


def train(config_path: str, run: str | None, overrides: tuple[str, ...]) -> None:
    """Train, and raise what ended the run early: UsageError, TrainingError, Stopped."""
    runtime = read_runtime()
    config, sources = load_config(config_path, overrides)
    refuse_another_world_size(runtime, config.processes)
    if runtime.launched:
        end_with_parent()
    prepare_environment(runtime, config.threads)
    folder = RunFolder.named(config.runs, run or default_name(config_path, runtime))

    from samestep.control import StopFlag, leave_together  # torch is imported once everything typed has been checked
    from samestep.session import run_training

    stop = StopFlag()
    stop.install()
    try:
        run_training(config, sources, folder, runtime, stop)
        leave_together()
    except UsageError as error:
        _record(folder, runtime, "\n".join(error.lines), error)
        raise
    except Stopped as stopped:
        reason = f"{stopped}; the same line with --run {shlex.quote(folder.name)} goes on"
        if runtime.is_main:
            folder.write_state(status="stopped", reason=reason)
        leave_together()
        raise Stopped(reason) from None
    except (KeyboardInterrupt, bdb.BdbQuit):
        _record(folder, runtime, "stopped at once by hand; the last checkpoint is whole", None)
        raise KeyboardInterrupt from None
    except Exception as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if found:
            refusal = _without_a_kernel(operation)
            _record(folder, runtime, str(refusal), error)
            raise refusal from None
        raise SamestepError(_failed(folder, runtime, error)) from None
    finally:
        stop.remove()


def default_name(config_path: str, runtime: Runtime) -> str:
    """The config's stem with the job's number, the same after a requeue, or with the time."""
    path = Path(config_path)
    stem = path.parent.name if path.name == "config.yaml" else path.stem
    return f"{stem}-{runtime.job}" if runtime.job else f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _without_a_kernel(operation: str) -> UsageError:
    return UsageError(
        f"task: {operation} has no deterministic kernel on this device, and would give other bits each time; "
        "use another operation, or write reduce=fast"
    )


def _failed(folder: RunFolder, runtime: Runtime, error: Exception) -> str:
    """Put a fault into one paragraph, with rank and host first, and the whole of it into this rank's log."""
    text = str(error) if isinstance(error, SamestepError) else f"{type(error).__name__}: {error}"
    where = _place_in_user_code(error) if not isinstance(error, SamestepError) else ""
    paragraph = f"rank {runtime.rank} on {runtime.host}: {text}{where} (log: {folder.log(runtime.rank)})"
    _record(folder, runtime, paragraph, error)
    if runtime.is_main and folder.state.exists():
        folder.write_state(status="failed", reason=paragraph)
    return paragraph


def _place_in_user_code(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "site-packages" not in frame.filename and "/samestep/" not in frame.filename]
    frame = (outside or frames)[-1]
    return f", at {frame.filename}:{frame.lineno} in {frame.name}"


def _record(folder: RunFolder, runtime: Runtime, paragraph: str, error: BaseException | None) -> None:
    """Leave this rank's last words where the launcher and local.sh look for them."""
    words = {"rank": runtime.rank, "host": socket.gethostname(), "time": time.time(), "paragraph": paragraph}
    words["victim"] = error is not None and _is_victim(error)
    if folder.logs.is_dir():
        write_atomically(folder.failure(runtime.rank), json.dumps(words))
        with folder.log(runtime.rank).open("a") as log:
            log.write("".join(traceback.format_exception(error)) if error else paragraph + "\n")
    place = error_file()
    if place is not None:
        message = {"message": paragraph, "extraInfo": {"py_callstack": paragraph, "timestamp": str(int(time.time()))}}
        place.write_text(json.dumps({"message": message}))


def _is_victim(error: BaseException) -> bool:
    """Whether this rank failed only because a peer had: its collective found the other end gone."""
    text = f"{type(error).__name__} {error}"
    return any(sign in text for sign in ("Connection closed by peer", "Connection reset", "DistBackendError", "Broken pipe"))

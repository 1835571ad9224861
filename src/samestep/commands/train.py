"""`samestep train`: one rank of a run, whoever launched it."""

from __future__ import annotations

import bdb
import contextlib

from samestep.config import Config, done_already, load_config
from samestep.errors import Overtaken, SamestepError, Stopped, UsageError
from samestep.run.folder import RunFolder
from samestep.run.names import default_name
from samestep.runtime import (
    Runtime,
    end_with_launcher,
    prepare_environment,
    read_runtime,
    refuse_another_world_size,
)
from samestep.runtime.early_stop import end_quietly_when_asked


def train(config_path: str, run: str | None, overrides: tuple[str, ...]) -> None:
    """Train, and raise what ended the run early: UsageError, TrainingError, Stopped."""
    end_quietly_when_asked()
    runtime = read_runtime()
    if runtime.launched:
        end_with_launcher()
    config, sources = load_config(config_path, overrides)
    refuse_another_world_size(runtime, config.processes)
    folder = RunFolder.named(config.runs, default_name(config_path, runtime.job) if run is None else run)
    if runtime.world_size == 1 and (words := done_already(folder, config)) is not None:  # several agree on it first
        print(words, flush=True)
        return
    prepare_environment(runtime, config.threads, watched=config.watchdog > 0)
    with contextlib.suppress(OSError):  # who opens the folder says what is wrong with it
        folder.failure(runtime.rank).unlink()  # of an earlier start

    from samestep.control import StopFlag, leave_together  # torch is imported once everything typed has been checked
    from samestep.session import record_failure, run_training

    stop = StopFlag(runtime.ends_at)
    stop.install()
    try:
        run_training(config, sources, folder, runtime, stop)
        leave_together()
    except UsageError as error:
        record_failure(folder, runtime, "\n".join(error.lines), error)
        _say_failed(folder, runtime, "\n".join(error.lines))
        raise
    except Stopped:
        leave_together()
        raise
    except (KeyboardInterrupt, bdb.BdbQuit):
        reason = "stopped at once by hand; the last checkpoint is whole"
        record_failure(folder, runtime, reason)
        _say_failed(folder, runtime, reason)
        raise KeyboardInterrupt from None
    except Exception as error:
        raise SamestepError(_failed(folder, runtime, error, config)) from None


def _failed(folder: RunFolder, runtime: Runtime, error: Exception, config: Config) -> str:
    """Put a fault into one paragraph, with rank and host first, and the whole of it into this rank's log.

    Returns what this rank is to say: nothing if it only followed another, which has spoken.
    """
    from samestep.control import is_victim
    from samestep.session import in_user_code, record_failure

    text = str(error) if isinstance(error, SamestepError) else in_user_code(error)
    if any(words in text.lower() for words in ("out of memory", "can't allocate memory", "memoryerror")):
        text += f"; {_smaller(config, runtime.world_size)}"
    log = f" (log: {folder.log(runtime.rank)})" if folder.has_begun() else ""
    paragraph = f"rank {runtime.rank} on {runtime.host}: {text}{log}"
    paragraph = record_failure(folder, runtime, paragraph, error)
    _say_failed(folder, runtime, paragraph)
    failures = folder.failures() if is_victim(error) else []
    return "" if any(not failure["victim"] for failure in failures) else paragraph


def _say_failed(folder: RunFolder, runtime: Runtime, reason: str) -> None:
    if runtime.is_main and folder.has_begun():
        with contextlib.suppress(OSError, Overtaken):  # the fault itself is what has to be said
            failures = folder.failures()  # this rank may only have lost the one that failed
            folder.write_state(status="failed", reason=failures[0]["paragraph"] if failures else reason)


def _smaller(config: Config, world_size: int) -> str:
    """What to write when the memory does not suffice."""
    micro = config.micro_batch_size
    sizes = [str(size) for size in range(micro // 2, 0, -1) if config.global_batch_size % size == 0][:3]
    tries = [f"micro_batch_size={' or '.join(sizes)}"] if sizes else []
    if config.num_leaves > world_size and config.micro_batches % world_size == 0:
        tries.append(f"leaves={world_size} to add up in place")
    return f"try {', '.join([*tries, 'precision=bf16'])} in a new run: each is part of the maths"

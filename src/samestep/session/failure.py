"""What a rank leaves behind when it fails: its last words, and the last finished step, if it is the one to save that."""

from __future__ import annotations

import contextlib
import json
import time
import traceback

from samestep.checkpoint import Saver
from samestep.config import Config
from samestep.control import Board, abort_device_collectives, is_victim, survivor
from samestep.errors import UsageError
from samestep.loop import Training
from samestep.run_folder import RunFolder, write_atomically
from samestep.runtime import Runtime, error_file

_PATIENCE_AFTER_A_FAULT_S = 20.0  # torchrun kills what is left after 30


def record_failure(
    folder: RunFolder,
    runtime: Runtime,
    paragraph: str,
    error: BaseException | None = None,
    victim: bool | None = None,
    blamed: list[str] | None = None,
) -> str:
    """Write one paragraph for people and the whole traceback for the rank's log.

    The first words stand: what a rank raises when the watchdog tears it out of a collective adds nothing. Returns them.

    Args:
        victim: whether this rank failed only because another had; by default that is read from the error.
        blamed: the hosts that failed, as far as this rank knows; by default its own, unless it is a victim.
    """
    if victim is None:
        victim = error is not None and is_victim(error)
    if blamed is None:
        blamed = [] if victim else [runtime.host]
    words = {"rank": runtime.rank, "host": runtime.host, "time": time.time(), "paragraph": paragraph}
    words |= {"victim": victim, "blamed": blamed, "refusal": isinstance(error, UsageError)}
    with contextlib.suppress(OSError):  # a full disk must not take the place of the fault itself
        if folder.has_begun():
            if folder.failure(runtime.rank).exists():
                paragraph = str(json.loads(folder.failure(runtime.rank).read_text())["paragraph"])
            else:
                write_atomically(folder.failure(runtime.rank), json.dumps(words))
            with folder.log(runtime.rank).open("a") as log:
                log.write("".join(traceback.format_exception(error)) if error else paragraph + "\n")
    place = error_file()
    if place is not None:
        message = {"message": paragraph, "extraInfo": {"py_callstack": paragraph, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            place.write_text(json.dumps({"message": message}))
    return paragraph


def mistake_behind(error: Exception, config: Config) -> UsageError | None:
    """The mistake in the task or the config that torch says in words of its own, if it is one."""
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    if found:
        return UsageError(
            f"task: {operation} has no deterministic kernel on this device, and would give other bits each time; "
            "use another operation, or write reduce=fast"
        )
    if isinstance(error, ValueError) and "Expected more than 1 value per channel when training" in str(error):
        if config.micro_batch_size == 1:
            return UsageError("micro_batch_size: found 1, and BatchNorm needs more than one value per channel; write 2 or more")
        return UsageError(
            "task: BatchNorm needs more than one value per channel, and the last micro-batch of an epoch has too few rows; "
            f"write drop_last: true, or another micro_batch_size than {config.micro_batch_size}"
        )
    return None


def save_what_is_finished(run: Training, saver: Saver, folder: RunFolder, runtime: Runtime, board: Board) -> bool:
    """After an error: save the last finished step, by one of the ranks that live and hold it. No collective is in it.

    Returns whether this start has finished any step.
    """
    if run.optimizer.is_stepping:
        return True
    abort_device_collectives()
    finished = run.finished
    if finished == run.first_step:
        return False
    if not run.purity.roll_back():
        print(
            f"step {finished} is not saved: its parameters were changed after it. An earlier save, if any, stands", flush=True
        )
        return True
    best = run.best.step
    if not runtime.is_main and best is not None and best != finished and not saver.has(best):
        # Saved, the run would go on without the weights that it was to keep. From the save before, it meets them again.
        print(
            f"step {finished} is not saved: the best, step {best}, died with rank 0. An earlier save, if any, stands",
            flush=True,
        )
        return True
    try:
        run.reports.flush(finished)
        if runtime.world_size == 1 or survivor(board, runtime.rank, finished, folder.claim_save):
            run.statistics.roll_back()
            saver.save_now(finished, _PATIENCE_AFTER_A_FAULT_S)
            print(f"rank {runtime.rank} has saved step {finished}: no finished step is lost", flush=True)
            if not runtime.is_main:  # rank 0 says what failed; where it is dead, somebody has to say that something did
                folder.write_state(status="failed", reason=f"rank {runtime.rank} saved step {finished} after a fault")
    except Exception as error:  # the fault itself is said later
        print(f"step {finished} could not be saved after the fault: {error}", flush=True)
    return True

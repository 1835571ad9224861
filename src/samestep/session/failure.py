"""What a rank leaves behind when it fails: its last words, and the last finished step, if it is the one to save that."""

from __future__ import annotations

import contextlib
import json
import re
import time
import traceback

from samestep import evaluation
from samestep.checkpoint import Saver
from samestep.config import Config
from samestep.control import Board, is_victim
from samestep.errors import UsageError, looked_for, place_in_user_code
from samestep.exact import USED_ROWS
from samestep.loop import Training
from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder
from samestep.runtime import Runtime, tell_launcher
from samestep.session.blocks import MOST_SHAPES
from samestep.session.survivors import is_chosen
from samestep.task import Columns, batch_behind

_PATIENCE_AFTER_A_FAULT_S = 20.0  # torchrun kills what is left after 30

_NO_GRADIENT = "element 0 of tensors does not require grad and does not have a grad_fn"
_IN_OTHERS_WORDS = {
    "You must call wandb.init() before": (
        "found wandb's own log in it; return numbers from loss as a third value, {name: (sum, weight)}, or from metrics"
    ),
    _NO_GRADIENT: ("a backward is called in it; leave that and the optimizer's step out: both come after loss"),
}
_PAST_THE_MODEL = (USED_ROWS, "mixed torch.Tensor and DTensor", "requires running forward through the root module first")
_HINTS = {
    "expected target dtype to be Long": "class labels are integers: give them as such in data(), or write .long()",
    "expected scalar type Long": "class labels are integers: give them as such in data(), or write .long()",
    "must have the same dtype": "give numbers of the model's own dtype in data(), or write .float()",
    "device-side assert": (
        "mostly an index is out of bounds: class labels, or rows of an embedding. The device finds it after the line that asks "
        "for it, so this may be a later one: put CUDA_LAUNCH_BLOCKING=1 before the same command to see the very line"
    ),
    "is out of bounds": "class labels go from 0 to one less than the model has outputs",
    "shapes cannot be multiplied": "the model's first layer and the column must be of one width",
}


def _is_in_evaluation(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename == evaluation.__file__ for frame in frames)


def in_user_code(error: Exception) -> str:
    """What the task's own code raised, as one paragraph: where, what may help, and what the micro-batch held."""
    hint = next((f"; {words}" for part, words in _HINTS.items() if part in str(error)), "")
    said = str(error).partition("\nCUDA kernel errors might")[0]  # which the hint says better
    return f"{type(error).__name__}: {said}{place_in_user_code(error)}{looked_for(error)}{hint}{batch_behind(error)}"


def finished_steps(run: Training) -> int | None:
    """The steps whose weights the model holds; None where the device does not give them: after some errors it never does."""
    try:
        return run.finished
    except RuntimeError:
        return None


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
    tell_launcher(paragraph)
    return paragraph


def mistake_behind(error: Exception, config: Config) -> UsageError | None:
    """The mistake in the task or the config that torch says in words of its own, if it is one."""
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    if found:
        return UsageError(
            f"task: {operation} has no deterministic kernel on this device, and would give other bits each time; "
            "use another operation, or write reduce=fast"
        )
    if _NO_GRADIENT in str(error) and _is_in_evaluation(error):
        return UsageError(
            f"task: a gradient is taken in it, and an evaluation computes none{place_in_user_code(error)}; write with "
            "torch.enable_grad(): around the forward that it is taken of, or a metrics() without it"
        )
    if (words := next((words for part, words in _IN_OTHERS_WORDS.items() if part in str(error)), None)) is not None:
        return UsageError(f"task: {words}{place_in_user_code(error)} (docs/tasks.md)")
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return UsageError(
            f"compile: the model's blocks have met more than {MOST_SHAPES} shapes each, and every one is a program of its own; "
            "pad to fewer lengths in collate (to multiples of 64, say), or write compile=false and another --run NAME"
        )
    if (why := re.search(r"FA[34] .*unsupported: .*", str(error))) is not None:
        return UsageError(f"attention: {why[0]}; write attention=flash")
    if any(words in str(error) for words in _PAST_THE_MODEL):
        return UsageError(
            f"shard: the loss reaches past model(…){place_in_user_code(error)}, to parameters of which each rank has its rows "
            "alone; call the model itself, or leave shard out"
        )
    if config.shard and "setStorage: sizes" in str(error):
        return UsageError(
            "shard: the loss calls a backward of its own (of a gradient penalty, say), for which no block is kept gathered; "
            "leave one of the two out"
        )
    if isinstance(error, AttributeError) and isinstance(error.obj, Columns):
        return UsageError(f"task: the batch is a dict; write batch[{error.name!r}]{place_in_user_code(error)}")
    if isinstance(error, ValueError) and (field := re.search(r'^"(\w+)" object has no field "(\w+)"', str(error))):
        return UsageError(
            f"task: {field[1]} has no field {field[2]}{place_in_user_code(error)}; write self._{field[2]}, and in the class "
            f"_{field[2]}: Any = None, or a field if it is a hyperparameter"
        )
    if isinstance(error, ValueError) and "Expected more than 1 value per channel when training" in str(error):
        if config.micro_batch_size == 1:
            return UsageError("micro_batch_size: found 1, and BatchNorm needs more than one value per channel; write 2 or more")
        return UsageError(
            "task: BatchNorm needs more than one value per channel, and the last micro-batch of an epoch has too few rows; "
            f"write drop_last: true, or another micro_batch_size than {config.micro_batch_size}"
        )
    return None


def save_what_is_finished(
    run: Training, saver: Saver, folder: RunFolder, runtime: Runtime, board: Board, patience_s: float = 0.0
) -> bool:
    """After an error: save the last finished step, by one of the ranks that live and hold it. No collective is in it.

    Args:
        patience_s: for the end of a step that another thread is in the middle of.

    Returns whether this start has finished any step.
    """
    if not run.optimizer.hold(patience_s):
        return True
    finished = finished_steps(run)
    if finished is None:
        print("what is finished is not saved: the device does not give it any more. An earlier save stands, if any", flush=True)
        return True
    if finished == run.first_step:
        return False
    sharded = run.sums.sharded
    if sharded is not None and sharded.across is None:
        print(
            f"step {finished} is not saved: each rank has but its rows of it (shard). An earlier save stands, if any",
            flush=True,
        )
        return True
    if not run.checks.purity.roll_back():
        print(
            f"step {finished} is not saved: its parameters were changed after it. An earlier save, if any, stands", flush=True
        )
        return True
    best = run.evaluation.best.step
    if not runtime.is_main and best is not None and best != finished and saver.would_meet_again(best):
        # Saved, the run would go on without the weights that it was to keep. From the save before, it meets them again.
        print(
            f"step {finished} is not saved: the best, step {best}, died with rank 0. An earlier save, if any, stands",
            flush=True,
        )
        return True
    try:
        run.reports.flush("saving", finished)
        if run.reports.read_steps < finished:  # it may hold what no rank has sent
            print(f"step {finished} is not saved: its numbers were never read. An earlier save stands, if any", flush=True)
        elif is_chosen(saver, sharded, folder, runtime, board, finished):
            run.sums.statistics.roll_back()
            saver.save_now(finished, _PATIENCE_AFTER_A_FAULT_S)
            if sharded is not None and sharded.rank > 0:
                return True
            who = f"rank {runtime.rank} has" if sharded is None else "the ranks of this node have"
            print(f"{who} saved step {finished}: no finished step is lost", flush=True)
            if not runtime.is_main:  # rank 0 says what failed; where it is dead, somebody has to say that something did
                why = next((failure["paragraph"] for failure in folder.failures()), "a fault")
                folder.write_state(status="failed", reason=f"{why}\nrank {runtime.rank} saved step {finished} after that")
    except Exception as error:  # the fault itself is said later
        print(f"step {finished} could not be saved after the fault: {error}", flush=True)
    return True

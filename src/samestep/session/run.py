"""One rank of a run, from its folder to its last line."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from samestep.checkpoint import Saved, Saver, read_chosen, weights_hash
from samestep.checks import NoProof
from samestep.config import Config, done_words
from samestep.control import (
    Board,
    StopFlag,
    abort_device_collectives,
    agreed,
    decided_by_main,
    everyones,
    is_victim,
    make_board,
    unhurried,
)
from samestep.errors import Stopped, TrainingError, UsageError
from samestep.exact import check_world_size
from samestep.loop import Training, train
from samestep.run.best import last_lines
from samestep.run.folder import RunFolder
from samestep.runtime import Runtime
from samestep.runtime.device_kind import differences
from samestep.session.accelerator import make_accelerator
from samestep.session.build import Plans, build
from samestep.session.elsewhere import patience_s
from samestep.session.failure import finished_steps, mistake_behind, save_what_is_finished
from samestep.session.flops import find_step_at_peak
from samestep.session.kind import kind_of
from samestep.session.profile import profiled
from samestep.session.saving import make_saver
from samestep.session.second import NoSecondStart, second_start
from samestep.session.sharding import cut_over
from samestep.session.show import shown
from samestep.session.start import Start, begin, info_for_trackers, keep_what_is_printed, open_run, see_the_start
from samestep.session.watch import make_watchdog, watch_over, words_of_a_stop
from samestep.task import Task
from samestep.task.loading import load_task
from samestep.tracking import NullTracker, Tracker, cut_back

_PATIENCE_AT_THE_END_S = 600.0  # for a disk that is full when all the work is done


def run_training(config: Config, origins: dict[str, str], folder: RunFolder, runtime: Runtime, stop: StopFlag) -> None:
    """Train a run from wherever it stands to its end; `weights HASH` is the last line printed."""
    with contextlib.closing(second_start(config, runtime.is_main)) as second:  # before anything of the run is in this process
        _run(config, origins, folder, runtime, stop, second)


def _run(
    config: Config, origins: dict[str, str], folder: RunFolder, runtime: Runtime, stop: StopFlag, second: NoSecondStart
) -> None:
    accelerator = make_accelerator(config)
    check_world_size(runtime.world_size, config.num_leaves)
    folder.path = Path(decided_by_main(lambda: str(folder.path)))  # a name made of the time may differ from rank to rank
    task = agreed(lambda: load_task(config.task, config.fields))
    with unhurried() if config.checkpoint.address else contextlib.nullcontext():  # a checkpoint may have to come from there
        start = Start.heard(decided_by_main(lambda: open_run(config, task, folder, runtime, stop).told()))
    try:
        rank = _Rank(config, origins, folder, runtime, stop, accelerator, task, start, second)
        if start.done:
            rank.say(done_words(folder, folder.read_state()))
        else:
            rank.go_on()
    except Exception as raised:
        error = mistake_behind(raised, config) or raised
        if start.fresh and (isinstance(error, UsageError) or not folder.has_begun()):
            folder.discard()
        if error is raised:
            raise
        raise error from None
    finally:
        folder.release()


@dataclass
class _Rank:
    """This rank in one start of a run."""

    config: Config
    origins: dict[str, str]  # of the config's values
    folder: RunFolder
    runtime: Runtime
    stop: StopFlag
    accelerator: Accelerator
    task: Task
    start: Start
    second: NoSecondStart

    def go_on(self) -> None:
        self.say(f"resumed from step {self.start.resumed_from}" if self.start.checkpoint else "fresh", f"({self.folder.path})")
        for note in self.start.notes:
            self.say(note)
        mapped = bool(cut_over(self.config))
        saved = read_chosen(self.start.checkpoint, self.start.checksum, mapped) if self.start.checkpoint else None
        kind = kind_of(self.accelerator.device)
        peers, other_kind = self.compare_devices(kind, saved)
        self.folder.continue_start(self.start.number)
        board = make_board(self.runtime.store, self.runtime.world_size, self.start.number)
        watch = make_watchdog(self.config, self.folder, self.runtime, board)
        plans = Plans(self.task, self.accelerator, self.runtime, self.stop, saved, peers, watch=watch)
        run = build(self.config, plans, lambda num_steps: self.make_tracker(num_steps, saved, kind))
        saver = make_saver(run, self.folder, kind, self.runtime, self.start.number)
        if self.runtime.is_main or run.sums.sharded:
            run.ending.saver = saver
        plans.saved = saved = None  # laid out by now, and as large as all that is trained
        agreed(lambda: see_the_start(self.folder, self.runtime))
        if not self.runtime.is_main:  # whose log began with the run
            keep_what_is_printed(self.folder, self.runtime)
        self.train(run, saver, board, may_part=self.start.may_part or other_kind)
        if self.runtime.is_main:
            print(last_lines(self.folder.read_state()), flush=True)

    def say(self, *words: str) -> None:
        if self.runtime.is_main and words:
            print(*words, flush=True)

    def compare_devices(self, kind: dict[str, str], saved: Saved | None) -> tuple[list[str], bool]:
        """Refuse a job of mixed kinds. Returns each rank's place, and whether they are others than those of the checkpoint."""
        everyone = everyones((kind, f"{self.runtime.host} {self.accelerator.device}"))
        for rank, (other, _) in enumerate(everyone):
            lines = differences(everyone[0][0], other)
            if self.config.reduce == "fast":  # its replicas step alike all the same, so norms must be
                lines = [line for line in lines if line.startswith("norm was ")]
            if lines:
                raise UsageError(
                    f"devices: rank {rank} is of another kind than rank 0 ({'; '.join(lines)}), and gives other bits; "
                    f"use one kind of machine{', or write reduce=fast' if self.config.reduce == 'exact' else ''}"
                )
        lines = differences(saved.values["kind"], kind) if saved else []
        for line in lines:
            self.say(f"WARNING: {line}; the bits may part from an unbroken run's at step {self.start.resumed_from + 1}")
        return [place for _, place in everyone], bool(lines)

    def make_tracker(self, num_steps: int, saved: Saved | None, kind: dict[str, str]) -> Tracker | NullTracker:
        """Once everything has been checked: the run begins, or its rows end where it goes on."""
        if not self.runtime.is_main:
            return NullTracker()
        self.say(*begin(self.config, self.origins, self.task, self.folder, self.runtime, self.start, kind, num_steps))
        if saved:
            again = saved.values["owes_evaluation"] or saved.step == num_steps
            cut_back(self.folder, saved.step, saved.values["rows"], again)
        else:
            cut_back(self.folder, 0, [], evaluates_again=False)
        known = info_for_trackers(self.config, self.folder, self.runtime, self.start)
        return Tracker(self.config.track, known, num_steps, self.task.unit)

    def train(self, run: Training, saver: Saver, board: Board, may_part: bool) -> None:
        """Train, save the end, and write it into the run's state; or save what is finished, and raise why it ended."""
        watch_over(run, saver, self.folder, self.runtime, self.stop, board)
        saver.copies.start()
        try:
            run.batches.start()
            agreed(lambda: _try_evaluation(run))
            if parted := agreed(lambda: _begin_start(run, may_part)):
                run.reports.tracker.line(parted)
            if self.runtime.is_main:
                find_step_at_peak(run, self.runtime.world_size)
            self.second.started()
            with profiled(self.config.profile if self.runtime.is_main else None, run, self.folder):
                finished = train(run)
            run.ending.save_for_all(finished, _PATIENCE_AT_THE_END_S)
            if unseen := self.second.find(self.folder):
                words = f"note: no second start was made ({unseen}): a task that came to remember late is not seen"
                run.reports.tracker.line(words)
            if self.runtime.is_main or run.sums.sharded:
                digest = weights_hash(run.sums.sharded.whole_tensors() if run.sums.sharded else run.model)
                if self.runtime.is_main:
                    loss = run.reports.tracker.last.get("loss")
                    self.folder.write_state(status="done", reason="", step=finished, weights=digest, loss=loss)
                run.reports.tracker.shown(finished, shown(run, self.folder, keeps=self.runtime.is_main))
        except Stopped as stopped:
            reason = f"{stopped}; the same line with --run {shlex.quote(self.folder.name)} goes on"
            if self.runtime.is_main:
                self.folder.write_state(status="stopped", reason=reason)
            raise Stopped(reason) from None
        except Exception as raised:
            run.watch.stop()
            error = self.saved_and_told(raised, run, saver, board)
            self.note_failure(error)
            raise error from None
        finally:
            run.watch.stop()
            if not isinstance(sys.exception(), KeyboardInterrupt):
                run.batches.close()
                run.ending.saver.wait()
                run.reports.tracker.close(patience_s=60.0 if sys.exception() is None else 5.0)
                saver.copies.close(patience_s(self.stop, self.runtime, sys.exception()))

    def note_failure(self, error: Exception) -> None:
        """In the state that a store gets; what the ranks have to say of it comes later, and here alone."""
        if self.config.checkpoint.address and self.runtime.is_main and not isinstance(error, Stopped):
            with contextlib.suppress(OSError, TrainingError):
                self.folder.write_state(status="failed", reason=str(error))

    def saved_and_told(self, raised: Exception, run: Training, saver: Saver, board: Board) -> Exception:
        """After a fault: save what is finished, and say what it was that failed."""
        saver.give_up()
        run.checks.proof = NoProof()
        abort_device_collectives()  # what is asked of the GPU from here on must not wait for a peer
        error = mistake_behind(raised, self.config) or raised
        if is_victim(raised):
            # Another rank's refusal is one that all would have come to; one of rank 0's has left no folder.
            refusal = self.folder.refusal() if self.folder.path.exists() else ["rank 0 refused this run"]
            error = UsageError(*refusal) if refusal else error
        is_early = isinstance(error, UsageError) and finished_steps(run) in (0, 1)  # a first step is no loss
        if (isinstance(error, TrainingError) and not run.watch.has_torn_out) or is_early:
            return error
        has_trained = save_what_is_finished(run, saver, self.folder, self.runtime, board)
        if is_victim(raised) and (stopped := words_of_a_stop(self.folder, self.stop, board)):
            self.folder.write_state(status="stopped", reason=stopped)
            return Stopped(stopped)
        if has_trained and isinstance(error, UsageError):  # a mistake that only a later row has shown
            return TrainingError(" ".join(error.lines))
        return error


def _try_evaluation(run: Training) -> None:
    """Evaluate a micro-batch before the first step, so that what is wrong with it shows before hours of training do."""
    if run.evaluation.evaluator is None or run.evaluation.evaluator.is_tried:
        return
    run.watch.at("evaluating")
    with run.checks.evaluation():
        run.evaluation.evaluator.names(run.model, wanted=set())
    run.watch.meeting()


def _begin_start(run: Training, may_part: bool) -> str | None:
    """What is to be told before the first step; the watchdog knows that something is computed, and maybe compiled."""
    run.watch.at("computing")
    parted = run.checks.begin_start(run.first_step, may_part, backwards=run.first_step == run.num_steps)
    run.watch.meeting()
    return parted

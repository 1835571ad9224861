"""When a run is saved, and how the step goes on meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samestep.checkpoint.copies import NoCopies
from samestep.checkpoint.files import Checkpoints
from samestep.checkpoint.sharded import SharedCheckpoints
from samestep.checkpoint.state import Saved
from samestep.config import Checkpoint
from samestep.control import NodeStore, StoreBoard, decided_by_main
from samestep.errors import Overtaken, TrainingError

_RETRY_S = 10.0
_LONG_S = 12.0  # a stop may wait for the save under way and make its own, and torchrun kills after 30 s


class Saver:
    """Saves a run as it stands, in a thread beside the training: a step is held only while the state is copied.

    What the disk refuses (no room, no permission) is said loudly and tried again; the last good checkpoint stays.

    Args:
        capture: copies the state after a step; into the same memory each time.
        saved: called with each checkpoint that is safely on disk and the seconds that took, in the thread.
        say: prints a line.
        longest_s: what a save takes, in seconds, until one has been measured: a stop must come so long before a time limit.
    """

    def __init__(
        self,
        settings: Checkpoint,
        checkpoints: Checkpoints,
        capture: Callable[[int], Saved],
        saved: Callable[[Saved, float], None],
        say: Callable[[str], None],
        longest_s: float = 2.0,
    ) -> None:
        self._settings, self._checkpoints = settings, checkpoints
        self._capture, self._on_saved, self._say = capture, saved, say
        self._thread: threading.Thread | None = None
        self._last_try = time.monotonic()
        self._refused: str | None = None
        self._overtaken: Overtaken | None = None
        self._is_owed = False
        self._copied_step: int | None = None
        self.newest: int | None = None
        self.longest_s = longest_s
        self.copies = NoCopies()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` finished steps, by number, by clock, or because the last try was refused.

        While the save before is still being written the answer is no, and a save by number is owed: no step waits for it,
        but that of a milestone, which is to be saved as it stands.
        Raises Overtaken once a later start owns the run.
        """
        if self._overtaken is not None:
            raise self._overtaken
        since = time.monotonic() - self._last_try
        by_number = self._settings.every is not None and step % self._settings.every == 0
        if self._settings.is_milestone(step):
            return True
        self._is_owed = self._is_owed or (by_number and self._copied_step != step)
        if self._thread is not None and self._thread.is_alive():
            return False
        by_clock = self._settings.minutes is not None and since > self._settings.minutes * 60
        return by_clock or self._is_owed or (self._refused is not None and since > _RETRY_S)

    def is_due_for_all(self, step: int) -> bool:
        """The same, asked before the step's end, of a rank on whose word all save."""
        return False

    def would_meet_again(self, step: int) -> bool:
        """Whether a run that goes on from the newest checkpoint takes `step` once more."""
        standing = self._checkpoints.all()
        return not standing or int(standing[0].name.removeprefix("step-")) < step

    def save(self, step: int) -> None:
        """Save after `step` finished steps, in the background. The save before this one ends first.

        Raises Overtaken once a later start owns the run.
        """
        self.wait()
        if self._overtaken is not None:
            raise self._overtaken
        if self.newest != step:
            self._begin(step)

    def _begin(self, step: int) -> None:
        self._is_owed = False
        self._last_try, self._copied_step = time.monotonic(), step
        self._thread = threading.Thread(target=self._write, args=(self._capture(step),), name="saving")
        self._thread.start()
        if not self._settings.background:
            self.wait()

    def save_now(self, step: int, patience_s: float) -> None:
        """Save after `step` finished steps and return when it is on disk; a refusal is tried again for `patience_s`.

        Raises TrainingError if it was given up.
        """
        until = time.monotonic() + patience_s
        self.save(step)
        self.wait()
        while self._refused is not None or self._overtaken is not None:
            if self._overtaken is not None:
                raise self._overtaken
            if time.monotonic() > until:
                raise self._given_up(step)
            time.sleep(1.0)
            self.save(step)
            self.wait()

    def save_for_all(self, step: int, patience_s: float) -> None:
        """`save_now` on rank 0; returns everywhere once it is on disk: should rank 0 die, the others still hold the step."""
        decided_by_main(lambda: self.save_now(step, patience_s))

    def give_up(self) -> None:
        """After a fault: wait for no other rank."""

    def wait(self) -> None:
        """Until no save is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _given_up(self, step: int) -> TrainingError:
        return TrainingError(f"step {step} could not be saved ({self._refused}); the newest checkpoint is {self._standing()}")

    def _standing(self) -> str:
        return f"step {self.newest}" if self.newest is not None else "the one before this start, if any"

    def _write(self, saved: Saved) -> None:
        begun = time.monotonic()
        try:
            if saved.arrived is not None:
                saved.arrived.synchronize()
            self._checkpoints.save(saved)
            took_s = time.monotonic() - begun
            self._on_saved(saved, max(took_s, self.longest_s))
            self.newest = saved.step  # last: a refusal by state.json is tried again too
            self.copies.stands(saved.step)
        except Overtaken as error:
            self._overtaken = error
            return
        except Exception as error:  # an unforeseen one too: what is not on disk must never count as saved
            reason = str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.filename:
                reason = f"{error.strerror}: {Path(error.filename).name}"
            if reason != self._refused:
                self._say(
                    f"WARNING: step {saved.step} could not be saved ({reason}); training goes on and saving is tried again; "
                    f"the newest checkpoint is {self._standing()}"
                )
            self._refused = reason
            return
        if self._refused is not None:
            self._say(f"step {saved.step} is saved: there is room again")
            self._refused = None
        if took_s > _LONG_S and self.longest_s <= _LONG_S:
            self._say(
                f"WARNING: saving took {took_s:.0f} s, and torchrun kills its processes 30 s after SIGTERM; to stop this run, "
                "send SIGUSR1 to its processes, or be content with the checkpoint before"
            )
        self.longest_s = max(self.longest_s, took_s)


class SharedSaver(Saver):
    """Of a sharded run, on each of its ranks: all save together what rank 0 finds due.

    Args:
        is_main: whether this rank says when.
        writes: whether this rank's rows are wanted; another node may have the same.
        node: the store of this rank's node, where that has a whole model.
    """

    def __init__(
        self,
        settings: Checkpoint,
        checkpoints: SharedCheckpoints,
        *args: Any,
        is_main: bool,
        writes: bool = True,
        node: NodeStore | None = None,
    ) -> None:
        super().__init__(settings, checkpoints, *args)
        self.node = node
        self._shared, self._writes, self._is_main, self._is_alone = checkpoints, writes, is_main, False

    def is_due(self, step: int) -> bool:
        return False  # it travels with the step

    def is_due_for_all(self, step: int) -> bool:
        return self._is_main and (self._overtaken is not None or super().is_due(step))  # which `save` raises on all

    def continue_over(self, board: StoreBoard) -> None:
        """After a death: save with the ranks of this node alone, over a board of theirs; there are no collectives any more."""
        self.wait()
        self._writes = self._is_alone = True
        self._shared.continue_over(board)

    def save(self, step: int) -> None:
        self.wait()
        stands = self._shared.has(step) if self._is_alone else decided_by_main(lambda: self._stands(step))
        if not stands and self._writes:
            self._begin(step)

    def _stands(self, step: int) -> bool:
        if self._overtaken is not None:
            raise self._overtaken
        with contextlib.suppress(OSError, TrainingError):  # what cannot be looked at is written anew, or refused there
            if self.newest != step and self._shared.stands(step):
                self.newest = step
        return self.newest == step

    def save_for_all(self, step: int, patience_s: float) -> None:
        until = time.monotonic() + patience_s

        def is_refused() -> bool:
            if self._overtaken is not None:
                raise self._overtaken
            if self._refused is not None and time.monotonic() > until:
                raise self._given_up(step)
            return self._refused is not None

        self.save(step)
        self.wait()
        while decided_by_main(is_refused):
            time.sleep(1.0)
            self.save(step)
            self.wait()

    def give_up(self) -> None:
        self._shared.given_up.set()


class NullSaver:
    """Saves nothing: another rank does."""

    longest_s = 0.0
    copies = NoCopies()

    def is_due(self, step: int) -> bool:
        return False

    is_due_for_all = is_due

    def save(self, step: int) -> None: ...

    def save_for_all(self, step: int, patience_s: float) -> None:
        decided_by_main(lambda: None)

    def wait(self) -> None: ...

"""The copy of a run that a store keeps, sent by a thread beside the training: each checkpoint is whole or absent there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from samestep.checkpoint.files import Checkpoints, passing
from samestep.checkpoint.reading import Damaged, manifest_of, verify
from samestep.errors import TrainingError
from samestep.run.asking import asked_wait_s, is_transient, words_of
from samestep.run.folder import RunFolder
from samestep.run.kept_elsewhere import MANIFEST, METRICS, checkpoints_there, name_there, small_files, steps_there
from samestep.run.store import Store

_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_ASKED_S = 1.0, 60.0, 300.0
_MOST_DOUBLINGS = 6
_TRIES_AT_THE_END = 5
_SOON_S = 1.0


class NoCopies:
    """Sends nothing: no store was named, or it is another rank that sends."""

    longest_s = 0.0

    def start(self) -> None: ...

    def stands(self, step: int) -> None: ...

    def holds(self, step: int) -> bool:
        return False

    def close(self, patience_s: float) -> None: ...


class Copies(NoCopies):
    """Sends what stands on the disk and not there: the newest checkpoint first, after it the run's small files.

    A checkpoint's manifest goes last, once all that it names was read back there and has its sums; only then does an older one
    go.
    What a store refuses is said once and tried again, at longer and longer intervals, and no step waits for it.

    Args:
        stays: whether the checkpoint of a step is kept for ever.
        say: prints a line.
        pause: waits so many seconds, or until the run ends.
    """

    def __init__(
        self,
        store: Store,
        folder: RunFolder,
        keep: int,
        stays: Callable[[int], bool],
        say: Callable[[str], None],
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._store, self._folder, self._keep, self._stays, self._say = store, folder, keep, stays, say
        self._checkpoints = Checkpoints(folder, keep)
        self._ending, self._woken = threading.Event(), threading.Event()
        self._left = threading.Event()  # whatever the thread says now would come after the run's last line
        self._pause = pause or self._wait
        self._there: set[int] | None = None  # checkpoints that are whole there; None before anybody has looked
        self._left_out: set[int] = set()  # damaged on the disk, or gone there by the rule, not to be sent again
        self._newest: int | None = None  # of those sent by this process, and the best step that it knows of
        self._best: int | None = None
        self._sending: int | None = None
        self._small: dict[str, tuple[int, int]] = {}  # of what was sent last: when it was changed, and its size
        self._doing = "the run"
        self._refused: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Have the thread begin."""
        self._thread = threading.Thread(target=self._work, name="sending", daemon=True)
        self._thread.start()

    def stands(self, step: int) -> None:
        """A checkpoint stands on the disk, verified."""
        self._woken.set()

    def holds(self, step: int) -> bool:
        """Whether the checkpoint of a step is being sent, and has to stay on the disk meanwhile."""
        return step == self._sending

    def close(self, patience_s: float) -> None:
        """Wait for what is being sent, for so many seconds, and say what was not."""
        self._ending.set()
        self._woken.set()
        assert self._thread is not None
        until = time.monotonic() + patience_s
        self._thread.join(min(_SOON_S, patience_s))
        if self._thread.is_alive() and until - time.monotonic() > 0:
            self._say(f"{self._doing} is being sent to {self._store.address}; this waits for it, {patience_s:.0f} s at most")
            self._thread.join(until - time.monotonic())
        self._left.set()
        newest = next(iter(self._wanted()), None)
        if newest is not None and newest not in (self._there or ()):
            why = self._refused or "the time was over"
            later = "" if self._folder.read_state().get("status") == "done" else ", and the next start sends it"
            self._say(
                f"WARNING: step {newest}, the newest, was not sent to {self._store.address} ({why}); "
                f"it stands in {self._folder.path}{later}"
            )
        elif self._thread.is_alive() or self._refused:
            self._say(f"WARNING: not all was sent to {self._store.address} ({self._refused or 'the time was over'})")

    def _work(self) -> None:
        failures = 0
        while not self._left.is_set():
            self._woken.clear()
            is_last = self._ending.is_set()
            try:
                is_done = self.bring_up_to_date()
            except TrainingError as error:  # a later start owns the run, here or there
                self._tell(f"WARNING: {error}")
                self._refused = str(error)
                return
            except Exception as error:
                self._complain(error)
                if is_last and (failures == _TRIES_AT_THE_END or not is_transient(error)):
                    return
                failures = failures + 1 if is_last == self._ending.is_set() else 1
                wait_s = min(_FIRST_WAIT_S * 2 ** min(failures - 1, _MOST_DOUBLINGS), _LONGEST_WAIT_S)
                self._pause(max(wait_s, min(asked_wait_s(error), _LONGEST_ASKED_S)))
                continue
            failures = 0
            if self._refused is not None:
                self._tell(f"{self._store.address}: all is sent, it takes what it is given again")
                self._refused = None
            if is_done and is_last:
                return
            if is_done:
                self._woken.wait()

    def _wait(self, seconds: float) -> None:
        """Until it is time to try again: a run that ends tries at once, and then by the clock."""
        (self._left if self._ending.is_set() else self._ending).wait(seconds)

    def _complain(self, error: Exception) -> None:
        words = f"{self._doing}: it {words_of(error)}"
        if self._refused is None:
            self._tell(
                f"WARNING: {self._store.address}: {self._doing} could not be sent, it {words_of(error)}; "
                "training goes on, and sending is tried again"
            )
        self._refused = words

    def _tell(self, line: str) -> None:
        if not self._left.is_set():
            self._say(line)

    def bring_up_to_date(self) -> bool:
        """Send one checkpoint, or whatever else there is; returns whether nothing is left to do."""
        self._folder.refuse_if_succeeded()
        self._doing = "the run"
        there = self._store.files()
        self._refuse_if_taken_over(there)
        if self._there is None:
            self._there = {step for step in steps_there(checkpoints_there(there)) if self._is_as_here(step)}
        missing = next((step for step in self._wanted() if step not in self._there), None)
        if missing is not None:
            self._send(missing, there)
        elif self._there:
            self._send_small_files(with_rows=self._ending.is_set())
        if self._there:
            self._let_old_ones_go()
        return missing is None

    def _wanted(self) -> list[int]:
        """The steps of checkpoints that stand on the disk for longer than they are being sent, newest first."""
        steps = [step for step in self._checkpoints.steps() if step not in self._left_out]
        if not steps:
            return []
        going = passing(steps, steps[0], self._keep, self._stays, self._checkpoints.best_step())
        return [step for step in steps if step not in going]

    def _refuse_if_taken_over(self, there: dict[str, int]) -> None:
        """Another machine may have gone on with the run from what is there."""
        numbers = [int(Path(name).stem) for name in there if name.startswith("starts/") and Path(name).stem.isdigit()]
        if numbers and max(numbers) > self._folder.start:
            raise TrainingError(
                f"{self._store.address}: start {max(numbers)}, on another disk, has taken this run over; nothing more is sent"
            )

    def _is_as_here(self, step: int) -> bool:
        manifest = self._folder.checkpoint(step) / MANIFEST
        return manifest.exists() and self._store.read(name_there(step, MANIFEST)) == manifest.read_bytes()

    def _send(self, step: int, there: dict[str, int]) -> None:
        assert self._there is not None
        self._sending, self._doing = step, f"step {step}"
        begun, path = time.monotonic(), self._folder.checkpoint(step)
        try:
            files = manifest_of(path)["files"]
            if name_there(step, MANIFEST) in there:  # of another checkpoint of this step, or of a damaged one
                self._store.remove([name_there(step, MANIFEST)])
            for name, expected in files.items():
                self._store.send(name_there(step, name), path / name)
                if self._store.checksum(name_there(step, name)) != expected:
                    verify(path)
                    raise OSError(f"{name} was read back with other bytes than were sent")
            best = json.loads((path / "values.json").read_text()).get("best_step")
            self._send_small_files()
            self._store.send(name_there(step, MANIFEST), path / MANIFEST)
            if self._store.read(name_there(step, MANIFEST)) != (path / MANIFEST).read_bytes():
                raise OSError(f"{MANIFEST} was read back with other bytes than were sent")
        except Damaged:
            self._left_out.add(step)
            return
        finally:
            self._sending = None
        self._there.add(step)
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        if self._newest is None or step > self._newest:
            self._newest, self._best = step, best

    def _send_small_files(self, with_rows: bool = True) -> None:
        """Metrics, config and code, each whole, and the run's state last. Before a manifest: who finds that finds them too."""
        for name, path in small_files(self._folder):
            if name == METRICS and not with_rows:
                continue
            try:
                found = path.stat()
                state = (found.st_mtime_ns, found.st_size)
                if self._small.get(name) == state:
                    continue
                self._store.send(name, path)
            except FileNotFoundError:
                if path.exists():
                    raise
                continue
            self._small[name] = state

    def _let_old_ones_go(self) -> None:
        """There too the newest `keep` stay, the milestones and the best; and what a send that was cut off has left goes."""
        if self._newest is None:
            return
        there = checkpoints_there(self._store.files())
        whole = steps_there(there)
        torn = [step for step in there if step not in whole and step < self._newest]
        for step in [*passing(whole, self._newest, self._keep, self._stays, self._best), *torn]:
            names = [name_there(step, file) for file in there[step]]
            self._store.remove(sorted(names, key=lambda name: name != name_there(step, MANIFEST)))
            self._left_out.add(step)

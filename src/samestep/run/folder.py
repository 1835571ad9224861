"""A run's folder and its one owner."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samestep.errors import Overtaken, SamestepError, TrainingError, UsageError
from samestep.run.cache import cached
from samestep.run.disk import is_synced, look_anew, make_durable, write_atomically
from samestep.run.names import check_name, no_such_run
from samestep.run.owner import lock, wait_for_lock
from samestep.run.paths import RunPaths
from samestep.run.store import Store, is_address

_DISCARDING_S = 5.0
_BEFORE_A_SAVE_S = 20.0  # until ranks that end have found out who of them saves


class RunFolder(RunPaths):
    """A run's folder: who owns it, what state it is in, and its starts."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock: int | None = None
        self._writing = threading.Lock()  # state.json is read and written by a saving thread too
        self._start: int | None = None
        self._made_here = False
        self.store: Store | None = None  # of a run that was given by its address, and of which this folder is a cache

    @classmethod
    def named(cls, runs: str, name: str) -> RunFolder:
        """The folder of a run called `name`; UsageError if that cannot be the name of a folder."""
        check_name(name)
        return cls(Path(runs) / name)

    @classmethod
    def found(cls, run: str, runs: str = "runs") -> RunFolder:
        """An existing run, given by its path, by its name under `runs`, or by its address in a store."""
        if is_address(run):
            path, store = cached(run)
            folder = cls(path)
            folder.store = store
            return folder
        with contextlib.suppress(OSError, ValueError):  # a name too long, or with a null in it
            for path in (Path(run), Path(runs) / run):
                if run and (path / "state.json").is_file():
                    return cls(path)
        raise no_such_run(run, runs)

    def failures(self) -> list[dict[str, Any]]:
        """What the failed ranks of the latest start wrote, first the one to blame, then in order of time."""
        found = [json.loads(path.read_text()) for path in self.logs.glob("rank-*.failure.json")]
        return sorted(found, key=lambda failure: (failure["victim"], failure["time"]))

    def refusal(self) -> list[str] | None:
        """The lines in which a rank of this start has refused the task or its data, if one has."""
        return next((failure["paragraph"].splitlines() for failure in self.failures() if failure.get("refusal")), None)

    def tidy(self) -> None:
        """A new start begins: what an earlier one died of is in its logs, and what it had half written is nothing."""
        for path in (*self.logs.glob("rank-*.failure.json"), *self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")):
            if path.is_file():  # checkpoints keep their own order
                path.unlink(missing_ok=True)

    def sync_metrics(self) -> None:
        """Make the rows durable: a checkpoint carries only the last few."""
        with contextlib.suppress(FileNotFoundError):
            make_durable(self.metrics)

    def make(self) -> None:
        """Make the folder if it is not there: nobody else may look in. Where the umask lets a group write, the group may."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o770)
        except FileExistsError:
            if not self.path.is_dir():
                raise
            return
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if not mode & stat.S_IWGRP:
            self.path.chmod(mode & ~stat.S_IRWXG)

    def create(self) -> None:
        self.make()
        self.logs.mkdir(exist_ok=True)

    def read_state(self) -> dict[str, Any]:
        """What state.json says; empty for a run that has none yet."""
        try:
            state = json.loads(self.state.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            state = None
        if not isinstance(state, dict):
            raise UsageError(f"{self.state}: found no state of a run in it; move the folder away, or restore the file")
        return state

    def write_state(self, **changes: Any) -> dict[str, Any]:
        """Lay changes over state.json. Only the owner calls this while a run is alive."""
        with self._writing:
            self.refuse_if_succeeded()
            state = {**self.read_state(), **changes, "time": time.time()}
            write_atomically(self.state, json.dumps(state, indent=1) + "\n")
        return state

    def patience_s(self, least_s: float) -> float:
        """How long to wait for ranks that were told to end: for the save under way, and for one more, as long as any so far."""
        with contextlib.suppress(UsageError, OSError):
            return max(least_s, _BEFORE_A_SAVE_S + 2 * float(self.read_state().get("saving_s") or 0.0))
        return least_s

    def next_start(self) -> int:
        """The number that the next start of this run will have, from 1."""
        return max((int(path.stem) for path in self.starts.glob("*.json") if path.stem.isdigit()), default=0) + 1

    def begin_start(self, number: int, facts: dict[str, Any]) -> None:
        """Take a start's number. Raises TrainingError if another process has taken it."""
        self.starts.mkdir(exist_ok=True)
        try:
            with (self.starts / f"{number:04d}.json").open("x") as file:
                file.write(json.dumps(facts, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise TrainingError(f"{self.path}: another process has begun start {number} of this run; this one ends") from None
        make_durable(self.starts)
        self.continue_start(number)

    @property
    def start(self) -> int:
        """The number of the start that this process belongs to, from 1; 0 before it belongs to any."""
        return self._start or 0

    def claim_save(self) -> bool:
        """Whether this process is the first of its start to ask: the one that saves when ranks cannot talk to each other."""
        try:
            (self.starts / f"{self.start:04d}.saved-by-a-survivor").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def continue_start(self, number: int) -> None:
        """Write from here on as part of start `number`, which another rank of it has begun."""
        self._start = number

    def has_begun(self) -> bool:
        """Whether the start that this process belongs to stands in the folder."""
        return self._start is not None and (self.starts / f"{self._start:04d}.json").exists()

    def refuse_if_succeeded(self) -> None:
        """Raise Overtaken if a later start owns the run: a node that was cut off may still have its disk."""
        if self._start is None:
            return
        look_anew(self.starts)
        if (self.starts / f"{self._start + 1:04d}.json").exists():
            raise Overtaken(f"{self.path}: start {self._start + 1} has taken this run over; start {self._start} writes no more")

    def take(self, host: str, job: str | None = None, is_asked_to_stop: Callable[[], bool] = lambda: False) -> list[str]:
        """Become the run's owner, waiting for a dying one; the kernel gives a dead owner's lock back.

        A POSIX lock is not inherited by loader processes, and works across machines wherever the file system locks. Returns
        what is to be told of a file system that lacks something.
        """
        lacks = []
        self._made_here = not self.path.exists()
        try:
            self.make()
            handle = os.open(self.path / ".owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"runs: {self.path} can't be written ({error.strerror}); write runs=FOLDER") from None
        try:
            wait_for_lock(handle, self.path, self.metrics, is_asked_to_stop)
        except SamestepError:
            os.close(handle)
            raise
        except OSError:
            lacks.append("has no locks: another start of this run would take it over, and end this one")
        os.ftruncate(handle, 0)
        words = f"pid {os.getpid()} on {host}{f' in job {job}' if job else ''} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        os.pwrite(handle, words.encode(), 0)
        self._lock = handle
        for folder in (self.path, self.starts, self.checkpoints):  # the start before may have been another machine's
            look_anew(folder)
        if not is_synced(self.path):
            lacks.append("does not sync folders: should its machine lose power, the newest checkpoint may be lost")
        return [f"the file system of {self.path} {words}" for words in lacks]

    def is_taken(self) -> bool:
        """Whether a living process owns the run."""
        with contextlib.suppress(OSError), (self.path / ".owner").open("r+b") as file:
            return not lock(file.fileno())
        return False

    def release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Leave nothing behind of a fresh start that was refused.

        The rank whose start made the folder removes it, and each other what it wrote there after that.
        """
        until = time.monotonic() + _DISCARDING_S
        while (self._made_here or not self.state.exists()) and self.path.exists() and time.monotonic() < until:
            shutil.rmtree(self.path, ignore_errors=True)
            time.sleep(0.01)

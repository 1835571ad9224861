"""What a start takes from the store that `checkpoint.copy` names, and what a run sends there."""

from __future__ import annotations

import time
from collections.abc import Callable

from samestep.checkpoint import Checkpoints
from samestep.checkpoint.bringing import PATIENCE_S, bring_newest
from samestep.checkpoint.copies import Copies, NoCopies
from samestep.config import Config
from samestep.control import StopFlag
from samestep.errors import Stopped, TrainingError, UsageError
from samestep.run.asking import words_of
from samestep.run.folder import RunFolder
from samestep.run.kept_elsewhere import bring_small_files, checkpoints_there, steps_there
from samestep.run.store import patiently, store_of
from samestep.runtime import Runtime

_GRACE_S = 25.0  # of the 30 s after which torchrun, a SLURM node or a container's keeper kills what it asked to end
_AT_THE_END_S = 600.0
_AFTER_A_FAULT_S = 20.0


class NoElsewhere:
    """No store is named."""

    notes: tuple[str, ...] = ()

    def bring_newest(self) -> list[str]:
        """Have the newest whole checkpoint here; returns why others were passed over."""
        return []


class Elsewhere(NoElsewhere):
    """The run in its store, as a start finds it: what this machine lacks of it, but for checkpoints, is here afterwards.

    Raises UsageError if the store cannot be opened, and where nothing is here to go on from also if it cannot be read or
    written.
    """

    def __init__(self, address: str, folder: RunFolder, has_checkpoints: bool) -> None:
        self._store, self._folder = store_of(address, folder.name, str(folder.path.parent)), folder
        try:
            self._names = list(patiently(self._store.files, PATIENCE_S))
            self._steps = steps_there(checkpoints_there(self._names))
            if self._steps:  # else what lies there is of a start that was refused before it had saved anything
                # Starts in any case: the number of this one must be the highest, or another disk's would seem to be newer.
                names = [name for name in self._names if not has_checkpoints or name.startswith("starts/")]
                bring_small_files(self._store, folder, names)
        except Exception as error:
            if not has_checkpoints:
                raise self._unread(error) from None
            self.notes = (f"WARNING: {self._store.address} {words_of(error)}; the run goes on from what is here",)
            self._names, self._steps = [], []
            return
        if not self._steps and not has_checkpoints:
            self._store.refuse_what_cannot_be_written(PATIENCE_S)

    def bring_newest(self) -> list[str]:
        if not self._steps:
            return []
        begun = time.monotonic()
        try:
            notes = bring_newest(self._store, self._folder, self._names)
        except TrainingError:  # of another format, say
            raise
        except Exception as error:
            raise self._unread(error) from None
        return [*notes, f"brought from {self._store.address} in {time.monotonic() - begun:.1f} s"]

    def _unread(self, error: Exception) -> UsageError:
        return UsageError(
            f"checkpoint.copy: {self._store.address} {words_of(error)}, and no checkpoint is here; mend that, or write "
            "checkpoint.copy=null to begin without what may be there"
        )


def look_elsewhere(config: Config, folder: RunFolder) -> NoElsewhere:
    """The run in the store that the config names, if it names one."""
    if config.checkpoint.address is None:
        return NoElsewhere()
    return Elsewhere(config.checkpoint.address, folder, bool(Checkpoints(folder, config.checkpoint.keep).all()))


def make_copies(config: Config, folder: RunFolder, stays: Callable[[int], bool], say: Callable[[str], None]) -> NoCopies:
    """What sends the run there, if the config names a store."""
    if config.checkpoint.address is None:
        return NoCopies()
    store = store_of(config.checkpoint.address, folder.name, str(folder.path.parent))
    return Copies(store, folder, config.checkpoint.keep, stays, say)


def patience_s(stop: StopFlag, runtime: Runtime, ended_by: BaseException | None) -> float:
    """How long a run that ends may wait for what is being sent: never longer than whoever asked it to end does."""
    limits = [_AT_THE_END_S if ended_by is None or isinstance(ended_by, Stopped) else _AFTER_A_FAULT_S]
    if stop.noticed_at is not None:
        limits.append(stop.noticed_at + _GRACE_S - time.monotonic())
    if runtime.ends_at is not None:
        limits.append(runtime.ends_at - _GRACE_S - time.time())
    return max(0.0, min(limits))

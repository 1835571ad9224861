"""A run that is given by its address in a store: what is small of it comes into a folder here, and is anew what it is there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from samestep.errors import UsageError
from samestep.run.asking import words_of
from samestep.run.kept_elsewhere import MANIFEST, bring_small_files, checkpoints_there, name_there, steps_there
from samestep.run.paths import RunPaths
from samestep.run.store import Store, patiently

_PATIENCE_S = 10.0
_VALUES = "values.json"  # of a checkpoint: which is the best


def cached(address: str) -> tuple[Path, Store]:
    """The folder here of a run there, with all but its checkpoints' tensors. Raises UsageError where there is no such run."""
    place, _, name = address.rstrip("/").rpartition("/")
    store = Store(place, name, "RUN")
    folder = RunPaths(_root() / hashlib.sha256(place.encode()).hexdigest()[:16] / name)
    try:
        names = list(patiently(store.files, _PATIENCE_S))
        if folder.state.name not in names:
            raise UsageError(f"{address}: found no such run; write the address of one, as PLACE/NAME")
        with alone_in(folder):
            bring_small_files(store, folder, names, again=True)
            _bring_checkpoints(store, folder, steps_there(checkpoints_there(names)))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{address} {words_of(error)}; write the address of a run that can be read from here") from None
    return folder.path, store


def _root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samestep"


@contextlib.contextmanager
def alone_in(folder: RunPaths) -> Iterator[None]:
    """Inside, no other process brings anything into the folder."""
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder.path / ".bringing").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _bring_checkpoints(store: Store, folder: RunPaths, steps: list[int]) -> None:
    for path in folder.checkpoints.glob("step-*"):
        if not path.name.removeprefix("step-").isdigit() or int(path.name.removeprefix("step-")) not in steps:
            shutil.rmtree(path)
    for step in steps:
        path, manifest = folder.checkpoint(step), store.read(name_there(step, MANIFEST))
        if not (path / MANIFEST).exists() or (path / MANIFEST).read_bytes() != manifest:
            shutil.rmtree(path, ignore_errors=True)
            store.bring(name_there(step, _VALUES), path / _VALUES)
            (path / MANIFEST).write_bytes(manifest)
        if (changed := store.changed_at(name_there(step, MANIFEST))) is not None:
            os.utime(path, (changed, changed))

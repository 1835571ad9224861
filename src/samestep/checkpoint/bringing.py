"""Checkpoints out of a store: none takes its name here before its sums were found right."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from samestep.checkpoint.reading import Damaged, manifest_of, verify
from samestep.errors import TrainingError, UsageError
from samestep.run.asking import words_of
from samestep.run.cache import alone_in
from samestep.run.disk import make_durable
from samestep.run.folder import RunFolder
from samestep.run.kept_elsewhere import MANIFEST, checkpoints_there, name_there, steps_there
from samestep.run.paths import RunPaths
from samestep.run.store import Store, patiently

PATIENCE_S = 30.0  # with a store that does not answer


def bring_checkpoint(store: Store, folder: RunPaths, step: int) -> None:
    """Have the checkpoint of a step here, in the place of one that is not whole.

    Raises Damaged if what is there is not whole, and what fsspec raises.
    """
    final = folder.checkpoint(step)
    aside = final.with_name(f".{final.name}.start-0.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _bring(store, step, MANIFEST, aside)
        for name in manifest_of(aside)["files"]:
            _bring(store, step, name, aside)
        verify(aside, from_disk=True)
        make_durable(aside)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        make_durable(folder.checkpoints)
    except Damaged as error:
        raise Damaged(str(error).replace(str(aside), f"{store.address}/checkpoints/{final.name}")) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _bring(store: Store, step: int, name: str, aside: Path) -> None:
    if Path(name).name != name:
        raise Damaged(f"{aside}: the manifest names no file of its own, {name!r}")
    try:
        patiently(functools.partial(store.bring, name_there(step, name), aside / name), PATIENCE_S)
    except FileNotFoundError:
        raise Damaged(f"{aside}: {name} is missing") from None


def have_whole(folder: RunFolder, step: int) -> None:
    """Have the whole of a checkpoint here where the run was given by its address, and the folder is a cache.

    Raises Damaged if what is there is not whole, and UsageError if it cannot be read.
    """
    if folder.store is None:
        return
    with alone_in(folder):
        try:
            verify(folder.checkpoint(step))
        except Damaged:
            try:
                bring_checkpoint(folder.store, folder, step)
            except TrainingError:
                raise
            except Exception as error:
                raise UsageError(f"{folder.store.address} {words_of(error)}; try again once it can be read") from None


def bring_newest(store: Store, folder: RunPaths, names: Iterable[str]) -> list[str]:
    """Have the newest checkpoint that is whole there here, and the best that it knows of; returns why others were passed over.

    Args:
        names: of what is there.
    """
    passed_over: list[str] = []
    steps = steps_there(checkpoints_there(names))
    for step in steps:
        try:
            bring_checkpoint(store, folder, step)
        except Damaged as error:
            passed_over.append(f"passed over {error}")
            continue
        best = json.loads((folder.checkpoint(step) / "values.json").read_text()).get("best_step")
        if best in steps and best != step:
            try:
                bring_checkpoint(store, folder, best)
            except Damaged as error:
                passed_over.append(f"WARNING: the best is lost: {error}")
        break
    return passed_over

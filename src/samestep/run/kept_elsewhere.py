"""What of a run lies in a store, under which names, and how its small files come back into a run's folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from samestep.run.paths import RunPaths
from samestep.run.store import Store

MANIFEST = "manifest.json"  # of a checkpoint, which is whole there once this is
METRICS = "metrics.jsonl"
_FIRST, _LAST = ("config.yaml", METRICS, "shown.txt"), "state.json"
_FOLDERS = ("starts", "sources")


def small_files(folder: RunPaths) -> list[tuple[str, Path]]:
    """A run's files beside its checkpoints, by their names below its folder: the state comes last."""
    found = [folder.path / name for name in _FIRST]
    for name in _FOLDERS:
        found += sorted(path for path in (folder.path / name).rglob("*") if path.is_file() and path.name[0] != ".")
    return [(path.relative_to(folder.path).as_posix(), path) for path in [*found, folder.state] if path.exists()]


def name_there(step: int, file: str) -> str:
    """The name of a checkpoint's file."""
    return f"checkpoints/step-{step:08d}/{file}"


def checkpoints_there(names: Iterable[str]) -> dict[int, list[str]]:
    """The files of each step's checkpoint, whole or not."""
    found: dict[int, list[str]] = {}
    for name in names:
        if parts := re.fullmatch(r"checkpoints/step-([0-9]{8,18})/([^/]+)", name):
            found.setdefault(int(parts[1]), []).append(parts[2])
    return found


def steps_there(checkpoints: dict[int, list[str]]) -> list[int]:
    """The steps of those that are whole, newest first."""
    return sorted((step for step, files in checkpoints.items() if MANIFEST in files), reverse=True)


def bring_small_files(store: Store, folder: RunPaths, names: Iterable[str], again: bool = False) -> None:
    """Have a run's small files here, the state last.

    Args:
        names: of what is there.
        again: also those that are here already.
    """
    wanted = [name for name in names if name in _FIRST or name.partition("/")[0] in _FOLDERS]
    for name in [*sorted(wanted), *({_LAST} & set(names))]:
        to = folder.path / name
        if again or not to.exists():
            aside = to.with_name(f".{to.name}.tmp")
            store.bring(name, aside)
            aside.rename(to)

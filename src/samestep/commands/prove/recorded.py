"""A run's folder as a proof sees it: what is kept of the run, and which stretches of it can be trained here."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samestep.commands.pinned import differing, listed
from samestep.commands.prove.record import Kept, Proof, record
from samestep.commands.prove.stretches import Stretch, stretches_between
from samestep.config import Config, maths
from samestep.errors import TrainingError, UsageError
from samestep.run import snapshot
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import Row, parsed
from samestep.runtime import prepare_environment, read_runtime


class Recorded:
    """Nothing is written into the folder. Raises UsageError, before torch is imported, where there is nothing to prove."""

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder, self.config, self.name = folder, config, folder.path.resolve().name
        if (size := read_runtime().world_size) > 1:
            raise UsageError(f"prove: found {size} processes; it trains on one, start it without a launcher")
        if config.reduce == "fast":
            raise UsageError(
                f"{self.name}: has reduce: fast, whose bits hang on the processes there were; nothing can be proved"
            )
        if folder.is_taken():
            raise UsageError(f"{folder.path}: this run is being trained; let it end, or stop it")
        self.state = folder.read_state()
        self.parent: dict[str, Any] | None = self.state.get("parent")
        self.origin: int = self.parent["step"] if self.parent else 0
        self.rows = _rows(folder)
        names = (path.name.removeprefix("step-") for path in folder.checkpoints.glob("step-*"))
        self.steps = sorted(int(name) for name in names if name.isdigit() and int(name) >= max(1, self.origin))
        self.stretches = stretches_between(self.steps, self.origin)
        if not self.stretches:
            raise UsageError(f"{folder.path}: found no checkpoint to train to; let the run train on")
        self._kept: dict[int, Kept] = {}
        sys.dont_write_bytecode = True  # of the task's file, where that is the run's own copy

    @property
    def num_steps(self) -> int:
        """From its beginning to its last checkpoint."""
        return self.steps[-1] - self.origin

    def along(self, steps: Sequence[int]) -> Proof:
        """The run as it stands, by these of its checkpoints. Raises TrainingError for what does not fit together."""
        from samestep.commands.prove.training import read_kept

        for step in steps:
            if step not in self._kept:
                self._kept[step] = read_kept(self.folder.checkpoints / f"step-{step:08d}")
        kept = [self._kept[step] for step in steps]
        weights, last = self.state.get("weights"), kept[-1]
        if weights and last.step == self.state["step"] and weights != last.weights:
            raise TrainingError(
                f"{self.name}: the checkpoint of step {last.step} is not the run's last: its weights are {last.weights[:16]}…, "
                f"and state.json has {weights[:16]}…"
            )
        parent = self.parent and {key: self.parent[key] for key in ("run", "step")}
        made_of = {"run": self.name, "parent": parent, "code": self.state["code"], "config": maths(self.config)}
        return record(made_of, kept, self.rows)

    def of_this_kind(self) -> tuple[list[Stretch], dict[str, str], list[str]]:
        """The stretches that were trained on this kind of device, this kind, and in what others were on another."""
        from samestep.runtime.device_kind import differences
        from samestep.session import make_accelerator
        from samestep.session.kind import kind_of

        prepare_environment(read_runtime(), self.config.threads)
        kind = kind_of(make_accelerator(self.config).device)
        parted = {stretch: differences(self._kept[stretch.last].kind, kind) for stretch in self.stretches}
        others = list(dict.fromkeys(line for lines in parted.values() for line in lines))
        found = [stretch for stretch, lines in parted.items() if not lines]
        if not found:
            raise UsageError(
                f"{self.name}: was trained on another kind of device ({listed(others)}), whose bits are others; prove it on "
                "one of that kind"
            )
        return found, kind, others

    def code_here(self) -> tuple[dict[str, str], list[str]]:
        """The code that is here, and the files of it that are not as the run has them."""
        from samestep.commands.load import task_of

        task = task_of(self.folder, self.config)
        code = snapshot.versions(task)
        if Path(inspect.getfile(type(task))).resolve().is_relative_to(self.folder.sources.resolve()):
            code = {**self.state["code"], "samestep": code["samestep"]}
        return code, differing(self.state["code"], code)

    def starts_within(self, stretch: Stretch) -> list[int]:
        """The steps from which starts of the run went on inside a stretch: their checkpoints are not kept."""
        found = set()
        for path in self.folder.starts.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found.add(int(json.loads(path.read_text())["resumed_from"]))
        return sorted(step for step in found if stretch.first < step < stretch.last)


def _rows(folder: RunFolder) -> list[Row]:
    """All rows of a run. Raises UsageError for a line that is none."""
    if not folder.metrics.exists():
        raise UsageError(f"{folder.metrics}: found no rows of the run there; restore the file")
    found = []
    lines = folder.metrics.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        row = parsed(line)
        if isinstance(row, dict) and type(row.get("step")) is int:
            found.append(row)
        elif row is not None or number < len(lines):  # the last may be half a row of a killed process
            raise UsageError(f"{folder.metrics}: line {number} is no row of a run; restore the file")
    return found

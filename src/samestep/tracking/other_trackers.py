"""The trackers that `track.also` names: TensorBoard, trackio, or a class of the user's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from samestep.errors import UsageError
from samestep.run.metric_rows import Row
from samestep.task.loading import load_module
from samestep.tracking.background import RunInfo, Sink


class TensorBoard:
    """Event files in the run folder; what a killed start had recorded of steps that come again is purged there."""

    def __init__(self, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds

        self._folder = run.path / "tensorboard"
        self._writer = SummaryWriter(str(self._folder), purge_step=run.first_step)
        for row in run.rows(since=run.first_step):
            self.row(row)

    def row(self, values: Row) -> None:
        for key, value in _numbers(values).items():
            self._writer.add_scalar(key, value, values["step"], values.get("time"))
        if "shown" in values:
            self._writer.add_text("shown", values["shown"], values["step"])
        self._writer.flush()  # a kill leaves no time for it

    def close(self) -> str:
        self._writer.close()
        return f"tensorboard --logdir {self._folder}"


class Trackio:
    """A run of trackio's own, under `track.project`."""

    def __init__(self, run: RunInfo) -> None:
        import trackio

        project = run.config["track"]["project"]
        self._run = trackio.init(project=project, name=run.name, group=run.group, config=run.config, resume="allow")

    def row(self, values: Row) -> None:
        self._run.log(_numbers(values), step=values["step"])

    def close(self) -> None:
        self._run.finish()


def _numbers(values: Row) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, (int, float)) and key not in ("step", "time")}


_KNOWN: dict[str, Callable[[RunInfo], Sink]] = {"tensorboard": TensorBoard, "trackio": Trackio}


def find_tracker(name: str) -> Callable[[RunInfo], Sink]:
    """The class that a word of `track.also` names. Raises UsageError where its package or the class is missing."""
    if name in _KNOWN:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"track.also: {name} is not installed here; write pip install {name}, or leave it out")
        return _KNOWN[name]
    place, _, class_name = name.rpartition(":")
    try:
        found: Callable[[RunInfo], Sink] | None = getattr(load_module(place), class_name, None)
    except UsageError as error:
        raise UsageError(*(f"track.also: {line.removeprefix('task: ')}" for line in error.lines)) from None
    if found is None or not (hasattr(found, "row") and hasattr(found, "close")):
        raise UsageError(f"track.also: found {name!r}; write a class that has the methods row and close")
    return found

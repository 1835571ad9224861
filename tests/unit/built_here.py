"""A training built in this process, for tests that look into one."""

from __future__ import annotations

from conftest import ROOT
from samestep.config import load_config
from samestep.control import StopFlag
from samestep.loop import Training
from samestep.run.metric_rows import Row
from samestep.runtime import read_runtime
from samestep.session import Plans, build, make_accelerator
from samestep.task import Task
from samestep.task.loading import load_task
from samestep.tracking import NullTracker


class Noting(NullTracker):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines += text.splitlines()

    def step(self, row: Row, weight: float) -> None:
        super().step(row, weight)
        self.rows.append(row)


def built(tracker: NullTracker, *words: str, task: Task | None = None) -> Training:
    config, _ = load_config(ROOT / "configs/seed.yaml", ["device=cpu", "epochs=null", "steps=12", "track.every=1", *words])
    task = task or load_task(config.task, config.fields)
    plans = Plans(task, make_accelerator(config), read_runtime(), StopFlag(), None, ["here"])
    return build(config, plans, lambda steps: tracker)

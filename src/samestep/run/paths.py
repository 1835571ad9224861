"""The one place that knows where a run keeps what."""

from __future__ import annotations

from pathlib import Path


class RunPaths:
    """Every path of a run, below its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def printed(self) -> Path:  # outside of a job, whose output the scheduler keeps
        return self.path / "log.txt"

    @property
    def starts(self) -> Path:
        return self.path / "starts"

    @property
    def sources(self) -> Path:
        return self.path / "sources"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def profile(self, step: int) -> Path:  # of the steps from this one on
        return self.path / "profile" / f"step-{step:08d}.json.gz"

    @property
    def shown(self) -> Path:
        return self.path / "shown.txt"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank:04d}.log"

    def failure(self, rank: int) -> Path:
        return self.logs / f"rank-{rank:04d}.failure.json"

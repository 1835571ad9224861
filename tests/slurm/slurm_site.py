"""A cluster for the tests of this folder, and a place to submit from."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster, missing

from conftest import ROOT, Workplace
from samestep.run.metric_rows import timeless

TASKS = ROOT / "tests/chaos/chaos_tasks.py"
LACKING = missing()
CASE = (
    f"task: {TASKS}:Slow\nwith: {{pause_s: PAUSE}}\nglobal_batch_size: 32\nmicro_batch_size: 4\nsteps: STEPS\n"
    "optimizer: {name: adamw, lr: 1e-2}\nschedule: {name: cosine, warmup: WARMUP, floor: 0.1}\nclip: 0.5\n"
    "evaluate: {every: 50}\ncheckpoint: {every: 40}\ntrack: {every: 1, wandb: offline}\n"
)


def config(steps: int, pause: float) -> str:
    """Dropout, a clip that clips, and a rate that is never the same twice: whatever a resume gets wrong is seen."""
    return CASE.replace("PAUSE", str(pause)).replace("STEPS", str(steps)).replace("WARMUP", str(max(1, steps // 5)))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if LACKING:
        pytest.skip(f"no SLURM here ({', '.join(LACKING)} missing); bash tests/slurm/install.sh installs it")
    made = Cluster(tmp_path_factory.mktemp("cluster") / "slurm", slurmd_timeout=40)
    try:
        made.up()
        yield made
    finally:
        made.down()


@functools.cache
def unbroken(pause: float, steps: int) -> tuple[str, list[Any]]:
    """The weights and rows of the same config in one process, without a pause and undisturbed."""
    folder = Path(os.environ["PYTEST_UNBROKEN"])
    whole = Workplace(folder)
    whole.write("case.yaml", config(steps, 0))
    done = whole.train("case.yaml", "--run", f"whole-{steps}", "track.wandb=off", timeout=1800)
    assert done.code == 0, done.err
    return done.weights, all_timeless(whole.metrics(f"whole-{steps}"))


def all_timeless(rows: list[dict[str, Any]]) -> list[Any]:
    return sorted(map(timeless, rows), key=str)


class Site(Workplace):
    """A folder that every node has, and the scheduler's commands."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        super().__init__(path)
        self.cluster = cluster
        self.env["SLURM_CONF"] = str(cluster.config)
        del self.env["CUDA_VISIBLE_DEVICES"]

    def case(self, steps: int = 60, pause: float = 0.02, more: str = "") -> None:
        self.pause, self.steps = pause, steps
        self.write("case.yaml", config(steps, pause) + more)

    def sbatch(self, *words: str, script: str = "train.sbatch", time_limit: int = 10) -> str:
        """Submit `case.yaml`; options of sbatch's come first, then what the script is given after `--`."""
        options, _, rest = " ".join(words).partition(" -- ") if " -- " in " ".join(words) else (" ".join(words), "", "")
        line = ["sbatch", "--parsable", "--output=out-%j.txt", f"--time={time_limit}", *options.split()]
        done = self.command(*line, str(ROOT / "slurm" / script), "case.yaml", *rest.split())
        assert done.code == 0, done.err
        return done.out.strip()

    def shown(self, job: str, field: str) -> str:
        found = re.search(rf"\b{field}=(\S*)", self.cluster.ask("scontrol", "show", "job", job))
        return found[1] if found else ""

    def out(self, job: str) -> str:
        path = self.path / f"out-{job}.txt"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, until: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, self.out(job) + self.cluster.ask("squeue")
            time.sleep(0.1)

    def rows(self, run: str) -> int:
        path = self.path / "runs" / run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for_rows(self, job: str, number: int, run: str | None = None, seconds: float = 120) -> None:
        self.wait(job, lambda: self.rows(run or f"case-{job}") >= number, seconds)

    def finish(self, job: str, state: str = "COMPLETED", seconds: float = 240) -> str:
        """Wait for the job's end, hurrying it through the queue; returns what it printed."""

        def ended() -> bool:
            now = self.shown(job, "JobState")
            if now == "PENDING":
                self.cluster.ask("scontrol", "update", f"job={job}", "StartTime=now")
                time.sleep(1)
            return now in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        self.wait(job, ended, seconds)
        found = self.shown(job, "JobState")
        assert found == state, f"{found}\n{self.out(job)}"
        return self.out(job)

    def check(self, run: str) -> dict[str, Any]:
        """The run is done, with an unbroken single process's weights, and each step stands once. Returns its state."""
        weights, rows = unbroken(0, self.steps)
        state = self.state(run)
        assert state["status"] == "done"
        assert state["weights"] == weights
        assert all_timeless(self.metrics(run)) == rows
        assert len({path.name.rpartition("-")[2] for path in (self.path / "runs" / run / "wandb").glob("offline-run-*")}) == 1
        left = [path for path in (self.path / "runs").rglob("*") if ".tmp" in path.name or path.name.startswith(".samestep-")]
        assert not left
        return state

    def processes(self, job: str) -> list[psutil.Process]:
        """The job's, on all nodes; another cluster's job may have the same number."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                env = process.environ()
                if (env.get("SLURM_JOB_ID"), env.get("SLURM_CONF")) == (job, self.env["SLURM_CONF"]):
                    found.append(process)
        return found

    def ranks(self, job: str) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error, OSError):
            return [process for process in self.processes(job) if "RANK" in process.environ() and "train" in process.cmdline()]
        return self.ranks(job)  # one has ended meanwhile

    def starts(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.path / "runs" / run / "starts").glob("*.json"))]


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    whole = cluster.folder.parent / "whole"
    whole.mkdir(exist_ok=True)
    monkeypatch.setenv("PYTEST_UNBROKEN", str(whole))
    made = Site(tmp_path, cluster)
    yield made
    for line in cluster.ask("squeue", "-h", "-o", "%A").split():
        cluster.ask("scancel", "--signal=KILL", "--full", line)
        cluster.ask("scancel", line)
    for node in ("n1", "n2", "n3", "n4"):
        if not (cluster.folder / f"{node}.pid").exists():
            cluster.revive(node)
        cluster.heal(node)
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")  # one that was cut off is down until it reports
    cluster.wait_idle(240)
    shutil.rmtree(tmp_path, ignore_errors=True)

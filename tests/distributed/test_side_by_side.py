"""A sweep on one machine: several runs at once, stopped and gone on with as one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conftest import Workplace
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import last_rows

TASK = """
import os
from pathlib import Path
from samestep.tasks.regression import Regression

class Mine(Regression):
    breaks: bool = False

    def loss(self, model, batch):
        if self.breaks and not Path("mended").exists():
            raise ValueError("it breaks")
        return super().loss(model, batch)

    def show(self, model):
        return f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.environ['WANDB_RUN_GROUP']}"
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 8
micro_batch_size: 4
steps: 3
optimizer: {name: sgd, lr: 1e-3}
track: {every: 1, wandb: 'off'}
"""


@pytest.fixture
def mine(workplace: Workplace) -> Workplace:
    workplace.write("mine.py", TASK)
    workplace.write("mine.yaml", CONFIG)
    return workplace


def starts(workplace: Workplace, run: str) -> int:
    return len(list((workplace.path / "runs" / run / "starts").glob("*.json")))


@pytest.mark.timeout(300)
def test_runs_go_side_by_side_and_the_same_line_tries_what_failed_alone(mine: Workplace) -> None:
    mine.write("grid.yaml", "optimizer.lr: [1e-3, 1e-2]\nwith.breaks: [false, true]\n")
    mine.env["CUDA_VISIBLE_DEVICES"] = "5,7"
    line = ("sweep", "mine.yaml", "grid.yaml", "processes=1")
    good, bad = ([f"mine-grid-lr={lr},breaks={breaks}" for lr in ("0.001", "0.01")] for breaks in ("false", "true"))
    listed = mine.samestep(*line, "--dry-run")
    assert listed.out.startswith("4 runs, 0 done already; 2 at once, for 2 GPUs; --jobs N says otherwise\n")
    assert f"waiting  samestep launch mine.yaml --run {bad[1]} --processes 1 optimizer.lr=0.01 with.breaks=true" in listed.out
    assert not (mine.path / "runs").exists()

    first = mine.samestep(*line)
    assert (first.code, first.err) == (1, "samestep: 2 of 4 runs failed; the same line tries them again\n")
    assert {(mine.path / "runs" / run / "shown.txt").read_text() for run in good} <= {"5 mine-grid", "7 mine-grid"}
    for run in bad:
        assert re.search(
            rf"^failed: {run}: rank 0 on \S+: ValueError: it breaks, at .*; it printed runs/{run}/log.txt$", first.out, re.M
        )
    for run in good:
        loss = mine.metrics(run)[-1]["loss"]
        assert re.search(rf"^{run} +[\d.]+ +false +done +3/3 +{loss:.5g}$", first.out, re.M), first.out
    assert "\nnext: samestep report runs/mine-grid-*\n" in first.out

    (mine.path / "mended").touch()
    again = mine.samestep(*line)
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("4 runs, 2 done already; ")
    assert [starts(mine, run) for run in (*good, *bad)] == [1, 1, 2, 2]


def until_rows(workplace: Workplace, runs: list[str], number: int) -> None:
    """Until each run has taken steps in its start of that number."""
    deadline = time.monotonic() + 120
    folders = [RunFolder(workplace.path / "runs" / run) for run in runs]
    before = {folder.path: folder.read_state().get("step", 0) for folder in folders}
    for folder in folders:
        while not (
            folder.next_start() > number and last_rows(folder, 1) and last_rows(folder, 1)[0]["step"] > before[folder.path]
        ):
            assert time.monotonic() < deadline, "the runs did not start"
            time.sleep(0.1)


def begun(workplace: Workplace, runs: list[str], number: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    words = ["sweep", "mine.yaml", "points.txt", "--jobs", "2", "--name", "long", "steps=1000000000"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "samestep", *words], cwd=workplace.path, env=workplace.env, stdout=subprocess.PIPE, text=True
    )
    until_rows(workplace, runs, number)
    return sweep, psutil.Process(sweep.pid).children(recursive=True)


@pytest.mark.timeout(400)
def test_ctrl_c_stops_and_saves_all_and_a_killed_sweep_leaves_nobody_behind(mine: Workplace) -> None:
    mine.write("points.txt", "optimizer.lr=1e-3\noptimizer.lr=1e-4 processes=2\noptimizer.lr=1e-5\n")
    runs = ["long-lr=1e-3", "long-lr=1e-4,processes=2"]
    sweep, children = begun(mine, runs, 1)
    sweep.send_signal(signal.SIGINT)
    out, _ = sweep.communicate(timeout=100)
    assert sweep.returncode == 75
    assert "0 of 3 done, 1 waiting, 2 stopped" in out
    assert not psutil.wait_procs(children, timeout=1)[1]
    for run in runs:
        assert mine.state(run)["reason"].endswith(f"saved; the same line with --run {run} goes on")
    assert not (mine.path / "runs/long-lr=1e-5").exists()

    sweep, children = begun(mine, runs, 2)
    sweep.kill()
    sweep.communicate(timeout=100)
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert [mine.state(run)["status"] for run in runs] == ["stopped", "stopped"]
    assert all(Path(mine.path / f"runs/{run}/checkpoints/step-{mine.state(run)['step']:08d}").exists() for run in runs)

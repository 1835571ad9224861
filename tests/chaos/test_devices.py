"""A main thread that waits for its device, in C: what is finished is saved all the same, and nothing else ever is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from test_disks import wait_for_rows
from test_kills import check_traces, start

from conftest import Workplace

TASKS = Path(__file__).parent / "device_tasks.py"


def config(workplace: Workplace, where: str, fault: str = "die", more: str = "") -> str:
    """A run of 40 steps whose rank 1 of 2 does `fault` in its 12th; returns an unbroken run's weights."""
    workplace.env["PYTHONPATH"] = os.pathsep.join([str(TASKS.parent), *filter(None, [workplace.env.get("PYTHONPATH")])])
    workplace.write(
        "case.yaml",
        f"task: {TASKS}:OnDevice\n"
        f"with: {{fault: {fault}, where: {where}, mark: {workplace.path}/mark, calls_before: 23}}\n"
        "global_batch_size: 32\nmicro_batch_size: 8\nsteps: 40\noptimizer: {name: adamw, lr: 1e-2}\n"
        f"evaluate: {{every: 13}}\ntrack: {{every: 1, wandb: 'off'}}\naudit: false\n{more}",
    )
    marks = [workplace.path / f"mark-{rank}" for rank in (0, 1)]
    for mark in marks:
        mark.touch()
    whole = workplace.train("case.yaml", "--run", "whole")
    for mark in marks:
        mark.unlink()
    return whole.weights


@pytest.mark.parametrize("where", ["meeting", "launch", "kernel"])
def test_a_death_while_the_other_waits_for_its_device_loses_no_finished_step(workplace: Workplace, where: str) -> None:
    weights = config(workplace, where)
    died = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert died.code == 1
    assert "has saved step 11: no finished step is lost" in died.out
    assert "rank 1 on" in str(workplace.state("killed")["reason"])
    again = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert "resumed from step 11" in again.out
    assert again.weights == weights, again.err
    check_traces(workplace, "killed", "whole")


def test_a_stop_that_a_waiting_main_thread_cannot_hear_loses_no_finished_step(workplace: Workplace) -> None:
    weights = config(workplace, "kernel", fault="none")
    launcher = start(workplace, 2)
    wait_for_rows(workplace, 11)
    launcher.send_signal(signal.SIGTERM)  # torchrun hands it on, and kills 30 s later
    launcher.wait(60)
    assert "has saved step 11: no finished step is lost" in (workplace.path / "out").read_text()
    assert workplace.state("killed")["status"] == "stopped"
    assert "stopped by SIGTERM in a step that took too long" in workplace.state("killed")["reason"]
    again = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert "resumed from step 11" in again.out
    assert again.weights == weights, again.err
    check_traces(workplace, "killed", "whole")

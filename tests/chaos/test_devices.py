"""A main thread that waits for its device, in C: what is finished is saved all the same, and nothing else ever is."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from test_kills import start

from conftest import Workplace

TASKS = Path(__file__).parent / "device_tasks.py"
pytestmark = pytest.mark.timeout(600)


def config(workplace: Workplace, where: str, fault: str) -> None:
    """A run of 40 steps whose rank 1 of 2 does `fault` in its 12th, while rank 0 waits `where` it is said."""
    workplace.env["PYTHONPATH"] = os.pathsep.join([str(TASKS.parent), *filter(None, [workplace.env.get("PYTHONPATH")])])
    workplace.write(
        "case.yaml",
        f"task: {TASKS}:OnDevice\n"
        f"with: {{fault: {fault}, where: {where}, mark: {workplace.path}/mark, calls_before: 23}}\n"
        "global_batch_size: 32\nmicro_batch_size: 8\nsteps: 40\noptimizer: {name: adamw, lr: 1e-2}\n"
        "evaluate: {every: 13}\ntrack: {every: 1, wandb: 'off'}\naudit: false\n",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of an unbroken run."""
    workplace = Workplace(tmp_path_factory.mktemp("whole"))
    config(workplace, "meeting", "none")
    return workplace.train("case.yaml", "--run", "whole").weights


def check_resumed(workplace: Workplace, whole: str) -> None:
    again = workplace.train("case.yaml", "--run", "killed")
    assert "resumed from step 11" in again.out
    assert again.weights == whole, again.err
    steps = [row["step"] for row in workplace.metrics("killed") if "loss" in row]
    assert steps == list(range(1, 41))


@pytest.mark.parametrize("where", ["meeting", "launch", "kernel"])
def test_a_death_while_the_other_waits_for_its_device_loses_no_finished_step(
    workplace: Workplace, whole: str, where: str
) -> None:
    config(workplace, where, "die")
    died = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert died.code == 1
    assert "has saved step 11: no finished step is lost" in died.out, died.err
    assert "rank 1 on" in str(workplace.state("killed")["reason"])
    check_resumed(workplace, whole)


def test_a_stop_that_a_waiting_main_thread_cannot_hear_loses_no_finished_step(workplace: Workplace, whole: str) -> None:
    config(workplace, "kernel", "none")
    launcher = start(workplace, 2)
    while not (workplace.path / "mark-0").exists():
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)  # torchrun hands it on, and kills 30 s later
    launcher.wait(200)
    assert "has saved step 11: no finished step is lost" in (workplace.path / "out").read_text()
    assert workplace.state("killed")["status"] == "stopped"
    assert "stopped by SIGTERM in a step that took too long" in workplace.state("killed")["reason"]
    check_resumed(workplace, whole)


def test_one_process_whose_device_hangs_saves_what_is_finished_before_it_ends(workplace: Workplace) -> None:
    config(workplace, "kernel", "none")
    hung = workplace.train("case.yaml", "--run", "killed", "watchdog=2")  # four micro-batches a step: it is in the sixth
    assert hung.code == 1
    assert "rank 0 has saved step 5: no finished step is lost" in hung.out, hung.err
    assert "has been computing in step 6" in workplace.state("killed")["reason"]
    assert hung.err.count("has been computing in step 6") == 1

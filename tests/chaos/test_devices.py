"""A main thread that waits for its device, in C: what is finished is saved all the same, and nothing else ever is."""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from test_kills import alive, ranks_of, start

from conftest import Workplace

TASKS = Path(__file__).parent / "device_tasks.py"
pytestmark = pytest.mark.timeout(600)


def config(workplace: Workplace, where: str, fault: str, calls_before: int = 23) -> None:
    """A run of 40 steps whose rank 1 of 2 does `fault`, in its 12th by default, while rank 0 waits `where` it is said."""
    workplace.env["PYTHONPATH"] = os.pathsep.join([str(TASKS.parent), *filter(None, [workplace.env.get("PYTHONPATH")])])
    workplace.write(
        "case.yaml",
        f"task: {TASKS}:OnDevice\n"
        f"with: {{fault: {fault}, where: {where}, mark: {workplace.path}/mark, calls_before: {calls_before}}}\n"
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


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(8))
def test_two_hundred_drawn_faults_lose_no_finished_step(tmp_path: Path, whole: str, seed: int) -> None:
    """25 each: a death, a stop or a device that hangs, at a drawn moment, wherever the other waits for its device then."""
    rng, done = random.Random(seed), collections.Counter[str]()
    for number in range(25):
        (tmp_path / str(number)).mkdir()
        workplace = Workplace(tmp_path / str(number))
        fault, where = rng.choice(["die", "die", "stop", "hang"]), rng.choice(["meeting", "launch", "kernel"])
        calls = rng.randint(2, 78)
        config(workplace, where if fault == "die" else "kernel", "die" if fault == "die" else "none", calls)
        launcher = start(workplace, 2, *(["watchdog=3"] if fault == "hang" else []))
        ranks: list[psutil.Process] = []
        while launcher.poll() is None:
            ranks = ranks_of(launcher) or ranks
            if fault == "stop" and (workplace.path / "mark-0").exists():
                launcher.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        launcher.wait(200)
        assert not [rank for rank in psutil.wait_procs(ranks, timeout=20)[1] if alive(rank)]
        said = (workplace.path / "out").read_text()
        reached = max([row["step"] for row in workplace.metrics("killed") if "loss" in row], default=0)
        reason = str(workplace.state("killed")["reason"])
        culprit = {"die": "rank 1 on", "stop": "stopped by SIGTERM", "hang": "rank 0 on"}[fault]
        told = culprit in reason or (fault == "die" and "Connection closed by peer" in reason)  # in an evaluation gloo says it
        assert told, f"seed {seed}, {number}: {fault} in {where} at {calls}: {reason}\n{said}"
        for rank in range(2):  # who died first has not come to its own fault: it is over now
            (workplace.path / f"mark-{rank}").touch()
        again = workplace.train("case.yaml", "--run", "killed", processes=rng.choice([1, 2]))
        begun = json.loads((workplace.path / "runs/killed/starts/0002.json").read_text())["resumed_from"]
        assert begun >= reached, f"seed {seed}, {number}: {fault} in {where} at {calls}: {reached} reached\n{said}"
        assert again.weights == whole, again.err
        assert [row["step"] for row in workplace.metrics("killed") if "loss" in row] == list(range(1, 41))
        shutil.rmtree(workplace.path)
        done[f"{fault} in {where}" if fault == "die" else fault] += 1
    print(f"\n| seed {seed} |", dict(done), flush=True)

"""Faults at chosen moments: the first step, an evaluation, a save, the clock; and a start that another has overtaken."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_disks import begin, rows, wait_for_rows
from test_kills import SLOW, check_traces, start

from conftest import Workplace

TASKS = Path(__file__).parent / "chaos_tasks.py"


def doomed(workplace: Workplace, moments: list[str], number: int = signal.SIGKILL, more: str = "", steps: int = 90) -> str:
    """Write a config whose processes end themselves at these moments; returns an unbroken run's weights."""
    marks = workplace.path / "marks"
    marks.mkdir()
    fields = f"with: {{moments: {json.dumps(moments)}, marks: {marks}, signal: {int(number)}{more}}}\n"
    workplace.write(
        "case.yaml", SLOW.replace("Slow\n", f"Doomed\n{fields}").replace("steps: 90", f"steps: {steps}\naudit: false")
    )
    for place in range(len(moments)):
        (marks / str(place)).touch()
    whole = workplace.train("case.yaml", "--run", "whole")
    assert whole.code == 0, whole.err
    for mark in marks.iterdir():
        mark.unlink()
    return whole.weights


@pytest.mark.parametrize(
    "moments",
    [["train 1"], ["eval 2"], ["train 75", "train 9"], ["eval 4", "eval 1", "train 3"]],
    ids=["in the first step", "in an evaluation", "twice in one epoch", "in one evaluation twice, and soon after"],
)
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_kill_at_a_chosen_moment_changes_nothing(workplace: Workplace, moments: list[str], processes: int) -> None:
    weights = doomed(workplace, moments)
    for _ in range(len(moments) * processes + 1):
        done = workplace.train("case.yaml", "--run", "killed", processes=processes)
        if done.code == 0:
            break
    assert done.weights == weights, done.err
    assert len(list((workplace.path / "marks").iterdir())) == len(moments)
    check_traces(workplace, "killed", "whole")


def test_a_kill_in_the_middle_of_a_save_changes_nothing(workplace: Workplace) -> None:
    weights = doomed(workplace, [], more=", width: 150000", steps=28)
    caught = False
    for _ in range(3):
        run = begin(workplace)
        checkpoints = workplace.path / "runs/killed/checkpoints"
        while run.poll() is None and not list(checkpoints.glob(f".step-*.{run.pid}.tmp")):
            time.sleep(0.001)
        run.kill()
        run.communicate(timeout=30)
        caught = caught or bool(list(checkpoints.glob(f".step-*.{run.pid}.tmp")))
        if caught:
            break
    assert caught
    done = workplace.train("case.yaml", "--run", "killed")
    assert done.weights == weights
    check_traces(workplace, "killed", "whole")


def test_rank_0s_death_in_the_last_save_loses_nothing(workplace: Workplace) -> None:
    weights = doomed(workplace, [], more=", width: 150000", steps=6)
    launcher = start(workplace, 2)
    checkpoints = workplace.path / "runs/killed/checkpoints"
    while launcher.poll() is None and not (saving := list(checkpoints.glob(".step-*.tmp"))):
        time.sleep(0.001)
    os.kill(int(saving[0].name.split(".")[-2]), signal.SIGKILL)
    assert launcher.wait(60) == 1
    assert "rank 1 has saved step 6: no finished step is lost" in (workplace.path / "out").read_text()
    assert workplace.state("killed")["status"] == "failed"
    done = workplace.train("case.yaml", "--run", "killed")
    assert "resumed from step 6" in done.out
    assert done.weights == weights
    check_traces(workplace, "killed", "whole")


def test_a_mistake_that_shows_late_costs_no_finished_step(workplace: Workplace) -> None:
    workplace.write("late.py", LATE)
    workplace.write(
        "case.yaml", SLOW.replace(f"{TASKS}:Slow", "late.py:Late").replace("every: 7", "every: 1000") + "audit: false\n"
    )
    for began_at, code in (("fresh", 1), ("resumed from step 59", 2)):
        done = workplace.train("case.yaml", "--run", "late")
        assert done.code == code
        assert done.out.startswith(began_at)
        assert "task: loss returned a tensor of shape ()" in done.err
        assert workplace.state("late")["step"] == 59
        assert workplace.state("late")["status"] == "failed"


LATE = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(TASKS.parent)!r})
from chaos_tasks import Slow


class Late(Slow):
    _calls: int = 0

    def loss(self, model, batch):
        self._calls += model.training
        loss, weight = super().loss(model, batch)
        is_late = self._calls > 4 * 59 or len(list(Path("runs/late").glob("starts/*"))) > 1
        return loss if is_late and model.training else (loss, weight)
"""


@pytest.mark.parametrize("steps", [90, 26], ids=["early", "at the last step"])
def test_a_converged_run_that_died_before_its_end_trains_no_further(workplace: Workplace, steps: int) -> None:
    converge = "converge: {metric: loss, goal: min, patience: 1, min_delta: 100.0}\n"
    workplace.write("case.yaml", SLOW.replace("steps: 90", f"steps: {steps}") + converge)
    whole = workplace.train("case.yaml", "--run", "whole")
    shutil.copytree(workplace.path / "runs/whole", workplace.path / "runs/killed")
    state = workplace.state("killed")
    assert state["step"] == 26
    (workplace.path / "runs/killed/state.json").write_text(json.dumps({**state, "status": "running", "weights": None}))
    done = workplace.train("case.yaml", "--run", "killed")
    assert "resumed from step 26" in done.out
    assert done.weights == whole.weights
    check_traces(workplace, "killed", "whole")


def test_the_second_ctrl_c_stops_at_once_and_says_so(workplace: Workplace) -> None:
    workplace.write("case.yaml", SLOW.replace("Slow\n", "Slow\nwith: {pause_s: 2}\n"))
    run = begin(workplace)
    wait_for_rows(workplace, 1)
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(3)
    if run.poll() is None:  # a process that had no time between the two has heard one
        run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=30)
    assert run.returncode == 1
    assert out.rstrip().endswith("samestep: stopped at once")
    assert workplace.state("killed")["status"] == "failed"


def test_a_stop_in_an_evaluation_owes_it_to_the_next_start(workplace: Workplace) -> None:
    weights = doomed(workplace, ["eval 2"], signal.SIGTERM)
    stopped = workplace.train("case.yaml", "--run", "killed")
    assert stopped.code == 75
    assert workplace.state("killed")["step"] == 13
    assert not [row for row in workplace.metrics("killed") if "eval_loss" in row]
    assert workplace.train("case.yaml", "--run", "killed").weights == weights
    check_traces(workplace, "killed", "whole")


def test_the_jobs_time_limit_stops_and_saves_before_it_is_reached(workplace: Workplace) -> None:
    workplace.write("case.yaml", SLOW.replace("steps: 90", "steps: 4000"))
    ends_at = time.time() + 30
    workplace.env["SLURM_JOB_END_TIME"] = str(int(ends_at))
    stopped = workplace.train("case.yaml", "--run", "limited", processes=2)
    assert time.time() < ends_at
    assert stopped.code == 1  # torchrun makes that of 75
    state = workplace.state("limited")
    assert state["status"] == "stopped"
    rows = [row for row in workplace.metrics("limited") if "loss" in row]
    assert state["step"] == rows[-1]["step"] > 0


def test_a_rank_whose_launcher_died_before_it_looked_ends(workplace: Workplace) -> None:
    workplace.write("case.yaml", SLOW)
    workplace.env |= {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "1", "WORLD_SIZE": "2"}
    workplace.env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    launcher = f"{sys.executable} -m samestep train case.yaml --run killed >/dev/null 2>&1 & echo $!"
    with contextlib.suppress(psutil.NoSuchProcess):
        rank = psutil.Process(int(workplace.command("sh", "-c", launcher).out))
        adopter = psutil.Process(rank.ppid())
        is_known = adopter.pid == 1 and "python" not in " ".join(adopter.cmdline())
        until = time.monotonic() + (60 if is_known else 0)
        while time.monotonic() < until and rank.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.1)
        waits = rank.status() != psutil.STATUS_ZOMBIE
        rank.kill()
        if not is_known:
            pytest.skip("the children of the dead are adopted by a process here that could be a launcher")
        assert not waits, "the rank waits for a store that is gone"


def test_a_start_that_another_has_overtaken_writes_no_more(workplace: Workplace) -> None:
    workplace.write("case.yaml", SLOW)
    run = begin(workplace)
    wait_for_rows(workplace, 30)
    folder = workplace.path / "runs/killed"
    (folder / "starts/0002.json").write_text("{}")  # by a node that does not see this one any more
    overtaken_at = rows(workplace)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "start 2 has taken this run over; start 1 writes no more" in out
    left = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    assert left[-1] <= f"step-{overtaken_at:08d}"  # one may have been under way
    assert json.loads((folder / "state.json").read_text())["status"] == "running"


@pytest.mark.parametrize("damage", ["truncated", "no manifest", "a bit"])
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_used(workplace: Workplace, damage: str) -> None:
    workplace.write("case.yaml", SLOW)
    whole = workplace.train("case.yaml", "--run", "whole")
    run = begin(workplace)
    wait_for_rows(workplace, 40)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=30)
    older, newest = sorted((workplace.path / "runs/killed/checkpoints").glob("step-*"))[-2:]
    file = newest / "weights.safetensors"
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-10])
    elif damage == "a bit":
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
    else:
        (newest / "manifest.json").unlink()
    shutil.move(workplace.path / "runs/killed", workplace.path / "runs/killed elsewhere")
    done = workplace.train("case.yaml", "--run", "killed elsewhere")
    assert f"passed over runs/killed elsewhere/checkpoints/{newest.name}" in done.out
    assert f"resumed from step {int(older.name[-8:])}" in done.out
    assert done.weights == whole.weights
    check_traces(workplace, "killed elsewhere", "whole")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a folder read-only needs root")
def test_a_folder_that_becomes_read_only_is_said_and_the_run_goes_on(workplace: Workplace) -> None:
    workplace.write("case.yaml", SLOW.replace("Slow\n", "Slow\nwith: {pause_s: 0.03}\n"))
    whole = workplace.train("case.yaml", "--run", "whole", "with.pause_s=0")
    run = begin(workplace)
    wait_for_rows(workplace, 24)
    folder = str(workplace.path / "runs/killed/checkpoints")
    if subprocess.run(["mount", "--bind", folder, folder], check=False, capture_output=True).returncode:
        run.kill()
        run.communicate(timeout=30)
        pytest.skip("this machine does not let a folder be mounted")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        wait_for_rows(workplace, 44)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    out, _ = run.communicate(timeout=120)
    assert "could not be saved (Read-only file system" in out
    assert run.returncode == 0, out
    assert out.rstrip().endswith(whole.weights)
    check_traces(workplace, "killed", "whole")


def test_replay_of_a_run_that_was_killed_three_times_on_other_world_sizes(workplace: Workplace) -> None:
    doomed(workplace, ["train 60", "train 25", "train 12"])
    for processes in (1, 2, 3, 4):
        workplace.train("case.yaml", "--run", "killed", "track.fingerprint=true", processes=processes)
    assert workplace.state("killed")["status"] == "done"
    assert workplace.state("killed")["restarts"] == 3
    done = workplace.samestep("replay", "killed", "--step", "88")
    assert done.code == 0, done.out + done.err
    assert "88" in done.out

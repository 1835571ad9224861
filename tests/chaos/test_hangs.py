"""A rank that hangs or dies is named in seconds, and no finished step is lost while another rank lives."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from test_kills import check_traces, ranks_of, start

from conftest import Finished, Workplace

TASKS = Path(__file__).parent / "chaos_tasks.py"


def config(workplace: Workplace, fault: str, calls_before: int, more: str = "", task: str = "Faulty") -> None:
    """A run of 40 steps whose rank 1 of 2 does `fault` at a micro-batch, two of a step, once; no checkpoint is due.

    Nothing is audited: each look would be a call more, and the fault is in a certain one.
    """
    workplace.write(
        "case.yaml",
        f"task: {TASKS}:{task}\n"
        f"with: {{fault: {fault}, mark: {workplace.path}/mark, calls_before: {calls_before}}}\n"
        "global_batch_size: 32\nmicro_batch_size: 8\nsteps: 40\noptimizer: {name: adamw, lr: 1e-2}\n"
        f"watchdog: 4\nevaluate: {{every: 13}}\ntrack: {{every: 1, wandb: 'off'}}\naudit: false\n{more}",
    )


def paragraphs(workplace: Workplace, run: str) -> list[str]:
    found = [json.loads(path.read_text()) for path in (workplace.path / "runs" / run / "logs").glob("*.failure.json")]
    return [failure["paragraph"] for failure in found]


@pytest.mark.parametrize(
    ("fault", "calls_before", "task", "words", "finished"),
    [
        ("stop", 23, "Faulty", "does not answer any more, last seen ", 11),
        ("endless", 23, "Faulty", "has been reading data in step 12", 11),
        ("endless", 23, "FaultyInBuckets", "has been reading data in step 12", 11),
        ("endless", 26, "Faulty", "has been evaluating in step 13", 13),
        ("report", 23, "Faulty", "has been meeting the other ranks in step 12", 12),
        ("after", 0, "FaultyAfterStep", "has been running after_step in step 12", 12),
    ],
    ids=["stop", "endless", "endless, several buckets", "endless, in an evaluation", "beside a step", "in after_step"],
)
def test_a_rank_that_hangs_is_named_within_the_watchdogs_time(
    workplace: Workplace, fault: str, calls_before: int, task: str, words: str, finished: int
) -> None:
    config(workplace, fault, calls_before, "workers: 0\n", task)
    said = ended(workplace, start(workplace, 2))
    assert "rank 1 on" in said
    assert words in said
    assert "rank 0 on" in said  # the table of where each rank stands
    assert any(words in text for text in paragraphs(workplace, "killed"))
    if fault == "endless":
        assert "in transform" in (workplace.path / "runs/killed/logs/rank-0001.log").read_text()
    named_at = json.loads((workplace.path / "runs/killed/logs/rank-0000.failure.json").read_text())["time"]
    assert named_at - workplace.metrics("killed")[-1]["time"] < 60  # 4 s, a beat, 2.5 s to look twice; and a busy machine
    assert f"has saved step {finished}: no finished step is lost" in said
    assert words in str(workplace.state("killed")["reason"])
    if fault == "stop":  # `mark` says that it has been done
        again = workplace.train("case.yaml", "--run", "killed", processes=2)
        assert "resumed from step 11" in again.out
        assert again.code == 0


@pytest.mark.parametrize("fault", ["lost", "nan"])
def test_where_all_wait_for_each_other_nobody_is_blamed_and_nothing_is_lost(workplace: Workplace, fault: str) -> None:
    config(workplace, fault, 23, task="Unheard")
    said = ended(workplace, start(workplace, 2))
    assert "all ranks wait for each other, as where a message is lost: nothing has moved for " in said
    assert "rank 1 on" in said  # the table of where each rank stands
    assert "has saved step 11: no finished step is lost" in said
    failures = [json.loads(path.read_text()) for path in (workplace.path / "runs/killed/logs").glob("*.failure.json")]
    assert [failure["blamed"] for failure in failures] == [[], []]
    again = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert "resumed from step 11" in again.out
    assert again.code == 0


def test_where_all_hang_in_their_own_code_what_is_finished_is_saved(workplace: Workplace) -> None:
    config(workplace, "in the loss", 23, task="Unheard")
    said = ended(workplace, start(workplace, 2))
    assert "rank 0 on" in said
    assert "has been computing in step 12" in said
    assert "has saved step 11: no finished step is lost" in said


def ended(workplace: Workplace, launcher: subprocess.Popen[str]) -> str:
    """What a launch has printed when it is over; a stopped rank is killed, for which torchrun would take half a minute."""
    ranks: list[psutil.Process] = []
    out = workplace.path / "out"
    while launcher.poll() is None and "no finished step is lost" not in out.read_text():
        ranks = ranks_of(launcher) or ranks
        time.sleep(0.1)
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            if rank.status() == psutil.STATUS_STOPPED:
                rank.kill()
    assert launcher.wait(60) == 1
    return out.read_text()


@pytest.mark.parametrize("fault", ["die", "raise"])
def test_one_ranks_death_loses_no_finished_step(workplace: Workplace, fault: str) -> None:
    config(workplace, fault, 23)
    (workplace.path / "mark").touch()
    whole = workplace.train("case.yaml", "--run", "whole")
    (workplace.path / "mark").unlink()
    died = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert died.code == 1
    assert "has saved step 11: no finished step is lost" in died.out
    again: Finished = workplace.train("case.yaml", "--run", "killed", processes=2)
    assert "resumed from step 11" in again.out
    assert again.weights == whole.weights
    check_traces(workplace, "killed", "whole")


def test_a_fault_in_one_process_loses_no_finished_step(workplace: Workplace) -> None:
    config(workplace, "raise", 23)
    workplace.env["RANK"] = "1"  # read by the task alone: a process without a launcher has no other ranks
    del workplace.env["RANK"]
    workplace.write("broken.py", (TASKS.read_text()).replace('os.environ.get("RANK", "0") == "1" and', ""))
    text = (
        (workplace.path / "case.yaml")
        .read_text()
        .replace(str(TASKS), "broken.py")
        .replace("calls_before: 23", "calls_before: 47")
    )
    workplace.write("case.yaml", text)
    done = workplace.train("case.yaml", "--run", "one")
    assert done.code == 1
    assert "planted" in done.err
    again = workplace.train("case.yaml", "--run", "one")
    assert "resumed from step 11" in again.out
    assert again.code == 0

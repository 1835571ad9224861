"""`samestep submit`, `status` and `logs` on a real cluster, and every mistake that is found before anything is queued."""

from __future__ import annotations

import json
import sys

import pytest
from slurm_site import Site

from conftest import ROOT, Finished

pytestmark = pytest.mark.timeout(300)


def submit(site: Site, *words: str) -> Finished:
    return site.samestep("submit", "case.yaml", *words)


def test_what_is_submitted_runs_with_the_code_as_it_was(site: Site) -> None:
    site.case()
    site.write(
        "mine.py",
        f"import sys\nsys.path.insert(0, '{ROOT}/tests/chaos')\nfrom chaos_tasks import Slow\nclass Mine(Slow): ...\n",
    )
    text = (site.path / "case.yaml").read_text()
    site.write("case.yaml", text.replace(text.splitlines()[0], "task: mine.py:Mine"))
    done = submit(site, "--run", "kept", "--nodes=2", "--cpus-per-task=2", "--time=5", "--begin=now+6")
    assert done.code == 0, done.err
    assert "next: samestep status kept --follow" in done.out
    job = done.out.split()[1]
    site.write("mine.py", "raise RuntimeError('edited while the job waits')\n")
    site.write("case.yaml", "task: nothing\n")
    waiting = site.samestep("status", "kept", "--json")
    assert json.loads(waiting.out)[0]["state"] == "queued"
    site.wait(job, lambda: site.shown(job, "JobState") == "COMPLETED", 120)
    site.check("kept")
    assert site.samestep("logs", "kept").out.rstrip().splitlines()[-1].startswith("weights ")
    table = site.samestep("status", "kept").out
    assert "done" in table
    assert "60/60" in table
    assert f"{job} completed" in table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes=1"], "--time: missing; write --time=HH:MM:SS"),
        (["--nodes=4", "--cpus-per-task=4", "--time=5"], "found 16 processes in all, and a step has 8 leaves"),
        (["--time=5", "optimizer.nam=x"], "optimizer.nam: AdamW takes no such argument"),
        (["--time=5", "task=chaos:Nothing"], "task: found no module chaos"),
        (["--time=5", "--partition=nowhere"], "nowhere"),
        (["--time=5", "--nodes=90", "global_batch_size=512"], "sbatch: "),
        (["--time=5", "word"], "found 'word'; write key=value, or an option of sbatch's"),
    ],
)
def test_a_mistake_is_said_before_anything_is_queued(site: Site, words: list[str], said: str) -> None:
    site.case()
    done = submit(site, *words)
    assert done.code == 2, done.out
    assert said in done.err
    assert done.err.startswith("samestep: ")
    assert "Traceback" not in done.err
    assert not (site.path / "runs").exists() or not list((site.path / "runs").iterdir())
    assert not site.cluster.ask("squeue", "-h")


def test_a_dry_run_shows_the_line_and_queues_nothing(site: Site) -> None:
    site.case()
    done = submit(site, "--time=5", "--nodes=2", "--dry-run", "seed=3")
    assert done.code == 0
    assert "sbatch --time=5 --nodes=2" in done.out
    assert "seed=3" in done.out
    assert "#SBATCH --requeue" in done.out
    assert not (site.path / "runs").exists()
    assert not site.cluster.ask("squeue", "-h")


def test_a_chain_goes_on_where_requeueing_is_forbidden(site: Site) -> None:
    site.case(steps=60)
    done = submit(site, "--run", "chained", "--time=5", "--chain=2", "--no-requeue", "--cpus-per-task=2")
    first, second = done.out.split("\n")[0].removeprefix("job ").removesuffix(" queued").split(", then ")
    site.wait_for_rows(first, 15, run="chained")
    site.cluster.ask("scancel", "--signal=USR1", first)
    site.wait(second, lambda: site.shown(second, "JobState") == "COMPLETED", 120)
    assert site.check("chained")["restarts"] == 1


def test_status_and_logs_without_a_run_or_a_scheduler(site: Site) -> None:
    nothing = site.samestep("status")
    assert nothing.code == 2
    assert "found no run there" in nothing.err
    site.case(steps=5, pause=0)
    assert site.train("case.yaml", "--run", "here").code == 0
    site.env["PATH"] = "/nonexistent"
    shown = site.command(sys.executable, "-m", "samestep", "status", "--json")
    assert [(run["run"], run["state"], run["step"], run["steps"]) for run in json.loads(shown.out)] == [("here", "done", 5, 5)]
    assert "rank 0" not in site.samestep("logs", "here", "--rank", "7").out
    assert "write --rank N, N one of 0" in site.samestep("logs", "here", "--rank", "7").err

"""What is lost before a run's first step, and before there is a run: the job goes on, and the weights are an unbroken run's.

The long form, twenty moments: `bash tests/run.sh -m long tests/slurm/test_first_seconds.py -s`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import psutil
import pytest
from cluster import NODES
from slurm_site import Site

from conftest import ROOT

pytestmark = pytest.mark.timeout(900)

PROCESSES = ["rank", "first rank", "launcher", "first launcher", "node's watcher"]


def found(site: Site, job: str, start: int, kind: str, rng: random.Random) -> psutil.Process | None:
    """A process of this kind, of the job's start of that number; the first node's launcher holds the store of all."""
    targets = []
    for process in site.processes(job):
        with contextlib.suppress(psutil.Error, OSError):
            env, words = process.environ(), " ".join(process.cmdline())
            is_kind = {
                "rank": "RANK" in env and " train " in words,
                "first rank": env.get("RANK") == "0" and " train " in words,
                "launcher": "RANK" not in env and " --machine_rank " in words,
                "first launcher": "RANK" not in env and " --machine_rank 0 " in words,
                "node's watcher": " -m samestep node " in words,
            }[kind]
            if is_kind and int(env["SLURM_STEP_ID"]) >= start:
                targets.append(process)
    return rng.choice(targets) if targets else None


def torment(site: Site, nodes: int, faults: list[tuple[str, float]], rng: random.Random) -> tuple[str, int]:
    """Do one thing after another to a job, each to the start after the one before.

    Args:
        faults: what to kill, and when: in seconds after the start was asked for, or after such a process had come to be.

    Returns the job, and how many of the faults came before there was a first step.
    """
    job = site.sbatch(f"--nodelist={','.join(NODES[:nodes])} --nodes={nodes} --cpus-per-task=1")
    lost: set[str] = set()
    early = 0
    for number, (kind, after_s) in enumerate(faults):
        site.wait(job, lambda: site.out(job).count("going on in place") >= number)  # noqa: B023
        target = None
        while kind != "node" and target is None:
            target = found(site, job, number, kind, rng)
            assert site.shown(job, "JobState") != "FAILED", site.out(job)
        time.sleep(after_s)
        early += site.rows(f"case-{job}") == 0
        if kind == "node":
            lost.add(NODES[nodes - 1 - len(lost)])  # never the first, where the job's script is
            site.cluster.kill(NODES[nodes - len(lost)])
        if target is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(target.pid, signal.SIGKILL)
        print(f"| {kind} | {after_s:.1f} s | {site.rows(f'case-{job}')} |", flush=True)
    site.finish(job)
    assert set(site.check(f"case-{job}")["lost_nodes"]) == lost
    assert site.out(job).count("going on in place") == len(faults)
    site.wait(job, lambda: not site.processes(job), 30)
    return job, early


@pytest.mark.parametrize(
    "faults", [[("node", 3.0), ("rank", 1.0)], pytest.param([("node", 8.0), ("launcher", 0.0)], marks=pytest.mark.long)]
)
def test_a_node_and_then_a_rank_lost_in_the_first_seconds_cost_no_bits(site: Site, faults: list[tuple[str, float]]) -> None:
    site.case()
    _, early = torment(site, 3, faults, random.Random(0))
    assert early == 2


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_killed_before_the_first_step_the_job_goes_on(site: Site, seed: int) -> None:
    rng = random.Random(seed)
    site.case()
    faults = []
    for number in range(4):  # two starts in a row without a step and without a lost node end a job
        kind = "node" if number % 2 else PROCESSES[(2 * seed + number // 2) % len(PROCESSES)]
        faults.append((kind, rng.uniform(0, 9 if kind == "node" else 5)))
    job, early = torment(site, 4, faults, rng)
    print(f"job {job}: {early} of {len(faults)} came before the first step")


@pytest.mark.long
def test_ranks_that_die_before_there_is_a_run_end_the_job_after_the_second_start(site: Site) -> None:
    site.case()
    site.write("dies.py", "import os\nos.kill(os.getpid(), 9)\n")
    site.write(
        "case.yaml", (site.path / "case.yaml").read_text().replace(f"{ROOT}/tests/chaos/chaos_tasks.py:Slow", "dies.py:A")
    )
    job = site.sbatch("--nodes=2 --cpus-per-task=1")
    out = site.finish(job, "FAILED")
    assert "the ranks ended without a word, n" in out.rstrip().splitlines()[-1]
    assert out.count("going on in place") == 1
    assert site.shown(job, "ExitCode") == "1:0"


def test_what_the_ranks_refuse_ends_the_job_with_its_line_and_exit_code_2(site: Site) -> None:
    site.case()
    job = site.sbatch("--nodes=2 --cpus-per-task=1 -- optimizer.nam=x")
    out = site.finish(job, "FAILED")
    assert out.rstrip().splitlines()[-1].startswith("samestep: optimizer.nam: AdamW takes no such argument")
    assert "going on in place" not in out
    assert "Traceback" not in out
    assert site.shown(job, "ExitCode") == "2:0"
    assert list((site.path / "runs").iterdir()) == []

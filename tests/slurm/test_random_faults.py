"""One long run through twenty random faults: `bash tests/run.sh -m long tests/slurm/test_random_faults.py -s`."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import time

import psutil
import pytest
from slurm_site import Site

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400)]

FAULTS = 20
KINDS = ["kill a node", "cut a link", "kill a rank", "stop a rank", "signal", "requeue", "preemption", "kill the first node"]


def ranks(job: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            env = process.environ()
            if env.get("SLURM_JOB_ID") == job and "RANK" in env and "train" in process.cmdline():
                found.append(process)
    return found


class Tormented:
    """A job, and what has been done to it."""

    def __init__(self, site: Site, job: str, seed: int) -> None:
        self.site, self.job, self.run = site, job, f"case-{job}"
        self.rng = random.Random(seed)
        self.node_faults: collections.Counter[str] = collections.Counter()
        self.faults = 0

    def hurry(self) -> bool:
        state = self.site.shown(self.job, "JobState")
        if state == "PENDING":
            self.site.cluster.ask("scontrol", "update", f"job={self.job}", "StartTime=now")
            time.sleep(1)
        return state == "RUNNING"

    def wait_for_progress(self, rows: int) -> None:
        self.site.wait(self.job, lambda: self.hurry() and self.site.rows(self.run) >= rows, 300)

    def fault(self, kind: str) -> str:
        site, cluster, job = self.site, self.site.cluster, self.job
        first = site.shown(job, "BatchHost")
        others = [
            node for node in cluster.ask("scontrol", "show", "hostnames", site.shown(job, "NodeList")).split() if node != first
        ]
        # Twice lost is left out: one node may come to that, and the others must last until the end.
        most = 2 if not any(times > 1 for times in self.node_faults.values()) else 1
        others = [node for node in others if self.node_faults[node] < most]
        if kind in ("kill a node", "cut a link"):
            if not others:
                return ""
            node = self.rng.choice(others)
            self.node_faults[node] += 1
            (cluster.kill if kind == "kill a node" else cluster.cut)(node)
            return node
        if kind == "kill the first node":
            cluster.kill(first)
            return first
        if kind in ("kill a rank", "stop a rank"):
            os.kill(self.rng.choice(ranks(job)).pid, signal.SIGKILL if kind == "kill a rank" else signal.SIGSTOP)
        elif kind == "signal":
            cluster.ask("scancel", "--signal=USR1", job)
        elif kind == "requeue":
            cluster.ask("scontrol", "requeue", job)
        else:
            words = ["sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--cpus-per-task=2", "--output=/dev/null"]
            other = site.command(*words, "--wrap=sleep 3").out.strip()
            site.wait(other, lambda: site.shown(other, "JobState") == "COMPLETED", 120)
        return "-"

    def torment(self) -> None:
        kinds: list[str] = []
        while self.faults < FAULTS:
            kinds = kinds or self.rng.sample(KINDS, len(KINDS))
            kind = kinds.pop()
            self.wait_for_progress(self.site.rows(self.run) + self.rng.randrange(3, 25))
            if len(ranks(self.job)) < 2:
                continue
            finished = max(row["step"] for row in self.site.metrics(self.run))
            before, began, starts = self.site.rows(self.run), time.monotonic(), len(self.site.starts(self.run))
            where = self.fault(kind)
            if not where:
                continue
            self.site.wait(self.job, lambda: self.hurry() and len(self.site.starts(self.run)) > starts, 300)  # noqa: B023
            self.wait_for_progress(before + 2)
            took_s = time.monotonic() - began
            again = max(0, finished - int(self.site.starts(self.run)[-1]["resumed_from"]))
            self.faults += 1
            print(f"| {kind} | {where} | {again} | {took_s:.0f} s |", flush=True)
            if where != "-":
                self.site.cluster.heal(where)
                if not (self.site.cluster.folder / f"{where}.pid").exists():
                    self.site.cluster.revive(where)


@pytest.mark.parametrize("seed", [0])
def test_twenty_random_faults_over_one_run_change_nothing(site: Site, seed: int) -> None:
    site.case(steps=3000, more="watchdog: 5\n")
    job = site.sbatch("--nodes=3 --cpus-per-task=1", time_limit=60)
    tormented = Tormented(site, job, seed)
    print("\n| fault | node | steps done again | to a new step |\n|---|---|---|---|", flush=True)
    tormented.torment()
    site.finish(job, seconds=1800)
    assert site.check(tormented.run)["restarts"] >= FAULTS

"""One long run through twenty random faults: `bash tests/run.sh -m long tests/slurm/test_random_faults.py -s`."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from cluster import NODES
from slurm_site import Site

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400)]

FAULTS = 20
KINDS = ["kill a node", "cut a link", "kill a rank", "stop a rank", "signal", "requeue", "preemption", "kill the first node"]


class Tormented:
    """A job, and what has been done to it."""

    def __init__(self, site: Site, job: str, seed: int) -> None:
        self.site, self.job, self.run = site, job, f"case-{job}"
        self.rng = random.Random(seed)
        self.faults = 0

    def hurry(self) -> bool:
        state = self.site.shown(self.job, "JobState")
        if state == "PENDING":
            self.site.cluster.ask("scontrol", "update", f"job={self.job}", "StartTime=now")
            time.sleep(1)
        return state == "RUNNING"

    def wait_for_progress(self, rows: int) -> None:
        self.site.wait(self.job, lambda: self.hurry() and self.site.rows(self.run) >= rows, 300)

    def failures_of(self, node: str) -> int:
        state = self.site.state(self.run)
        return sum(state.get(key, {}).get(node, 0) for key in ("lost_nodes", "blamed_nodes"))

    def spared(self) -> list[str]:
        """Nodes to do something to that counts against them: one may come to be left out, the others must last to the end."""
        worst = max(self.failures_of(node) for node in NODES)
        return [node for node in NODES if self.failures_of(node) < (1 if worst > 1 else 2)]

    def fault(self, kind: str) -> str:
        site, cluster, job = self.site, self.site.cluster, self.job
        first, here = site.shown(job, "BatchHost"), {rank.environ()["SLURMD_NODENAME"]: rank.pid for rank in site.ranks(job)}
        others = [node for node in self.spared() if node != first and node in here]
        if kind in ("kill a node", "cut a link", "stop a rank"):
            if not others:
                return ""
            node = self.rng.choice(others)
            if kind == "stop a rank":
                os.kill(here[node], signal.SIGSTOP)
                return "-"
            (cluster.kill if kind == "kill a node" else cluster.cut)(node)
            return node
        if kind == "kill the first node":
            cluster.kill(first)
            site.wait(job, lambda: site.shown(job, "JobState") != "RUNNING", 200)
            cluster.revive(first)  # the queue needs all four for the next start
            return first
        if kind == "kill a rank":
            os.kill(self.rng.choice(site.ranks(job)).pid, signal.SIGKILL)
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
            self.wait_for_progress(self.site.rows(self.run) + self.rng.randrange(3, 25))
            kinds = kinds or self.rng.sample(KINDS, len(KINDS))
            # A requeue brings back the nodes that the job has lost.
            kind = kinds.pop() if len(self.site.ranks(self.job)) > 2 else "requeue"
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
    site.case(steps=3000, more="watchdog: 10\n")
    job = site.sbatch("--nodes=4 --cpus-per-task=1", time_limit=60)
    tormented = Tormented(site, job, seed)
    print("\n| fault | node | steps done again | to a new step |\n|---|---|---|---|", flush=True)
    tormented.torment()
    site.finish(job, seconds=1800)
    assert site.check(tormented.run)["restarts"] >= FAULTS

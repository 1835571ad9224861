"""Whatever is killed, whenever: the finished weights are an unbroken run's, and every step stands once in metrics.jsonl.

The long form, 200 kills, and 30 of sharded runs: `bash tests/run.sh -m long tests/chaos -s`.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conftest import Workplace
from samestep.run.metric_rows import timeless

TASKS = Path(__file__).parent / "chaos_tasks.py"
# A number that a resume gets wrong is seen: each run has a rate of its own at every step, a clip and dropout.
SCHEDULED = "schedule: {name: cosine, warmup: 8, floor: 0.1}\n"
SLOW = (
    f"task: {TASKS}:Slow\nglobal_batch_size: 32\nmicro_batch_size: 8\nsteps: 90\noptimizer: {{name: adamw, lr: 1e-2}}\n"
    f"{SCHEDULED}clip: 1.0\n"
    "evaluate: {every: 13}\ncheckpoint: {every: 7}\ntrack: {every: 1, wandb: 'off'}\n"
)
DIGITS = (
    "task: digits\nwith: {channels: 6, dropout: 0.2}\nglobal_batch_size: 64\nmicro_batch_size: 16\nsteps: 400\nclip: 1.0\n"
    f"{SCHEDULED}optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}\n"
    "evaluate: {every: 90}\ncheckpoint: {every: 20}\n"
    "track: {every: 1, wandb: 'off'}\n"
)
TEXT = (
    "task: text\nwith: {context: 32, width: 60, layers: 2, heads: 3, dropout: 0.1, shown: 0}\nglobal_batch_size: 16\n"
    f"{SCHEDULED}clip: 1.0\n"
    "micro_batch_size: 4\nsteps: 120\noptimizer: {name: adamw, lr: 3e-3}\nevaluate: {every: 50, batches: 5}\n"
    "checkpoint: {every: 10}\ntrack: {every: 1, wandb: 'off'}\n"
)
ROWS_TO_SPARE = 40  # that a run may write between the last row waited for and the kill
CONFIGS = {"slow": SLOW, "digits": DIGITS, "text": TEXT}


def start(workplace: Workplace, processes: int, *overrides: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "--"]
    words = [sys.executable, *launcher, "samestep", "train", "case.yaml", "--run", "killed", *overrides]
    with (workplace.path / "out").open("a") as out:
        return subprocess.Popen(words, cwd=workplace.path, env=workplace.env, stdout=out, stderr=out, text=True)


def ranks_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(launcher.pid).children() if "samestep" in " ".join(child.cmdline())]
    return []


def rows_of(workplace: Workplace, run: str = "killed") -> int:
    path = workplace.path / "runs" / run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_once(workplace: Workplace, rng: random.Random, kind: str, processes: int, rows: int, *overrides: str) -> bool:
    """Start the run, kill something at a random moment, and wait until nothing of it lives. False if it ended before.

    Args:
        rows: of metrics.jsonl, within which to kill it.
    """
    before, launcher = rows_of(workplace), start(workplace, processes, *overrides)
    seen: list[psutil.Process] = []
    until = time.monotonic() + 60
    wanted = before + rng.randint(1, rows)
    early = time.monotonic() + rng.uniform(0.5, 5) if rng.random() < 0.2 else None
    while launcher.poll() is None and time.monotonic() < until:
        seen = ranks_of(launcher) or seen
        if seen and (rows_of(workplace) >= wanted or (early is not None and time.monotonic() > early)):
            break
        time.sleep(0.005)
    time.sleep(rng.random() * 0.05)
    ended = launcher.poll() is not None
    targets = {"launcher": [launcher.pid], "all": [rank.pid for rank in seen]}.get(kind) or [rng.choice(seen).pid]
    for pid in targets if not ended else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if kind == "term" else signal.SIGKILL)
    try:
        launcher.wait(60)
    finally:
        if launcher.poll() is None:
            launcher.kill()
        _, left = psutil.wait_procs(seen, timeout=20)
        assert not [rank for rank in left if alive(rank)], f"stray ranks after killing {kind}: {left}"
    return not ended


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def torment(workplace: Workplace, name: str, kills: int, seed: int, shards: bool = False) -> collections.Counter[str]:
    """Kill a run again and again on ever other world sizes, then let it end, and compare it with an unbroken one.

    Args:
        shards: whether each start may be a sharded one, by chance.
    """
    rng = random.Random(seed)
    workplace.write("case.yaml", CONFIGS[name])
    whole = workplace.train("case.yaml", "--run", "whole")
    assert whole.code == 0, whole.err
    done: collections.Counter[str] = collections.Counter()
    for left in range(kills, 0, -1):
        kind = rng.choice(["one", "one", "all", "launcher", "term"])
        rows = max(1, (rows_of(workplace, "whole") - rows_of(workplace) - ROWS_TO_SPARE) // left)
        processes, overrides = rng.choice([1, 2, 2, 3, 4]), ["shard=true"] if shards and rng.random() < 0.7 else []
        how = " sharded" if overrides and processes > 1 else ""
        done[kind + how if kill_once(workplace, rng, kind, processes, rows, *overrides) else "too late"] += 1
    last = workplace.train("case.yaml", "--run", "killed", processes=rng.choice([1, 2, 3]))
    assert last.code == 0, last.err + (workplace.path / "out").read_text()[-3000:]
    assert last.weights == whole.weights
    assert done["too late"] <= 1
    check_traces(workplace, "killed", "whole")
    return done


def check_traces(workplace: Workplace, run: str, whole: str) -> None:
    """The same rows as the unbroken run's, each once, and nothing temporary left."""
    found, expected = (list(map(timeless, workplace.metrics(name))) for name in (run, whole))
    assert sorted(found, key=str) == sorted(expected, key=str)
    left = [path for path in (workplace.path / "runs" / run).rglob("*") if ".tmp" in path.name]
    assert not left


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "kills"), [("slow", 6), ("digits", 4)])
def test_random_kills_change_nothing(workplace: Workplace, name: str, kills: int) -> None:
    print(name, torment(workplace, name, kills, seed=kills))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "seed"), [(name, seed) for seed in range(7) for name in ("slow", "digits", "text")])
def test_two_hundred_random_kills_change_nothing(workplace: Workplace, name: str, seed: int) -> None:
    print(f"\n| {name} | seed {seed} |", dict(torment(workplace, name, 10, 100 + seed)), flush=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["slow", "digits", "text"])
def test_thirty_random_kills_of_sharded_runs_cost_steps_and_no_bit(workplace: Workplace, name: str) -> None:
    """A rank's rows die with it: what a start does again is told, and never more than had been done since a checkpoint."""
    done = torment(workplace, name, 10, seed=7, shards=True)
    starts = [json.loads(path.read_text()) for path in sorted((workplace.path / "runs/killed/starts").glob("*.json"))]
    begun = [facts["resumed_from"] for facts in starts]
    assert begun == sorted(begun), "a checkpoint was lost"
    reached = [(facts["before"]["row"]["step"] or 0) if facts["before"] else 0 for facts in starts]
    again = [max(0, step - first) for step, first in zip(reached, begun, strict=True)]
    print(f"\n| {name} | {dict(done)} | steps done again: {sum(again)}, at most {max(again)} after one kill |", flush=True)

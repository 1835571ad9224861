"""Runs every contender over every workload, in turn, and prints ratios to the plain loop: called by `bench/run.sh`.

Each run is a process of its own, started as its users start it; samestep by `samestep train`. The first fifth of a run is not
counted. A figure is the median over rounds of the ratio to the plain loop of the same round, wall time then CPU time, with the
least and the most of them. Contenders that trained the same thing come to much the same loss (each draws its own order of
rows), or it is said.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from tqdm import tqdm
from workloads import WORKLOADS

HERE = Path(__file__).parent
PEERS = ["accelerate", "fabric", "lightning", "trainer"]
SAMESTEP = {  # what each name adds to the line
    "samestep": [],
    "samestep, wandb offline": ["track.wandb=offline"],
    "samestep, untracked": ["track.every=1000000"],
}
TITLES = {"tiny": "tiny regression", "cnn": "small CNN", "gpt": "byte GPT"}


@dataclass
class Measured:
    """A run: seconds of wall and CPU time for a step, seconds from the command to the first step's end, MB of memory at most.

    CPU time and memory are those of all processes together.
    """

    wall: float
    cpu: float
    start: float
    peak: float
    score: float


def run_once(contender: str, workload: str, processes: int, accumulate: int, peers: str) -> Measured:
    work = WORKLOADS[workload]
    steps = work.steps[processes - 1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {
            **os.environ, "BENCH_CLOCK": str(folder / "clock"), "BENCH_TICKS": str(steps * accumulate),
            "BENCH_ACCUMULATE": str(accumulate), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_SILENT": "true",
        }  # fmt: skip
        if contender in SAMESTEP:
            python, script = sys.executable, ["-m", "samestep", "train", str(_config(folder, workload, processes, accumulate))]
            script += ["--run", "timed", *SAMESTEP[contender]]
        else:
            python = sys.executable if contender == "plain" else peers
            script = [str(HERE / "contenders.py"), contender, workload, str(steps)]
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            script = [*launcher, *(["-m", "--", *script[1:]] if script[0] == "-m" else script)]
        begun = time.time()
        done = subprocess.run([python, *script], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=900)
        clocks = [json.loads(path.read_text()) for path in sorted(folder.glob("clock-*.json"))]
        if done.returncode or len(clocks) != processes:
            raise SystemExit(f"{contender} on {workload} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        if contender in SAMESTEP:
            model = work.model()
            path = max((folder / "runs/timed/checkpoints").glob("step-*")) / "weights.safetensors"
            model.load_state_dict(safetensors.torch.load_file(path))
            score = work.score(model)
        else:
            score = float(done.stdout.rpartition("score ")[2].split()[0])
        spans = [_per_step(clock["notes"], accumulate) for clock in clocks]
        return Measured(
            spans[0][0],
            sum(cpu for _, cpu in spans),
            clocks[0]["second"] - begun,
            sum(c["peak_kib"] for c in clocks) / 1e3,
            score,
        )


def _per_step(notes: list[list[float]], accumulate: int) -> tuple[float, float]:
    """The median window's wall time for a step, and the mean CPU time: other processes cannot lengthen that much."""
    counted = notes[len(notes) // 5 :: 4]  # long windows: what comes twice a second (wandb's rows) is in each
    walls = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(counted)]
    cpu = (counted[-1][2] - counted[0][2]) / (counted[-1][0] - counted[0][0])
    return statistics.median(walls) * accumulate, cpu * accumulate


def _config(folder: Path, workload: str, processes: int, accumulate: int) -> Path:
    work = WORKLOADS[workload]
    path = folder / "timed.yaml"
    path.write_text(
        f"task: {HERE / 'samestep_tasks.py'}:Timed\nwith: {{workload: {workload}}}\nsteps: {work.steps[processes - 1]}\n"
        f"global_batch_size: {work.batch * processes * accumulate}\nmicro_batch_size: {work.batch}\n"
        f"optimizer: {{name: adamw, lr: {work.lr}}}\ndevice: cpu\nthreads: 1\ntrack: {{every: 10, wandb: 'off'}}\n"
    )
    return path


def compare(workload: str, processes: int, accumulate: int, rounds: int, contenders: list[str], peers: str) -> list[str]:
    """The lines of a table, one for each contender."""
    found: dict[str, list[Measured]] = {contender: [] for contender in contenders}
    title = f"{TITLES[workload]}, {processes} process{'es' if processes > 1 else ''}"
    title += f", {accumulate} micro-batches a step" if accumulate > 1 else ""
    turns = [c for number in range(rounds) for c in (contenders if number % 2 == 0 else reversed(contenders))]
    for contender in tqdm(turns, desc=title, unit="run", leave=False):
        found[contender].append(run_once(contender, workload, processes, accumulate, peers))
    plain = found["plain"]
    ms = statistics.median(one.wall for one in plain) * 1e3
    lines = [
        f"\n**{title}** (plain: {ms:.3g} ms a step)\n",
        "| | wall | CPU | to the first step | memory |",
        "|---|---|---|---|---|",
    ]
    for contender, runs in found.items():
        cells = [
            _ratio([getattr(one, what) / getattr(base, what) for one, base in zip(runs, plain, strict=True)])
            for what in ("wall", "cpu", "start", "peak")
        ]
        lines.append(f"| {contender} | {' | '.join(cells)} |")
        parted = statistics.median(one.score / base.score for one, base in zip(runs, plain, strict=True))
        if abs(parted - 1) > 0.2:
            lines.append(f"| ({contender} came to {parted:.2f} of the plain loop's loss: not the same training) | | | | |")
    return lines


def _ratio(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", required=True, help="the Python that has the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=f"words: workloads ({', '.join(WORKLOADS)}), joined by commas")
    parser.add_argument("--processes", help="numbers, of 1 and 2, joined by commas", default="1,2")
    parser.add_argument("--contenders", help="joined by semicolons; plain is always one")
    parser.add_argument("--out", type=Path, help="also write the tables into this file")
    words = parser.parse_args()
    if unknown := set((words.contenders or "plain").split(";")) - {"plain", *PEERS, *SAMESTEP}:
        parser.error(f"--contenders: found {', '.join(sorted(unknown))}; there are {'; '.join(['plain', *PEERS, *SAMESTEP])}")
    workloads = words.only.split(",") if words.only else list(WORKLOADS)
    names = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "accelerate"))
    asked = "import lightning, transformers as t; print(f'lightning {lightning.__version__}, transformers {t.__version__}')"
    others = subprocess.run([words.peers, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    lines = [
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {names}, "
        f"{others}; {words.rounds} rounds, one thread a process."
    ]
    print(lines[0], flush=True)
    plans = [(w, 1, 1) for w in workloads] + [(w, 2, 1) for w in workloads] + [(w, 2, 4) for w in workloads if w != "tiny"]
    for workload, processes, accumulate in (plan for plan in plans if str(plan[1]) in words.processes.split(",")):
        wanted = ["plain", *PEERS, *(SAMESTEP if processes == 1 else ["samestep"])]
        if words.contenders:
            wanted = ["plain", *(name for name in wanted if name in words.contenders.split(";") and name != "plain")]
        table = compare(workload, processes, accumulate, words.rounds, wanted, words.peers)
        print("\n".join(table), flush=True)
        lines += table
    if words.out:
        words.out.write_text("\n".join(lines) + "\n")


main()

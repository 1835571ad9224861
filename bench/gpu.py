"""Where a step's time goes on one GPU, samestep beside a plain loop, a save's hold, and a kill: called by `bench/gpu.sh`.

What is most worth knowing comes first: the plain loop taken apart (bench/ablation.py), samestep between plain rounds, a save, a
kill. At the end a verdict on each suspect (bench/verdict.py).

samestep is started as users start it; its times are those of metrics.jsonl. The plain loop is what a reader would write: fused
AdamW, autocast, pinned memory, `.item()` every ten steps.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from verdict import Figure, verdicts

from samestep.config import load_config
from samestep.task.loading import load_task
from samestep.tracking import peak_flops

HERE = Path(__file__).parent
WINDOW = 10  # steps between two readings of the clock
_TINY = ["with={context: 64, width: 64, layers: 2, heads: 2, shown: 0}", "micro_batch_size=4"]


@dataclass(frozen=True)
class Case:
    """One thing to time; `accumulate` micro-batches make a step."""

    compile: bool = False
    accumulate: int = 1
    reduce: str = "exact"

    def words(self, tiny: bool) -> list[str]:
        micro = 4 if tiny else 16
        return [
            str(HERE.parent / "configs/gpt2-124m.yaml"), *(_TINY if tiny else ["with.shown=0"]), "leaves=null",
            f"global_batch_size={micro * self.accumulate}", f"compile={str(self.compile).lower()}", f"reduce={self.reduce}",
            "schedule={name: constant}", "evaluate.batches=1", "checkpoint={minutes: null}",
            f"track={{every: {WINDOW}, wandb: 'off'}}",
        ]  # fmt: skip


def plain(case: Case, steps: int, tiny: bool) -> None:
    """The loop of a reader; prints when each window ended, and the most memory that the device held."""
    config, _ = load_config(case.words(tiny)[0], [*case.words(tiny)[1:], "steps=1"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = load_task(config.task, config.fields)
    rows = torch.from_numpy(task.data("train").with_format("numpy")[:4096]["tokens"]).long()
    torch.manual_seed(0)
    model = task.model().to(device)
    train_on = torch.compile(model) if case.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **config.optimizers["optimizer"].arguments)
    loader = DataLoader(
        TensorDataset(rows), batch_size=config.micro_batch_size, shuffle=True, drop_last=True, pin_memory=device.type == "cuda"
    )
    micro_batches = itertools.chain.from_iterable(itertools.repeat(loader))
    times = []
    for step in range(1, steps + 1):
        for _ in range(case.accumulate):
            (tokens,) = next(micro_batches)
            tokens = tokens.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                logits = train_on(tokens[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()) / case.accumulate
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % WINDOW == 0:
            loss.item()
            times.append(time.time())
    print(json.dumps({"times": times, "peak_gb": _peak_gb()}))


def _peak_gb() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


class Bench:
    """Runs, figures, and the time left for them."""

    def __init__(self, folder: Path, tiny: bool, minutes: float) -> None:
        self._folder, self._tiny, self._until = folder, tiny, time.monotonic() + 60 * minutes
        self._steps = 4 * WINDOW if tiny else 10 * WINDOW
        self._count = 0
        self.figures: dict[str, Figure] = {}
        self.has_failed = False
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        self._where = {"device": name, "torch": torch.__version__, "python": sys.version.split()[0]}
        config, _ = load_config(Case().words(tiny)[0], [*Case().words(tiny)[1:], "steps=1"])
        model = load_task(config.task, config.fields).model()
        self.context, self.rows = int(config.fields["context"]), config.micro_batch_size
        size, layers, width = sum(p.numel() for p in model.parameters()), config.fields["layers"], config.fields["width"]
        # Of a token, forward and backward: Chowdhery et al., 2022 (PaLM), appendix B, without the learned positions.
        self.flops = 6 * (size - self.context * width) + 12 * layers * width * self.context
        self.peak_flops = peak_flops(name, torch.bfloat16)

    def say(self, figure: str, value: float | str | None, **more: Any) -> None:
        rounded = float(f"{value:.4g}") if isinstance(value, float) else value
        print(json.dumps({"figure": figure, "value": rounded, **more, **self._where}), flush=True)

    def has_time_for(self, figure: str, seconds: float) -> bool:
        if time.monotonic() + seconds < self._until:
            return True
        self.say(figure, "left out: no time")
        return False

    def _command(self, case: Case, *words: str, run: str) -> list[str]:
        train = ["train", *case.words(self._tiny), "--run", run, f"runs={self._folder / 'runs'}", *words]
        return [sys.executable, __file__, "samestep", *train]

    def _ended(self, command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def plain(self, case: Case) -> tuple[float, float]:
        """Seconds of a step, and gigabytes."""
        size = ["--tiny"] if self._tiny else []
        words = [sys.executable, __file__, "plain", str(self._steps), json.dumps(vars(case)), *size]
        found = json.loads(self._ended(words).rstrip().rpartition("\n")[2])
        return _step_s(found["times"]), found["peak_gb"]

    def samestep(self, case: Case) -> tuple[float, float]:
        """Seconds of a step, and gigabytes."""
        self._count += 1
        out = self._ended(self._command(case, f"steps={self._steps}", run=f"timed-{self._count}"))
        peak = json.loads(out.rstrip().rpartition("\n")[2])["peak_gb"]
        return _step_s([row["time"] for row in self._rows(f"timed-{self._count}")]), peak

    def _rows(self, run: str) -> list[dict[str, Any]]:
        path = self._folder / "runs" / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []

    def compare(self, title: str, case: Case, rounds: int) -> float:
        """Seconds of samestep's step; plain rounds in between."""
        pairs = [(self.plain(case), self.samestep(case)) for _ in range(rounds)]
        ratios = [ours[0] / theirs[0] for theirs, ours in pairs]
        step_s, plain_s = statistics.median(ours[0] for _, ours in pairs), statistics.median(theirs[0] for theirs, _ in pairs)
        tokens = self.rows * case.accumulate * self.context / step_s
        mfu = tokens * self.flops / self.peak_flops if self.peak_flops else None
        self.say(f"step, samestep / plain: {title}", statistics.median(ratios), of=[round(ratio, 4) for ratio in ratios])
        self.say(f"ms a step: {title}", step_s * 1e3, plain=round(plain_s * 1e3, 2))
        self.say(f"tokens/s: {title}", tokens)
        self.say(f"MFU: {title}", mfu)
        if pairs[0][0][1]:
            self.say(f"memory, samestep / plain: {title}", pairs[0][1][1] / pairs[0][0][1], gb=round(pairs[0][1][1], 2))
        return step_s

    def ablation(self, minutes: float) -> None:
        """The plain loop in many ways, in a process of its own."""
        command = [sys.executable, str(HERE / "ablation.py"), *(["--tiny"] if self._tiny else []), "--minutes", str(minutes)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=self._folder) as process:
            watch = threading.Timer(60 * (minutes + 2), process.kill)  # a compiler may take longer than anybody has
            watch.start()
            for line in process.stdout or ():
                row = json.loads(line) if line.startswith("{") else {}
                if "wall" in row:
                    self.figures[row["name"]] = Figure(row["wall"], row["kernels"])
                    self.say(f"ms, {row.pop('name')}", row.pop("wall"), **row)
                elif row:
                    self.say(row["name"], row["said"])
            watch.cancel()

    def section(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        """Do it if there is time; what fails is a figure that says so."""
        if not self.has_time_for(name, seconds):
            return
        try:
            work()
        except (SystemExit, Exception) as error:
            self.has_failed = True
            self.say(name, f"failed: {str(error)[-1000:]}")

    def compared(self, figure: str, title: str, case: Case, rounds: int) -> None:
        self.figures[figure] = Figure(1e3 * self.compare(title, case, rounds), 0.0)

    def verdict(self) -> None:
        for row in verdicts(self.figures):
            self.say(f"verdict, {row.pop('suspect')}", str(row.pop("verdict")), **row)

    def profile(self, title: str, case: Case) -> None:
        """The operations that took longest in three of samestep's steps."""
        self._count += 1
        run = f"timed-{self._count}"
        words = ["steps=30", "profile={start: 20, steps: 3}"]
        found = re.findall(r"^ *([\d.]+) +[\d.]+% +[\d.]+ +(\S+)$", self._ended(self._command(case, *words, run=run)), re.M)
        self.say(f"longest operations, ms a step: {title}", None, of={name: float(took) for took, name in found})

    def exact_and_fast(self, rounds: int) -> None:
        pairs = [(self.samestep(Case())[0], self.samestep(Case(reduce="fast"))[0]) for _ in range(rounds)]
        self.say("step, exact / fast", statistics.median(a / b for a, b in pairs))

    def hold_of_a_save(self) -> None:
        """How much longer a window with a background save is than one without; every fourth has one."""
        words = [f"steps={4 * self._steps}", "checkpoint={minutes: null, every: 40, keep: 1}"]
        self._ended(self._command(Case(), *words, run="saved"))
        rows = self._rows("saved")[1:-1]
        times = {b["step"]: b["time"] - a["time"] for a, b in itertools.pairwise(rows)}
        saving = [took for step, took in times.items() if step % 40 == 10]  # the save is taken after step 40
        others = statistics.median(took for step, took in times.items() if step % 40 != 10)
        hold_s = statistics.median(saving) - others
        self.say("ms that a background save holds the training", hold_s * 1e3, of_a_step=round(hold_s / others * WINDOW, 3))

    def kill_and_resume(self) -> None:
        words = [f"steps={self._steps}", "checkpoint={minutes: null, every: 10}", "track={every: 1, wandb: 'off'}"]
        whole = self._ended(self._command(Case(), *words, run="whole"))
        command = self._command(Case(), *words, run="killed")
        with (self._folder / "killed.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
            while len(self._rows("killed")) < self._steps // 2 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed, reached = time.time(), len(self._rows("killed"))
        again = self._ended(command)
        rows = self._rows("killed")
        first = next((row["time"] for row in rows if row["time"] > killed), killed)
        same = _hash(whole) == _hash(again)
        self.say("a SIGKILL and the same line again: the unbroken run's weights", "the same bits" if same else "OTHER BITS")
        self.say("seconds from the SIGKILL to a new step", first - killed, killed_after_step=reached)
        self.has_failed = self.has_failed or not same


def _hash(out: str) -> str:
    return next(line for line in out.splitlines() if line.startswith("weights "))


def _step_s(times: list[float]) -> float:
    """The median window's seconds of a step; the first windows compile and warm up."""
    counted = times[len(times) // 5 :]
    return statistics.median(b - a for a, b in itertools.pairwise(counted)) / WINDOW


def main() -> None:
    if sys.argv[1:2] == ["samestep"]:
        from samestep.cli import main as command

        del sys.argv[1]
        atexit.register(lambda: print(json.dumps({"peak_gb": _peak_gb()})))
        command()
    if sys.argv[1:2] == ["plain"]:
        plain(Case(**json.loads(sys.argv[3])), int(sys.argv[2]), "--tiny" in sys.argv)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model, on a CPU too")
    parser.add_argument("--minutes", type=float, default=8.5, help="begin nothing that would end later")
    words = parser.parse_args()
    if not (torch.cuda.is_available() or words.tiny):
        raise SystemExit("bench/gpu.sh: found no CUDA device; write --tiny to see that it runs")
    rounds = 1 if words.tiny else 2
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        bench = Bench(Path(name), words.tiny, words.minutes)
        bench.section("the plain loop taken apart", 0, lambda: bench.ablation(3.5))
        bench.section("samestep", 60, lambda: bench.compared("samestep", "bf16", Case(), rounds))
        bench.section("compiled", 100, lambda: bench.compared("samestep, compiled", "bf16, compiled", Case(compile=True), 1))
        bench.section("a save", 60, bench.hold_of_a_save)
        bench.section("a kill", 60, bench.kill_and_resume)
        four = "bf16, four micro-batches a step"
        bench.section(four, 60, lambda: bench.compare(four, Case(accumulate=4), 1))
        bench.section("longest operations", 40, lambda: bench.profile("bf16", Case()))
        bench.section("exact and fast", 70, lambda: bench.exact_and_fast(1))
        bench.verdict()
    raise SystemExit(bench.has_failed)


main()

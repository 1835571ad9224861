"""What saving costs, in one interleaved run on one disk.

    python bench/checkpoint.py [FOLDER ON THE DISK TO MEASURE]

- saving beside the training: the demo on two processes, 20 steps with a save and 20 without, in turns
- the hold of a save: from the call until the training goes on, over a plain copy of the same state
- a save of 1 GB until it is renamed, over `dd` with fsync; a load, over reading and checksumming the same files
- from SIGKILL to the first new step, against a fresh start's first step and a load
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from samestep.checkpoint import Checkpoints, Slab, capture, files, read, verify
from samestep.config import load_config
from samestep.control import StopFlag, leave_together
from samestep.loop import train
from samestep.run.folder import RunFolder
from samestep.runtime import prepare_environment, read_runtime
from samestep.session import Plans, build, make_accelerator, make_saver
from samestep.task.loading import load_task
from samestep.tracking import NullTracker

ROOT = Path(__file__).parent.parent
ROUNDS = 12
STEPS = 20


def timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def beside_training(folder: Path) -> None:
    """One rank of the demo, in turns with and without a save at the beginning of 20 steps."""
    runtime = read_runtime()
    prepare_environment(runtime, 1)
    config, _ = load_config(ROOT / "configs/stdlib.yaml", [f"steps={2 * (ROUNDS + 1) * STEPS}", "checkpoint={minutes: null}"])
    accelerator = make_accelerator(config)
    plans = Plans(load_task(config.task, config.fields), accelerator, runtime, StopFlag(), None, ["here"] * 2)
    run = build(config, plans, lambda steps: NullTracker())
    run.evaluation.evaluator = None
    saver = make_saver(run, RunFolder(folder), {}, runtime, 1)
    times: dict[bool, list[float]] = {True: [], False: []}
    step = 0
    for number in range(2 * (ROUNDS + 1)):
        saves = number % 4 in (0, 3)
        begun = time.perf_counter()
        if saves and runtime.is_main:
            saver.save(step)
        run.first_step, run.num_steps = step, step + STEPS
        train(run)
        times[saves].append(time.perf_counter() - begun)
        saver.wait()
        step += STEPS
    with_save, without = (statistics.median(times[saves][1:]) for saves in (True, False))
    if runtime.is_main:
        print(f"demo, 2 processes, a save every {STEPS} steps: {with_save / without:.4f} of the time without", flush=True)
    leave_together()
    os._exit(0)  # no teardown: a thread of gloo may hold a tensor until then, wants Python's lock and aborts


def state_of(num_parameters: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of some large and many small tensors, and its AdamW after a step."""
    width = 1024
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(max(1, num_parameters // (width * width)))])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def hold(num_parameters: int) -> None:
    model, optimizer = state_of(num_parameters)
    slab = Slab(torch.device("cpu"))
    tensors = [*model.state_dict().values()]
    tensors += [value for entries in optimizer.state_dict()["state"].values() for value in entries.values()]
    copies = [torch.empty_like(tensor) for tensor in tensors]

    def plain() -> None:
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor)

    def held() -> None:
        capture(0, model, optimizer, None, {}, slab)

    plain()
    held()
    pairs = [(timed(plain), timed(held)) for _ in range(ROUNDS)]
    ratio = statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)
    print(f"hold of a save of {sum(tensor.nbytes for tensor in tensors) / 1e6:,.0f} MB / plain copy: {ratio:.3f}", flush=True)


def a_gigabyte(folder: Path) -> None:
    model, optimizer = state_of(84_000_000)
    saved = capture(1, model, optimizer, None, {})
    checkpoints = Checkpoints(RunFolder(folder), keep=1)
    renamed = 0.0

    def note_the_time(path: Path, from_disk: bool = False) -> int:
        nonlocal renamed
        renamed = time.perf_counter()
        return verify(path, from_disk)

    def cold(file: Path) -> None:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)

    def reading(path: Path) -> None:
        for file in sorted(path.iterdir()):
            with file.open("rb", buffering=0) as opened:
                xxhash.xxh3_128_hexdigest(opened.read())

    def dd() -> None:
        words = ["dd", "if=/dev/zero", f"of={folder}/dd", "bs=16M", f"count={round(saved.num_bytes / (1 << 24))}", "conv=fsync"]
        subprocess.run(words, check=True, capture_output=True)

    def touch_memory() -> None:
        """Leave the page cache memory that the machine has at hand: a virtual one gets what it has not used lately slowly."""
        torch.ones(saved.num_bytes * 5 // 4, dtype=torch.uint8)

    found: dict[str, list[float]] = {"save": [], "dd": [], "load": [], "reading": []}
    for number in range(8):
        saved.step = number
        vars(files)["verify"] = note_the_time
        touch_memory()
        begun = time.perf_counter()
        path = checkpoints.save(saved)
        found["save"].append(renamed - begun)
        vars(files)["verify"] = verify
        touch_memory()
        found["dd"].append(timed(dd))
        (folder / "dd").unlink()
        for name, work in (("load", read), ("reading", reading)):
            for file in path.iterdir():
                cold(file)
            touch_memory()
            begun = time.perf_counter()
            work(path)
            found[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(times[1:]) for name, times in found.items()}
    saving, loading = medians["dd"] / medians["save"], medians["reading"] / medians["load"]
    print(f"{saved.num_bytes / 1e9:.2f} GB: speed of a save until its rename / dd with fsync {saving:.3f}", flush=True)
    print(f"  speed of a load / reading and checksumming {loading:.3f}", flush=True)


def after_a_kill(folder: Path) -> None:
    """Seconds from a start, and from a SIGKILL and the same line again, to the first step that is made."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for number in range(3):
        words = [sys.executable, "-m", "samestep", "train", str(ROOT / "configs/stdlib.yaml"), "--run", f"killed-{number}"]
        words += [f"runs={folder}", "track={every: 1, wandb: 'off'}", "checkpoint.every=10", "evaluate.batches=1"]
        run = RunFolder(folder / f"killed-{number}")
        for start in (1, 2):
            file, begun = inode(run.metrics), time.perf_counter()
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # A later start cuts the file back by putting another in its place.
            while inode(run.metrics) == file or rows_of(run) <= run.read_state().get("step", 0):
                time.sleep(0.01)
            times[start].append(time.perf_counter() - begun)
            while rows_of(run) < 34:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
    fresh, again = (statistics.median(found) for found in times.values())
    print(f"from a start to its first step {fresh:.2f} s; from a SIGKILL and the same line to a step {again:.2f} s", flush=True)


def inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def rows_of(run: RunFolder) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def main() -> None:
    if len(sys.argv) > 2:
        beside_training(Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as name:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        subprocess.run([*launcher, __file__, "rank", name], check=True, stderr=subprocess.DEVNULL)
        torch.set_num_threads(1)
        hold(400_000)
        hold(20_000_000)
        a_gigabyte(Path(name) / "large")
        after_a_kill(Path(name) / "runs")


if __name__ == "__main__":
    main()

"""`samestep verify`: the first steps of a config at several world sizes on this machine, compared bit for bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from samestep.config import load_config
from samestep.errors import TrainingError, UsageError
from samestep.run.folder import RunFolder
from samestep.runtime import processes_here, visible_gpus
from samestep.task.loading import load_task

_COMPARED = ("loss", "grad_norm", "fingerprints")


@dataclass
class _Run:
    """One start of the config: its tracked steps and its weights at the end."""

    name: str
    rows: list[dict[str, Any]]
    weights: str


@dataclass
class _Parting:
    """Where a run left the reference: the step, what differs there first, and in which gradients."""

    step: int
    what: str
    parameters: list[int]


def verify(config_path: str, processes: str | None, steps: int, overrides: tuple[str, ...], shards: bool = False) -> str:
    """Run the first steps at each world size, the first of them twice, and with `shards` sharded too; returns a table.

    Raises TrainingError with the table and what the cause looks like if any two differ.
    """
    config, _ = load_config(config_path, overrides)
    sizes = _sizes(processes, config.device, config.num_leaves)
    wanted = [("epochs", "null"), ("steps", str(steps)), ("converge", "null"), ("processes", "null")]
    wanted += [("track", "{every: 1, fingerprint: parameters, wandb: 'off'}"), ("checkpoint", "{minutes: null}")]
    wanted += [("evaluate", "{batches: 1}")]
    if config.audit is not False:
        wanted.append(("audit", "{every: 1}"))  # which reads rows twice in each step, and names what parts
    fixed = [f"{key}={value}" for key, value in wanted]
    if shards:
        if max(sizes) == 1:
            raise UsageError("--shard: on one process nothing is sharded; write --processes 1,2, or leaves for more")
        fixed.append("shard=false")
    with tempfile.TemporaryDirectory(prefix="samestep-verify-") as runs:
        starts = [(f"{size}", size, fixed) for size in sizes]
        starts.insert(1, (f"{sizes[0]} again", sizes[0], fixed))
        starts += [(f"{size} sharded", size, [*fixed, "shard=true"]) for size in sizes if shards and size > 1]
        found = [
            _start(config_path, [*overrides, *words, f"runs={runs}"], Path(runs), name, size)
            for name, size, words in tqdm(starts, desc="verify", unit="run", leave=False, disable=not sys.stderr.isatty())
        ]
    partings = [_parting(found[0], run) for run in found]
    names = _parameter_names(config.task, config.fields)
    table = "\n".join(_table(found, partings, names))
    if not any(partings):
        how = ", sharded and not" if shards else ""
        return f"{table}\nall the same: {steps} steps on {', '.join(map(str, sizes))} processes{how}"
    raise TrainingError(f"{table}\n{_cause(found, partings)}")


def _sizes(processes: str | None, device: str, leaves: int) -> list[int]:
    if processes is None:
        here = max(2, processes_here(device, leaves)) if not visible_gpus() or device == "cpu" else visible_gpus()
        return [size for size in (1, 2, 3, 4, 8) if size <= min(here, leaves)]
    try:
        sizes = [int(word) for word in processes.split(",")]
    except ValueError:
        raise UsageError(f"--processes: found {processes!r}; write numbers with commas between them, 1,2,4") from None
    if min(sizes) < 1 or max(sizes) > leaves:
        raise UsageError(
            f"--processes: found {processes}; a step has {leaves} leaves to share: write numbers from 1 to {leaves}"
        )
    gpus = visible_gpus() if device == "auto" else 0
    if gpus and max(sizes) > gpus:
        raise UsageError(f"--processes: found {processes}, and this machine has {gpus} GPUs; write fewer, or device=cpu")
    return sizes


def _start(config_path: str, overrides: list[str], runs: Path, name: str, size: int) -> _Run:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size), "-m", "--", "samestep"]
    words = ["-m", "samestep"] if size == 1 else launcher
    done = subprocess.run(
        [sys.executable, *words, "train", config_path, "--run", name, *overrides], capture_output=True, text=True, check=False
    )
    folder = RunFolder(runs / name)
    if done.returncode:
        refused = [line.removeprefix("samestep: ") for line in done.stderr.splitlines() if line.startswith("samestep: ")]
        if refused and not folder.path.exists():
            raise UsageError(*refused)
        failures = folder.failures()
        last = failures[0]["paragraph"] if failures else _last_words(done.stderr)
        raise TrainingError(f"on {name} processes the run failed: {last}")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return _Run(name, [row for row in rows if "loss" in row], folder.read_state()["weights"])


def _last_words(stderr: str) -> str:
    """What a run said before it ended without a record of why; torchrun frames that, and ends with a line of its own."""
    root = re.search(r"Root Cause.*?rank +: (\d+).*?traceback : (.*?)\n=+", stderr, re.DOTALL)
    said = [
        line for line in re.split(r"^[WE]\d{4} ", stderr, maxsplit=1, flags=re.MULTILINE)[0].splitlines() if line.strip("* ")
    ]
    blamed = [f"rank {root[1]}: {root[2].strip()}"] if root else []
    return "; ".join(said[-3:] + blamed)


def _parting(reference: _Run, run: _Run) -> _Parting | None:
    for expected, row in zip(reference.rows, run.rows, strict=True):
        for key in _COMPARED:
            if expected[key] != row[key]:
                pairs = zip(expected["fingerprints"], row["fingerprints"], strict=False)
                return _Parting(row["step"], key, [place for place, (a, b) in enumerate(pairs) if a != b])
    if reference.weights != run.weights:
        return _Parting(len(run.rows), "weights", [])
    return None


def _parameter_names(spec: str, fields: dict[str, Any]) -> list[str]:
    model = load_task(spec, fields).model()
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _table(found: list[_Run], partings: list[_Parting | None], names: list[str]) -> list[str]:
    lines = [f"{'processes':>10}  {'loss':<20}  {'grad_norm':<20}  {'weights':<16}  first difference"]
    for run, parting in zip(found, partings, strict=True):
        last, where = run.rows[-1], "none"
        if parting is not None:
            complete = len(last["fingerprints"]) == len(names)
            first = [names[place] if complete else f"number {place}" for place in parting.parameters[-1:]]
            where = f"step {parting.step}: {parting.what.removesuffix('s') if parting.what != 'loss' else 'loss'}"
            where += f", {len(parting.parameters)} gradients, of them first {first[0]}" if first else ""
        lines.append(f"{run.name:>10}  {last['loss']:<20.15g}  {last['grad_norm']:<20.15g}  {run.weights[:16]}  {where}")
    return lines


def _cause(found: list[_Run], partings: list[_Parting | None]) -> str:
    """What the pattern of differences looks like, in the order in which the possibilities can be told apart."""
    again = partings[1]
    if again is not None and again.what == "loss":
        return (
            f"differs: two runs on {found[0].name} process(es) part in the loss of step {again.step}. That looks like an "
            "unseeded random call in the task or its data (torch, numpy and random are seeded; the clock, os.urandom and a "
            "generator of your own are not)."
        )
    if again is not None:
        return (
            f"differs: two runs on {found[0].name} process(es) agree in the loss of step {again.step} and part in its "
            "gradients. That looks like a kernel that is not deterministic, of a library that torch's switches do not reach."
        )
    first = min((parting for parting in partings if parting is not None), key=lambda parting: parting.step)
    if not any(parting for run, parting in zip(found, partings, strict=True) if not run.name.endswith("sharded")):
        return (
            f"differs: unsharded runs agree at every size, and sharded ones part at step {first.step}. That looks like a model "
            "that reaches its parameters past the modules that hold them, or an optimizer's kernel that a cut changes."
        )
    if first.what == "loss":
        return (
            f"differs: the same number of processes agrees with itself, and others part in the loss of step {first.step}. That "
            "looks like a loss that depends on the batch as a whole or on who computes it: a statistic over the global batch, "
            "state kept between micro-batches, or a task that reads its rank."
        )
    return (
        f"differs: the loss of step {first.step} agrees and its gradients part. That looks like a hook or a kernel that "
        "depends on the rank, or like a device that computes wrongly (audit={every: 1} names the rank)."
    )

"""`samestep verify`: the first steps of a config at several world sizes on this machine, compared bit for bit."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from samestep.commands.first_steps import Run, first_steps_alone, parameter_names, start
from samestep.config import load_config
from samestep.errors import TrainingError, UsageError
from samestep.runtime import processes_here, visible_gpus

_COMPARED = ("loss", "grad_norm", "fingerprints")


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
    sizes = sizes_here(processes, config.device, config.num_leaves)
    fixed = first_steps_alone(config, steps)
    if config.audit is not False:
        fixed.append("audit={every: 1}")  # which reads rows twice in each step, and names what parts
    if shards:
        if max(sizes) == 1:
            raise UsageError("--shard: on one process nothing is sharded; write --processes 1,2, or leaves for more")
        fixed.append("shard=false")
    with tempfile.TemporaryDirectory(prefix="samestep-verify-") as runs:
        starts = [(f"{size}", size, fixed) for size in sizes]
        starts.insert(1, (f"{sizes[0]} again", sizes[0], fixed))
        starts += [(f"{size} sharded", size, [*fixed, "shard=true"]) for size in sizes if shards and size > 1]
        found = [
            start(config_path, [*overrides, *words], Path(runs), name, size)
            for name, size, words in tqdm(starts, desc="verify", unit="run", leave=False, disable=not sys.stderr.isatty())
        ]
    partings = [_parting(found[0], run) for run in found]
    names = parameter_names(config.task, config.fields)
    table = "\n".join(_table(found, partings, names))
    if not any(partings):
        how = ", sharded and not" if shards else ""
        return f"{table}\nall the same: {steps} steps on {', '.join(map(str, sizes))} processes{how}"
    raise TrainingError(f"{table}\n{_cause(found, partings)}")


def sizes_here(processes: str | None, device: str, leaves: int) -> list[int]:
    """The world sizes that were asked for, or those that fit here. UsageError for what is none."""
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


def _parting(reference: Run, run: Run) -> _Parting | None:
    for expected, row in zip(reference.steps, run.steps, strict=True):
        for key in _COMPARED:
            if expected[key] != row[key]:
                pairs = zip(expected["fingerprints"], row["fingerprints"], strict=False)
                return _Parting(row["step"], key, [place for place, (a, b) in enumerate(pairs) if a != b])
    if reference.weights != run.weights:
        return _Parting(len(run.steps), "weights", [])
    return None


def _table(found: list[Run], partings: list[_Parting | None], names: list[str]) -> list[str]:
    lines = [f"{'processes':>10}  {'loss':<20}  {'grad_norm':<20}  {'weights':<16}  first difference"]
    for run, parting in zip(found, partings, strict=True):
        last, where = run.steps[-1], "none"
        if parting is not None:
            complete = len(last["fingerprints"]) == len(names)
            first = [names[place] if complete else f"number {place}" for place in parting.parameters[-1:]]
            where = f"step {parting.step}: {parting.what.removesuffix('s') if parting.what != 'loss' else 'loss'}"
            where += f", {len(parting.parameters)} gradients, of them first {first[0]}" if first else ""
        lines.append(f"{run.name:>10}  {last['loss']:<20.15g}  {last['grad_norm']:<20.15g}  {run.weights[:16]}  {where}")
    return lines


def _cause(found: list[Run], partings: list[_Parting | None]) -> str:
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

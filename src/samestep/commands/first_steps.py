"""The first steps of a config, trained in processes and a folder of their own, so that such runs can be compared."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.config import Config
from samestep.errors import TrainingError, UsageError
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import Row
from samestep.task.loading import load_task


@dataclass
class Run:
    """One start of the config: its rows, a training row for each step, and what state.json says at its end.

    Args:
        data: the identity of each split, by which data are known again.
    """

    name: str
    rows: list[Row]
    state: dict[str, Any]
    data: dict[str, Any]

    @functools.cached_property
    def steps(self) -> list[Row]:
        return [row for row in self.rows if "loss" in row]

    @property
    def weights(self) -> str:
        return str(self.state["weights"])


def first_steps_alone(config: Config, steps: int) -> list[str]:
    """What is laid over `config`: so many steps, all tracked to the bit, and nothing beside them but one small evaluation."""
    wanted = [("epochs", "null"), ("steps", str(steps)), ("converge", "null"), ("processes", "null"), ("profile", "null")]
    wanted += [("track", "{every: 1, fingerprint: parameters, wandb: 'off'}"), ("checkpoint", "{minutes: null}")]
    later = f", every: {steps + 1}" if config.schedule.judged_by else ""  # which cannot do without
    wanted += [("evaluate", f"{{batches: 1{later}}}")]
    return [f"{key}={value}" for key, value in wanted]


def start(config_path: str, overrides: list[str], runs: Path, name: str, size: int) -> Run:
    """Train a config on so many processes here. Raises UsageError where it is refused, TrainingError where it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size), "-m", "--", "samestep"]
    words = ["-m", "samestep"] if size == 1 else launcher
    words += ["train", config_path, "--run", name, *overrides, f"runs={runs}"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    folder = RunFolder(runs / name)
    if done.returncode:
        refused = [line.removeprefix("samestep: ") for line in done.stderr.splitlines() if line.startswith("samestep: ")]
        if refused and not folder.path.exists():
            raise UsageError(*refused)
        failures = folder.failures()
        last = failures[0]["paragraph"] if failures else last_words(done.stderr)
        raise TrainingError(f"on {name} processes the run failed: {last}")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    (checkpoint, *_) = sorted(folder.checkpoints.glob("step-*"), reverse=True)
    return Run(name, rows, folder.read_state(), json.loads((checkpoint / "values.json").read_text())["data"])


def last_words(stderr: str) -> str:
    """What a run said before it ended without a record of why; torchrun frames that, and ends with a line of its own."""
    root = re.search(r"Root Cause.*?rank +: (\d+).*?traceback : (.*?)\n=+", stderr, re.DOTALL)
    said = [
        line for line in re.split(r"^[WE]\d{4} ", stderr, maxsplit=1, flags=re.MULTILINE)[0].splitlines() if line.strip("* ")
    ]
    blamed = [f"rank {root[1]}: {root[2].strip()}"] if root else []
    return "; ".join(said[-3:] + blamed)


def parameter_names(spec: str, fields: dict[str, Any]) -> list[str]:
    """The names of a task's trainable parameters, in the order of a row's fingerprints."""
    model = load_task(spec, fields).model()
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
